"""The logits of models on single images, which the paired figures of studies need."""

import re
from collections.abc import Mapping
from pathlib import Path

import pandas as pd

from stages.core.dataset.data import Dataset, Rows
from stages.core.results.escape import spreadsheet_cell
from stages.core.results.metrics import Logits


def write(path: Path, data: Dataset, rows: Rows, logits: Mapping[str, Logits]) -> None:
    """Write the logits (len(rows), K) of each named model on some images, one line per image.

    Columns: file_name and group (as `spreadsheet_cell` has them), label (its number), and
    MODEL/CLASS for each model and class.
    """
    columns = {
        f"{model}/{name}": values[:, k]
        for model, values in logits.items()
        for k, name in enumerate(data.classes)
    }
    named = {
        "file_name": [spreadsheet_cell(name) for name in data.files[rows]],
        "group": [spreadsheet_cell(name) for name in data.group_names[rows]],
        "label": data.labels[rows],
    }
    table = pd.DataFrame(named | columns)
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def logits(table: pd.DataFrame, model: str) -> Logits:
    """The logits (N, K) of one model in a table that `write` wrote."""
    columns = [name for name in table.columns if name.startswith(f"{model}/")]
    values: Logits = table[columns].to_numpy("float32")
    return values


def of_all_seeds(table: pd.DataFrame, model: str) -> list[Logits]:
    """The logits of MODEL, `MODEL 1`, `MODEL 2` and so on, in the order of the table."""
    models = dict.fromkeys(name.partition("/")[0] for name in table.columns if "/" in name)
    pattern = re.compile(rf"{re.escape(model)}( \d+)?")
    return [logits(table, name) for name in models if pattern.fullmatch(name)]
