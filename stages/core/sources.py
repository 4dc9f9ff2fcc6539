"""Folders of labelled images: which layout one has, what it says of each image, and its bytes.

Three layouts, by the ecosystem's own conventions:
- imagefolder (Hugging Face): `metadata.csv`, `.jsonl` or `.parquet` with file_name, label and any
  other columns, at the top or in split folders;
- class folders (torchvision's ImageFolder): CLASS/IMAGE, or SPLIT/CLASS/IMAGE;
- webdataset: `*.tar` with KEY.png (or another image) and KEY.cls or KEY.json.

A `classes.txt` at the top, one class a line, gives the order of the classes.
"""

import json
import os
import tarfile
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd
import pyarrow as pa

from stages.core.errors import DataError

EXTENSIONS = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CLASSES = "classes.txt"
# Names of split folders and of values in a split column.
SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
COLUMNS = ("file_name", "label", "group", "domain", "split")


class Unreadable(Exception):
    """An image's bytes cannot be had; the text says why."""


@dataclass(frozen=True)
class Source:
    """A folder of labelled images.

    Attributes:
        folder: the folder.
        layout: in words.
        table: one row an image: `COLUMNS` (text, "" where the folder says nothing), then any
            others that the folder has.
        classes: what classes.txt says, if it is there.
        known: which of group, domain and split the folder says something of.
        split_folders: whether the splits are folders.
        others: files that are no listed images, each with the reason.
    """

    folder: Path
    layout: str
    table: pd.DataFrame
    classes: list[str] | None
    known: frozenset[str]
    split_folders: bool
    others: dict[str, str]
    _members: dict[str, tuple[Path, int, int]] = field(default_factory=dict)

    def read(self, name: str) -> bytes:
        """The bytes of an image. Raises: Unreadable."""
        if self._members:
            shard, offset, size = self._members[name]
            with shard.open("rb") as file:
                return os.pread(file.fileno(), size, offset)
        try:
            return locate(self.folder, name).read_bytes()
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None


def locate(folder: Path, name: str) -> Path:
    """The file that metadata calls `name`. Raises: Unreadable, when it is none of the folder's."""
    parts = PurePosixPath(name)
    if not name or "\0" in name or parts.is_absolute() or ".." in parts.parts:
        raise Unreadable("not a path inside the folder")
    path = folder / name
    try:
        if not path.is_file():
            raise Unreadable("no such file")
        inside = path.resolve().is_relative_to(folder.resolve())
    except OSError as error:  # a name that is too long, say
        raise Unreadable(f"no such file ({error.strerror})") from None
    if not inside:
        raise Unreadable("a link that leaves the folder; put the file itself there")
    return path


def open_source(folder: Path) -> Source:
    """Find out what is in a folder. Raises: DataError when it has none of the layouts, or two."""
    top = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    folders = [p for p in top if p.is_dir()]
    split_folders = bool(folders) and all(p.name.lower() in SPLIT_NAMES for p in folders)
    shards = [p for p in top if p.suffix == ".tar"]
    places = [where / name for where in (folder, *folders) for name in METADATA]
    tables = [path for path in places if path.is_file()]
    if shards and (tables or folders):
        other = tables[0] if tables else folders[0]
        raise DataError(
            f"{folder}: found shards ({shards[0].name}) and {other.relative_to(folder)}; expected "
            "one layout: keep the shards alone, or take them out"
        )
    if shards:
        return _webdataset(folder, top, shards)
    if tables:
        return _imagefolder(folder, tables, split_folders)
    if folders:
        return _class_folders(folder, split_folders)
    found = ", ".join(p.name for p in top[:5]) or "nothing"
    raise DataError(
        f"{folder}: found {found}; expected one of: a metadata.csv, .jsonl or .parquet beside the "
        "images (columns file_name and label); a folder a class; or *.tar shards"
    )


def _classes(folder: Path) -> list[str] | None:
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; expected one class a line") from None
    classes = [line.strip() for line in lines if line.strip()]
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(f"{path}: found {classes}; expected at least two classes, each once")
    return classes


def _finish(
    folder: Path, layout: str, rows: pd.DataFrame, others: dict[str, str], **more: Any
) -> Source:
    """Complete the columns and check that there is something, and each name once."""
    if rows.empty:
        raise DataError(f"{folder}: no images; expected one row or file a labelled image")
    optional = ("group", "domain", "split")
    known = frozenset(c for c in optional if c in rows and (rows[c] != "").any())
    for column in COLUMNS:
        if column not in rows:
            rows[column] = ""
    wrong = sorted(set(rows["split"]) - set(SPLIT_NAMES) - {""})
    if wrong:
        raise DataError(
            f"{folder}: split = {wrong[0]!r}; expected train, val or test: correct the column"
        )
    rows["split"] = rows["split"].map(SPLIT_NAMES | {"": ""})
    ordered = [*COLUMNS, *(c for c in rows if c not in COLUMNS)]
    table = rows[ordered].reset_index(drop=True)
    return Source(
        folder, layout, table, classes=_classes(folder), known=known, others=others, **more
    )


def _walk(folder: Path) -> Iterator[str]:
    """Names of all files below a folder, relative to it, hidden ones left out."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if (path.is_file() or path.is_symlink()) and not any(p.startswith(".") for p in name.parts):
            yield name.as_posix()


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _class_folders(folder: Path, split_folders: bool) -> Source:
    rows, others = [], {}
    depth = 1 + split_folders
    for name in _walk(folder):
        parts = PurePosixPath(name).parts
        if name == CLASSES:
            continue
        if not _is_image(name):
            others[name] = "no image by its name"
        elif len(parts) <= depth:
            others[name] = "an image outside the class folders"
        else:
            split = parts[0].lower() if split_folders else ""
            rows.append({"file_name": name, "label": parts[depth - 1], "split": split})
    layout = "class folders" + " in split folders" * split_folders
    return _finish(folder, layout, pd.DataFrame(rows), others, split_folders=split_folders)


def _text(value: Any) -> str:
    """A metadata cell as text."""
    if value is None or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def _read_table(path: Path) -> pd.DataFrame:
    """A metadata file with all cells as text. Raises: DataError."""
    try:
        if path.suffix == ".csv":
            return pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.suffix == ".parquet":
            return pd.read_parquet(path).astype(object).map(_text)
        lines = path.read_text(encoding="utf-8").splitlines()
        return pd.DataFrame(
            [
                {k: _text(v) for k, v in _json_object(path, n, line).items()}
                for n, line in enumerate(lines, 1)
                if line.strip()
            ]
        ).fillna("")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
    kind = path.suffix[1:].upper()
    raise DataError(f"{path}: not readable as {kind} ({reason}); save it again as UTF-8 {kind}")


def _json_object(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{path}: line {number}: not JSON ({error}); expected one object a line"
        ) from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: line {number}: found {type(value).__name__}, expected an object")
    return value


def _imagefolder(folder: Path, paths: list[Path], split_folders: bool) -> Source:
    if len({p.parent for p in paths}) != len(paths) or (folder in {p.parent for p in paths[:-1]}):
        names = ", ".join(str(p.relative_to(folder)) for p in paths)
        raise DataError(f"{folder}: found {names}; expected one metadata file: keep one of them")
    parts = []
    for path in paths:
        table = _read_table(path)
        for column in ("file_name", "label"):
            if column not in table:
                found = ", ".join(map(str, table.columns)) or "none"
                raise DataError(f"{path}: no column {column!r}; found {found}: add the column")
        place = path.parent.relative_to(folder)
        if place.parts:
            inside = table["file_name"].map(lambda n, p=place: (p / n).as_posix() if n else "")
            table = table.assign(file_name=inside)
            if split_folders:
                table["split"] = place.parts[0].lower()
        parts.append(table)
    rows = pd.concat(parts, ignore_index=True).fillna("")
    listed = set(rows["file_name"])
    special = {str(p.relative_to(folder)) for p in paths} | {CLASSES}
    others = {
        name: f"not in {paths[0].name}" if _is_image(name) else "no image by its name"
        for name in _walk(folder)
        if name not in listed | special
    }
    per_split = split_folders and paths[0].parent != folder
    layout = f"imagefolder with {paths[0].name}" + " in split folders" * per_split
    return _finish(folder, layout, rows, others, split_folders=per_split)


def _webdataset(folder: Path, top: list[Path], shards: list[Path]) -> Source:
    rows: list[dict[str, str]] = []
    members: dict[str, tuple[Path, int, int]] = {}
    others = {p.name: "no shard" for p in top if p not in shards and p.name != CLASSES}
    for shard in shards:
        samples: dict[str, dict[str, Any]] = {}
        try:
            with tarfile.open(shard, "r:") as tar:
                for member in tar:
                    if not member.isfile():
                        continue
                    place, _, base = member.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    key = f"{place}/{stem}" if place else stem
                    sample = samples.setdefault(key, {})
                    name = f"{shard.name}/{member.name}"
                    if _is_image("." + extension):
                        if "file_name" in sample:
                            others[name] = f"a second image of key {key}"
                            continue
                        sample["file_name"] = name
                        members[name] = (shard, member.offset_data, member.size)
                    elif extension.lower() == "cls":
                        content = tar.extractfile(member)
                        sample["label"] = content.read().decode().strip() if content else ""
                    elif extension.lower() == "json":
                        content = tar.extractfile(member)
                        about = _json_object(
                            shard / member.name, 1, content.read().decode() if content else ""
                        )
                        sample.update({k: _text(v) for k, v in about.items() if k != "file_name"})
                    else:
                        others[name] = "neither image nor .cls nor .json"
        except (tarfile.TarError, UnicodeDecodeError, EOFError, OSError) as error:
            raise DataError(
                f"{shard}: not readable as a tar ({error}); expected uncompressed WebDataset "
                "shards: write it again"
            ) from None
        for key, sample in samples.items():
            if "file_name" in sample:
                rows.append(sample)
            else:
                others[f"{shard.name}/{key}"] = "a label without an image"
    table = pd.DataFrame(rows).fillna("")
    return _finish(
        folder, "webdataset shards", table, others, split_folders=False, _members=members
    )


def same_names(names: "pd.Series[str]") -> dict[int, str]:
    """Rows whose file name stands twice, or differs from another's in case or Unicode form only.

    Returns: the reason by row, for all but the first of each.
    """
    first: dict[str, str] = {}
    reasons = {}
    for row, name in names.items():
        plain = unicodedata.normalize("NFC", name).casefold()
        if plain not in first:
            first[plain] = name
        elif first[plain] == name:
            reasons[row] = "listed twice"
        else:
            reasons[row] = f"the same name as {first[plain]} but for case or Unicode form"
    return reasons
