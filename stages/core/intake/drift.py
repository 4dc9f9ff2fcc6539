"""Has the data changed? Its profile against that of the data that was last accepted.

Serves the validate stage, and scoring later.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stages.core.runner.errors import DataError

# Of the manifest. Equal shares of the accepted data lie in each bin.
NUMBERS = ("width", "height", "mean", "contrast", "sharpness")
BINS = 10
# A share of 0 has no logarithm.
SMALLEST = 1e-4

Profile = dict[str, Any]


def profile(manifest: pd.DataFrame) -> Profile:
    """Shares of the classes, and bins of every number with the share in each; JSON can hold it.

    Args:
        manifest: columns label, blank where there is none, and `NUMBERS`.
    """
    shares = _class_shares(manifest).sort_index()
    summary: Profile = {"images": len(manifest), "label": {k: float(v) for k, v in shares.items()}}
    for column in NUMBERS:
        values = manifest[column].to_numpy(float)
        cuts = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
        cuts, times = np.unique(cuts, return_counts=True)
        # A value that many images share has a bin to itself, or else larger ones would join it.
        edges = np.union1d(cuts, np.nextafter(cuts[times > 1], np.inf))
        summary[column] = {"edges": edges.tolist(), "shares": _shares(values, edges).tolist()}
    return summary


def _class_shares(manifest: pd.DataFrame) -> pd.Series:
    labels = manifest["label"]
    return labels[labels != ""].value_counts(normalize=True)


def _shares(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    counts = np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1)
    return counts / len(values)


def stability_index(expected: np.ndarray, observed: np.ndarray) -> float:
    """Population stability index of two rows of shares: sum of (o - e) ln(o / e); 0 if equal.

    Source: Siddiqi 2006, Credit Risk Scorecards: below 0.1 little, above 0.25 much has changed.
    """
    e, o = (np.maximum(shares, SMALLEST) for shares in (expected, observed))
    return float(((o - e) * np.log(o / e)).sum())


def load_accepted(path: Path) -> dict[str, Any]:
    """What `data/accepted.json` holds: the accepted data's profile as `data`, if there is one.

    Raises: DataError.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        data = content.get("data")
        whole = data is None or {"label", *NUMBERS} <= set(data)
    except (ValueError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(
            f"{path}: found no profile of accepted data; expected what a run has written, or {{}}: "
            "accept the data again"
        )
    return dict(content)


def compare(manifest: pd.DataFrame, accepted: Profile) -> dict[str, float]:
    """Stability index of the classes and of every number, by column."""
    shares = _class_shares(manifest)
    classes = sorted({*accepted["label"], *shares.index})
    indices = {
        "label": stability_index(
            np.array([accepted["label"].get(c, 0.0) for c in classes]),
            np.array([shares.get(c, 0.0) for c in classes]),
        )
    }
    for column in NUMBERS:
        then = accepted[column]
        now = _shares(manifest[column].to_numpy(float), np.array(then["edges"]))
        indices[column] = stability_index(np.array(then["shares"]), now)
    return indices


def check(
    manifest: pd.DataFrame, accepted: dict[str, Any], *, warn: float, fail: float
) -> dict[str, float]:
    """Stability index of every column against the accepted data; empty where there is none.

    Raises: DataError above `fail`.
    """
    if "data" not in accepted:
        return {}
    indices = compare(manifest, accepted["data"])
    for column, index in indices.items():
        if index > warn:
            print(f"warning: {column} has drifted: stability index {index:.3f}", flush=True)
    worst = max(indices, key=indices.__getitem__)
    if indices[worst] > fail:
        raise DataError(
            f"{worst} has drifted from the accepted data: stability index {indices[worst]:.3f}; "
            f"expected at most {fail:g}: look at the new images, then accept them or "
            "raise validate.drift_fail"
        )
    return indices
