"""What stages leave for people: metrics as JSON, curves as CSV, figures as PNG."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Metrics = Mapping[str, Any]


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, float):
        # Seven digits: what float32 arithmetic can mean.
        return float(f"{value:.7g}")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"metrics hold numbers, text and dicts, not {type(value).__name__}")


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write nested metrics; floats keep seven digits. DVC does not show lists: no lists."""
    path.write_text(json.dumps(_rounded(metrics), indent=1, allow_nan=False) + "\n")


def read_metrics(path: Path) -> dict[str, Any]:
    """What `write_metrics` wrote."""
    content: dict[str, Any] = json.loads(path.read_text())
    return content
