"""The data contract on a manifest of 1,000,000 rows: seconds, with Great Expectations.

All suites that the validate stage holds a manifest against are built and verified in one
`Contract`, as there: images, class images, class groups, class splits, groups. The manifest is
made up: 20 classes, groups of about ten images, every column that the stage's own has. A thousand
rows are bad (too small, unreadable, of an unknown class), because naming them is a part of the
work. Building the Data Docs is left out: it does not depend on the number of rows.
"""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.intake.contract import Contract
from stages.core.intake.images import HASH_BYTES
from stages.core.intake.suites import class_suites, image_suite, split_suites
from tests.benchmarks.record import Result, seconds

ROWS, BAD_SHARE, ROUNDS = 1_000_000, 1e-3, 3
CLASSES = [f"class {k:02d}" for k in range(20)]


def manifest(rows: int) -> pd.DataFrame:
    """A made-up manifest, as the validate stage has it before the quarantine."""
    draws = np.random.default_rng(0)
    group = draws.integers(0, max(rows // 10, 1), rows)
    label = np.array(CLASSES, object)[group % len(CLASSES)]
    width = draws.integers(64, 4000, rows)
    problem = np.full(rows, None, object)
    bad = draws.choice(rows, round(rows * BAD_SHARE), replace=False)
    label[bad[0::3]] = "no such class"
    width[bad[1::3]] = 8
    problem[bad[2::3]] = "an empty file (0 bytes); copy it again"
    numbers = [f"{i:09d}" for i in range(rows)]
    return pd.DataFrame(
        {
            "file_name": [f"images/{n}.jpg" for n in numbers],
            "label": label,
            "group": [f"group {g}" for g in group],
            "domain": "",
            "split": np.array(["train", "val", "test"], object)[np.minimum(group % 8, 2)],
            "width": width,
            "height": draws.integers(64, 4000, rows),
            "mode": "RGB",
            "format": "JPEG",
            "channels": 3,
            "mean": draws.uniform(0, 255, rows),
            "contrast": draws.uniform(1, 80, rows),
            "sharpness": draws.uniform(0, 5000, rows),
            "phash": [bytes(HASH_BYTES)] * rows,
            "bytes": draws.integers(1000, 10**6, rows),
            "sha256": [n.rjust(64, "0") for n in numbers],
            "problem": problem,
        }
    )


def verify(table: pd.DataFrame, docs: Path) -> None:
    """All suites of the validate stage."""
    contract = Contract(docs)
    contract.verify(
        {
            "images": image_suite(table, CLASSES, min_source_px=32, min_contrast=1.0),
            **class_suites(table, CLASSES, min_per_class=50, min_groups_per_class=3),
            **split_suites(table, CLASSES, torn=False),
        }
    )


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    table = manifest(round(ROWS * scale))
    verify(table.head(1000), work)  # imports Great Expectations
    times = []
    for _ in range(ROUNDS):
        times.append(seconds(lambda: verify(table, work)))
        print(f"  {times[-1]:.2f} s", flush=True)
    what = f"image, class and split suites on a manifest of {len(table):,} rows"
    return [Result("suite", what, times, 10.0, unit="s")]
