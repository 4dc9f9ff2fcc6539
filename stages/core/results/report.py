"""The metrics of a stage as JSON."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from stages.core.results.schema.base import Metrics
from stages.core.runner.errors import DataError

M = TypeVar("M", bound=Metrics)


def _rounded(value: Any) -> Any:
    if isinstance(value, Metrics):
        value = value.model_dump(by_alias=True, exclude_unset=True)
    if isinstance(value, Mapping):
        return {str(k): _rounded(v) for k, v in value.items()}
    if isinstance(value, float):
        # Seven digits: what float32 arithmetic can mean.
        return float(f"{value:.7g}")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    raise TypeError(f"metrics hold numbers, text and dicts, not {type(value).__name__}")


def write_metrics(path: Path, metrics: Metrics) -> None:
    """Write a stage's metrics; floats keep seven digits. DVC does not show lists: no lists.

    Raises: ValueError for NaN.
    """
    path.write_text(json.dumps(_rounded(metrics), indent=1, allow_nan=False) + "\n")


def read_metrics(path: Path, kind: type[M]) -> M:
    """The metrics that a stage wrote. Raises: DataError where they are other code's."""
    try:
        return kind.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3]
        )
        raise DataError(f"{path}: {problems}; run its stage again") from None
