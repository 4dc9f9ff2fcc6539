"""Metadata files (CSV, JSON Lines, Parquet) as tables of text."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.runner.errors import DataError


def escaped(text: str) -> str:
    """Text that UTF-8 can hold: what it cannot, names in another encoding say, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_text(value: Any) -> str:
    """A metadata cell as text."""
    if value is None or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else escaped(str(value))


def read_table(path: Path) -> pd.DataFrame:
    """A metadata file with all cells as text. Raises: DataError."""
    try:
        if path.suffix == ".csv":
            table = pd.read_csv(path, dtype=str, keep_default_na=False)
            if not isinstance(table.index, pd.RangeIndex):
                raise DataError(f"{path}: the rows have more cells than the header: name them all")
            return table
        if path.suffix == ".parquet":
            return _read_parquet(path)
        lines = path.read_text(encoding="utf-8-sig").split("\n")
        return pd.DataFrame(
            [
                {escaped(k): as_text(v) for k, v in json_object(path, n, line).items()}
                for n, line in enumerate(lines, 1)
                if line.strip()
            ]
        ).fillna("")
    except (ValueError, OverflowError, OSError, pa.lib.ArrowException) as error:
        reason = " ".join(str(error).split())[:200]
    kind = path.suffix[1:].upper()
    raise DataError(f"{path}: not readable as {kind} ({reason}); save it again as UTF-8 {kind}")


def _read_parquet(path: Path) -> pd.DataFrame:
    # Not by pandas: what it stores beside the columns may be damaged, too, and a missing value
    # would turn the labels 0 and 1 into 0.0 and 1.0.
    with pq.ParquetFile(path) as file:
        found = file.read()
    names = found.column_names
    if doubled := sorted({n for n in names if names.count(n) > 1}):
        raise DataError(f"{path}: found the column {doubled[0]!r} twice; expected each once")
    columns = zip(names, found.columns, strict=True)
    return pd.DataFrame({name: [as_text(v) for v in c.to_pylist()] for name, c in columns})


def json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """A line of a file as a JSON object. Raises: DataError."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: line {number}: not JSON ({error}); expected one object a line"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: line {number}: found {type(value).__name__}, expected an object")
    return value
