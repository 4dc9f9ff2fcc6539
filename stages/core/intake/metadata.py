"""Metadata files (CSV, JSON Lines, Parquet) as tables of text."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stages.core.intake.names import trimmed
from stages.core.runner.errors import DataError

# What people call the columns, in lower case and without marks.
_CALLED = {
    "file_name": {
        "filename", "file", "files", "fname", "filepath", "path", "paths", "image", "images", "img",
        "imagename", "imgname", "imagepath", "imgpath", "imagefile", "imageid", "imgid", "id",
        "name", "picture", "photo", "url",
    },
    "label": {
        "labels", "class", "classes", "classname", "classid", "category", "categories", "target",
        "targets", "tag", "y", "diagnosis", "species", "labelname", "labelid", "annotation",
    },
    "group": {
        "groups", "groupid", "patient", "patientid", "subject", "subjectid", "case", "caseid",
        "person", "personid", "camera", "cameraid", "module", "sequence", "video", "videoid",
        "session", "burst",
    },
    "split": {"splits", "subset", "set", "partition", "fold", "usage"},
    "domain": {"domains", "site", "hospital", "device"},
}  # fmt: skip


def escaped(text: str) -> str:
    """Text that UTF-8 can hold: what it cannot, names in another encoding say, is escaped."""
    return text.encode("utf-8", "backslashreplace").decode()


def as_text(value: Any) -> str:
    """A metadata cell as text."""
    if value is None or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else escaped(str(value))


def read_table(path: Path) -> pd.DataFrame:
    """A metadata file with all cells as text; rows without any are left out. Raises: DataError."""
    try:
        if path.suffix == ".csv":
            table = _read_csv(path)
        elif path.suffix == ".parquet":
            table = _read_parquet(path)
        else:
            lines = path.read_text(encoding="utf-8-sig").split("\n")
            table = pd.DataFrame(
                [
                    {escaped(k): as_text(v) for k, v in json_object(path, n, line).items()}
                    for n, line in enumerate(lines, 1)
                    if line.strip()
                ]
            ).fillna("")
    except (ValueError, OverflowError, OSError, pa.lib.ArrowException) as error:
        kind = path.suffix[1:].upper()
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"{path}: not readable as {kind} ({reason}); save it again as UTF-8 {kind}"
        ) from None
    return table[(table != "").any(axis=1)].reset_index(drop=True) if len(table) else table


def _refuse_doubled(place: str, kind: str, names: list[str]) -> None:
    """Raises: DataError for a name that stands twice; cells without a name do not count."""
    if doubled := sorted({name for name in names if name and names.count(name) > 1}):
        raise DataError(
            f"{place}: found the {kind} {doubled[0]!r} twice; expected each once: take one out"
        )


def _read_csv(path: Path) -> pd.DataFrame:
    """Raises: DataError for what spreadsheets save as CSV and is none; ValueError; OSError."""
    with path.open("rb") as file:
        head = file.readline(65536)
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(
            f"{path}: not readable as CSV (it is UTF-16); save it again as UTF-8 CSV "
            '("CSV UTF-8 (comma delimited)" in Excel)'
        )
    for mark, words in ((b";", "semicolons"), (b"\t", "tabs"), (b"|", "vertical bars")):
        if b"," not in head and b"\0" not in head and mark in head:
            raise DataError(
                f"{path}: its cells are separated by {words}; expected commas: save it again as "
                "CSV with commas, or replace them"
            )
    # pandas calls a second column of one name by another.
    first = pd.read_csv(path, header=None, nrows=1, dtype=str, keep_default_na=False)
    _refuse_doubled(f"{path}", "column", [trimmed(str(name)) for name in first.iloc[0]])
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    if not isinstance(table.index, pd.RangeIndex):
        raise DataError(f"{path}: the rows have more cells than the header: name them all")
    return table


def check_columns(path: Path, table: pd.DataFrame) -> list[str]:
    """Hints for columns that may be meant for what the project knows; blanks of names are trimmed.

    Raises: DataError that says what to rename.
    """
    table.columns = pd.Index([trimmed(name) for name in table.columns])
    _refuse_doubled(f"{path}", "column", table.columns.tolist())
    hints = []
    for column, called in _CALLED.items():
        if column in table:
            continue
        bare = {name: "".join(c for c in name.lower() if c.isalnum()) for name in table.columns}
        like = [name for name, core in bare.items() if core in {*called, column.replace("_", "")}]
        columns = ", ".join(table.columns) or "none"
        if column in ("file_name", "label"):
            advice = f"rename {like[0]} to {column}" if like else "add the column"
            raise DataError(f"{path}: no column {column!r}; found {columns}: {advice}")
        if any(name.lower() == column for name in like):
            raise DataError(f"{path}: found the column {like[0]!r}; expected {column!r}: rename it")
        if like:
            hints.append(f"no column {column} is given; if {like[0]} is meant, rename it {column}")
    return hints


def _read_parquet(path: Path) -> pd.DataFrame:
    # Not by pandas: what it stores beside the columns may be damaged, too, and a missing value
    # would turn the labels 0 and 1 into 0.0 and 1.0.
    with pq.ParquetFile(path) as file:
        content = file.read()
    names = content.column_names
    _refuse_doubled(f"{path}", "column", names)
    columns = zip(names, content.columns, strict=True)
    return pd.DataFrame({name: [as_text(v) for v in c.to_pylist()] for name, c in columns})


def json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    """A line of a file as a JSON object. Raises: DataError, for a key that stands twice, too."""

    def each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        _refuse_doubled(f"{path}: line {number}", "key", [escaped(key) for key, _ in pairs])
        return dict(pairs)

    try:
        value = json.loads(line, object_pairs_hook=each_once)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: line {number}: not JSON ({error}); expected one object per line"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: line {number}: found {type(value).__name__}, expected an object")
    return value
