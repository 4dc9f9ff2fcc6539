"""Folders of labelled images: which layout one has, what it says of each image, and its bytes.

Three layouts, by the ecosystem's own conventions:
- imagefolder (Hugging Face): `metadata.csv`, `.jsonl` or `.parquet` with file_name, label and any
  other columns, at the top or in split folders;
- class folders (torchvision's ImageFolder): CLASS/IMAGE, or SPLIT/CLASS/IMAGE;
- webdataset: `*.tar` with KEY.png (or another image) and KEY.cls or KEY.json.

A `classes.txt` at the top, one class a line, gives the order of the classes.
"""

import os
import tarfile
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from stages.core.intake.metadata import as_text, escaped, json_object, read_table
from stages.core.runner.errors import DataError

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
class Stamp:
    """What the file system knows of an image's bytes.

    Attributes:
        size: in bytes.
        identity: differs when the bytes have been written anew: device, inode, place, times of
            writing and of change (which nobody can set).
        changed: the time of change, in seconds since 1970.
    """

    size: int
    identity: str
    changed: float


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
    _inside: dict[Path, bool] = field(default_factory=dict)

    def _place(self, name: str) -> tuple[Path, int, int | None]:
        """File, offset, and size where it is not all that follows."""
        return self._members.get(name) or (locate(self.folder, name, self._inside), 0, None)

    def stamp(self, name: str) -> Stamp:
        """Whether an image's bytes are still the same, without reading them. Raises: Unreadable."""
        path, offset, size = self._place(name)
        try:
            found = path.stat()
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None
        size = found.st_size if size is None else size
        times = (found.st_mtime_ns, found.st_ctime_ns)
        identity = (found.st_dev, found.st_ino, found.st_size, offset, size, *times)
        return Stamp(size, " ".join(map(str, identity)), found.st_ctime)

    def read(self, name: str) -> bytes:
        """The bytes of an image. Raises: Unreadable."""
        path, offset, size = self._place(name)
        try:
            with path.open("rb", buffering=0) as file:
                return file.read() if size is None else os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None


def locate(folder: Path, name: str, inside: dict[Path, bool]) -> Path:
    """The file that metadata calls `name`. Raises: Unreadable, when it is none of the folder's.

    `inside` keeps, from call to call, which folders lie within `folder` once links are followed.
    """
    outside = name.startswith("/") or ".." in name.split("/")
    if outside or not name or "\0" in name or "\r" in name:
        raise Unreadable("not a path inside the folder; name it relative to the folder")
    path = folder / name
    try:
        if not path.is_file():
            advice = "put it there, or take its row out"
            if "\\udc" in name:
                advice = "its name is not UTF-8: rename it"
            raise Unreadable(f"no such file; {advice}")
        where = path if path.is_symlink() else path.parent
        if where not in inside:
            inside[where] = where.resolve().is_relative_to(folder.resolve())
    except OSError as error:  # a name that is too long, say
        raise Unreadable(f"no such file ({error.strerror})") from None
    if not inside[where]:
        raise Unreadable("a link that leaves the folder; put the file itself there")
    return path


def open_source(folder: Path) -> Source:
    """Find out what is in a folder. Raises: DataError when it has none of the layouts, or two."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: found no folder; expected one with labelled images: set data.dir"
        )
    try:
        top = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise _locked(error) from None
    folders = [p for p in top if p.is_dir()]
    splits = [p.name for p in folders if p.name.lower() in SPLIT_NAMES]
    split_folders = bool(folders) and len(splits) == len(folders)
    if len(splits) > 1 and not split_folders:
        more = next(p.name for p in folders if p.name not in splits)
        raise DataError(
            f"{folder}: found the folders {', '.join(splits)} and {more}; expected folders of "
            f"splits alone, or none: take {more} out, or rename the others"
        )
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
        lines = path.read_text(encoding="utf-8-sig").split("\n")
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
    for column in rows.columns.drop("file_name"):
        # A carriage return alone would end the row in a CSV.
        rows[column] = rows[column].str.replace("\r", "\n")
    ordered = [*COLUMNS, *(c for c in rows if c not in COLUMNS)]
    table = rows[ordered].reset_index(drop=True)
    return Source(
        folder, layout, table, classes=_classes(folder), known=known, others=others, **more
    )


def _locked(error: OSError) -> DataError:
    return DataError(f"{error.filename}: cannot be read ({error.strerror}); give access to it")


def _walk(folder: Path) -> list[str]:
    """Names of all files below a folder, relative to it, hidden ones left out, as `escaped`.

    Raises: DataError when a folder cannot be read.
    """

    def stop(error: OSError) -> None:
        raise _locked(error)

    found = []
    for place, below, files in os.walk(folder, onerror=stop):
        below[:] = [name for name in below if not name.startswith(".")]
        links = [name for name in below if Path(place, name).is_symlink()]
        inside = "" if place == str(folder) else f"{os.path.relpath(place, folder)}/"
        found += [inside + name for name in (*files, *links) if not name.startswith(".")]
    return [escaped(name) for name in sorted(found, key=lambda name: name.split("/"))]


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


def _imagefolder(folder: Path, paths: list[Path], split_folders: bool) -> Source:
    if len({p.parent for p in paths}) != len(paths) or (folder in {p.parent for p in paths[:-1]}):
        names = ", ".join(str(p.relative_to(folder)) for p in paths)
        raise DataError(f"{folder}: found {names}; expected one metadata file: keep one of them")
    parts = []
    for path in paths:
        table = read_table(path)
        for column in ("file_name", "label"):
            if column not in table:
                found = ", ".join(map(str, table.columns)) or "none"
                raise DataError(f"{path}: no column {column!r}; found {found}: add the column")
        place = PurePosixPath(path.parent.relative_to(folder))
        inside = table["file_name"].map(lambda n, p=place: (p / n).as_posix() if n else "")
        parts.append(table.assign(file_name=inside))
    rows = pd.concat(parts, ignore_index=True).fillna("")
    if split_folders:
        first = rows["file_name"].str.partition("/")[0].str.lower()
        rows["split"] = first.where(first.isin(list(SPLIT_NAMES)), "")
    expected = {*rows["file_name"], *(str(p.relative_to(folder)) for p in paths), CLASSES}
    others = {
        name: f"not in {paths[0].name}" if _is_image(name) else "no image by its name"
        for name in _walk(folder)
        if name not in expected
    }
    layout = f"imagefolder with {paths[0].name}" + " in split folders" * split_folders
    return _finish(folder, layout, rows, others, split_folders=split_folders)


def _webdataset(folder: Path, top: list[Path], shards: list[Path]) -> Source:
    rows: list[dict[str, str]] = []
    members: dict[str, tuple[Path, int, int]] = {}
    others = {p.name: "no shard" for p in top if p not in shards and p.name != CLASSES}
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                samples = _samples(shard, tar, members, others)
                end = tar.offset
            with shard.open("rb") as file:
                # Where tarfile stops: it takes a damaged header, too, for the end.
                if os.pread(file.fileno(), tarfile.BLOCKSIZE, end) != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError(f"damaged or cut off at byte {end}")
        except (tarfile.TarError, ValueError, EOFError, OSError) as error:
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


def _samples(
    shard: Path,
    tar: tarfile.TarFile,
    members: dict[str, tuple[Path, int, int]],
    others: dict[str, str],
) -> dict[str, dict[str, str]]:
    """What a shard says of each key; places of its images go to `members`, the rest to `others`."""
    samples: dict[str, dict[str, str]] = {}
    for member in tar:
        if member.isdir():
            continue
        name = escaped(f"{shard.name}/{member.name}")
        place, _, base = escaped(member.name).rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{place}/{stem}" if place else stem
        if not member.isfile() or member.issparse():
            others[name] = "a link, or no plain file; put the file itself there"
        elif _is_image("." + extension):
            sample = samples.setdefault(key, {})
            if "file_name" in sample:
                others[name] = f"a second image of key {key}"
            else:
                sample["file_name"] = name
                members[name] = (shard, member.offset_data, member.size)
        elif extension.lower() in ("cls", "json"):
            content = tar.extractfile(member)
            try:
                text = content.read().decode() if content else ""
            except UnicodeDecodeError:
                raise DataError(
                    f"{shard}: {member.name}: not UTF-8 text; expected a label or JSON"
                ) from None
            if extension.lower() == "cls":
                about: dict[str, Any] = {"label": text.strip()}
            else:
                about = json_object(shard / member.name, 1, text)
            said = {escaped(k): as_text(v) for k, v in about.items() if k != "file_name"}
            samples.setdefault(key, {}).update(said)
        else:
            others[name] = "neither image nor .cls nor .json"
    return samples


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
            reasons[row] = "listed twice; keep one row"
        else:
            like = first[plain]
            reasons[row] = f"the same name as {like} but for case or Unicode form; rename it"
    return reasons
