"""What models say of single images, as stages leave it for studies: paired figures need it."""

from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stages.core.data import Dataset, Split
from stages.core.metrics import Logits


def write(path: Path, data: Dataset, split: Split, logits: Mapping[str, Logits]) -> None:
    """Write the logits (N, K) of each named model on a split's images, one row an image.

    Columns: file_name, group, label (both as numbers), and MODEL/CLASS for each model and class.
    """
    rows = data.rows(split)
    columns = {
        f"{model}/{name}": found[:, k]
        for model, found in logits.items()
        for k, name in enumerate(data.classes)
    }
    named = {"file_name": data.files[rows], "group": data.groups[rows], "label": data.labels[rows]}
    table = pd.DataFrame(named | columns)
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def logits(table: pd.DataFrame, model: str) -> Logits:
    """The logits (N, K) of one model in a table that `write` wrote."""
    found: Logits = table.filter(regex=f"^{model}/").to_numpy("float32")
    return found
