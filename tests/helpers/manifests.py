"""Manifests of images that are not there, and how they are split."""

from typing import Any

import numpy as np
import pandas as pd

from stages.core.intake.drift import NUMBERS
from stages.core.intake.splits import Method, assign


def built(groups: int = 60, most: int = 12, seed: int = 0) -> pd.DataFrame:
    """Groups of different sizes, two labels, two domains."""
    draws = np.random.default_rng(seed)
    rows = [
        (f"{g}_{i}.png", "ab"[int(draws.random() < 0.3)], ["mono", "poly"][g % 2], f"g{g}", "")
        for g in range(groups)
        for i in range(draws.integers(1, most + 1))
    ]
    table = pd.DataFrame(rows, columns=["file_name", "label", "domain", "group", "split"])
    numbers = {name: draws.integers(0, 9, len(table)) for name in NUMBERS}
    return table.assign(**numbers)


def split(manifest: pd.DataFrame, method: Method, **changes: Any) -> "pd.Series[str]":
    places: dict[str, Any] = {"folds": 4, "fold": 0, "val_folds": 5, "val_split": "representative"}
    places |= {"target_domain": None, "seed": 0} | changes
    return assign(manifest, method, **places)
