"""The packaged ELPV solar cells as an imagefolder.

Reads:  the PyPI package `elpv-dataset`; data/elpv_modules.csv (first cell of each solar module)
Writes: data/elpv/ (images/*.png, metadata.csv, classes.txt, symmetries.txt, licence.txt),
        metrics
Params: ingest
Run:    dvc repro ingest

The images are licensed CC BY-NC-SA 4.0: not for commercial use.
"""

import importlib.resources
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import Field

from stages.core.results import report
from stages.core.results.schema.data import IngestMetrics
from stages.core.runner import digest, stage
from stages.core.runner.errors import DataError
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources

# images/ and labels.csv of elpv-dataset 1.0.0.post1, as `digest.md5` sees them.
IMAGES_MD5 = "ad7813882cc55c39850399366e53b687.dir"
LABELS_MD5 = "a1f3116e99fa0754608ad05be2bab78f"
LICENCE = (
    "ELPV (Buerhop-Lutz et al. 2018, Deitsch et al. 2019 and 2021), CC BY-NC-SA 4.0: not for "
    "commercial use"
)
# The last of two classes is the positive one.
STATES = ["functional", "defective"]


class Params(Section):
    """Section `ingest`."""

    classes: Literal["defect", "type_and_defect"]
    defective_above: float = Field(ge=0, lt=1)
    max_cells: int | None = Field(ge=100)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    modules: Path = stage.reads()
    images: Path = stage.writes()
    metrics: Path = stage.writes()


def label_cells(cells: pd.DataFrame, first_cells: list[int], params: Params) -> pd.DataFrame:
    """Metadata of the imagefolder, one row per cell.

    Args:
        cells: columns path, probability (of a defect, 0 to 1), type (mono or poly), in the
            package's order, which is module by module.
        first_cells: index of each module's first cell, ascending from 0.

    Returns:
        Columns file_name, label, group, domain, defect_probability. With `max_cells`, whole
        modules spread evenly over the data, as many as fit.
    """
    module = np.searchsorted(first_cells, np.arange(len(cells)), side="right") - 1
    label = np.where(cells["probability"] > params.defective_above, *reversed(STATES))
    if params.classes == "type_and_defect":
        label = cells["type"] + " " + label
    table = pd.DataFrame(
        {
            "file_name": cells["path"],
            "label": label,
            "group": [f"module_{m:02d}" for m in module],
            "domain": cells["type"],
            "defect_probability": cells["probability"].round(4),
        }
    )
    if params.max_cells is None:
        return table
    modules = round(len(first_cells) * params.max_cells / len(table))
    chosen = np.unique(np.linspace(0, len(first_cells) - 1, max(modules, 1)).round())
    return table[np.isin(module, chosen)]


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Copy the package's images and write their metadata. Raises: DataError."""
    source = Path(str(importlib.resources.files("elpv_dataset"))) / "data"
    for name, expected in (("images", IMAGES_MD5), ("labels.csv", LABELS_MD5)):
        md5 = digest.md5(source / name)
        if md5 != expected:
            raise DataError(
                f"{source / name}: md5 {md5}, expected {expected}; install the elpv-dataset "
                "version of requirements.lock again"
            )
    cells = pd.read_csv(
        source / "labels.csv", sep=r"\s+", header=None, names=["path", "probability", "type"]
    )
    first_cells = pd.read_csv(paths.modules)["start"].tolist()
    table = label_cells(cells, first_cells, params)
    (paths.images / "images").mkdir(parents=True)
    for name in table["file_name"]:
        shutil.copyfile(source / name, paths.images / name)
    table.to_csv(paths.images / "metadata.csv", index=False, lineterminator="\n")
    classes = STATES
    if params.classes == "type_and_defect":
        classes = [f"{kind} {state}" for kind in ("mono", "poly") for state in STATES]
    (paths.images / "classes.txt").write_text("".join(f"{name}\n" for name in classes))
    # A cell is as defective from behind, or upside down.
    (paths.images / "symmetries.txt").write_text("all\n")
    (paths.images / "licence.txt").write_text(f"{LICENCE}\n")
    print(f"{len(table)} cells of {table['group'].nunique()} modules", flush=True)
    report.write_metrics(
        paths.metrics,
        IngestMetrics(
            images=len(table),
            groups=int(table["group"].nunique()),
            classes={str(k): int(v) for k, v in table["label"].value_counts().items()},
            domains={str(k): int(v) for k, v in table["domain"].value_counts().items()},
        ),
    )


if __name__ == "__main__":
    stage.main("ingest", Params, Paths, run)
