"""Folders of labelled images: which layout one has, what it says of each image, and its bytes.

Three layouts, by the ecosystem's own conventions:
- imagefolder (Hugging Face): `metadata.csv`, `.jsonl` or `.parquet` with file_name, label and any
  other columns, at the top or in split folders;
- class folders (torchvision's ImageFolder): CLASS/IMAGE, or SPLIT/CLASS/IMAGE;
- webdataset: `*.tar` with KEY.png (or another image) and KEY.cls or KEY.json; KEY ends at the first
  dot of the file's name.

A `classes.txt` at the top, one class per line, gives the order of the classes.
"""

import os
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from stages.core.dataset.data import Split
from stages.core.intake import layouts
from stages.core.intake.kinds import HEAD_BYTES, in_leftover, is_image_content, is_image_name
from stages.core.intake.layouts import Tree, listed
from stages.core.intake.listing import Listing, list_folder
from stages.core.intake.metadata import as_text, check_columns, escaped, json_object, read_table
from stages.core.intake.names import plain, split_names, trimmed, twins
from stages.core.runner.errors import DataError

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
CLASSES = "classes.txt"
COLUMNS = ("file_name", "label", "group", "domain", "split")
ARCHIVES = (".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".rar", ".7z", ".gz")


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
        table: one row per image: `COLUMNS` (text, "" where the folder says nothing), then any
            others that the folder has.
        classes: what classes.txt says, if it is there.
        known: which of group, domain and split the folder says something of.
        split_folders: whether the splits are folders.
        others: files that are no listed images, each with the reason.
        problems: images that cannot be used for what the folder says of them, each with the reason.
        notes: what was done to the names, in words, for the user.
    """

    folder: Path
    layout: str
    table: pd.DataFrame
    classes: list[str] | None
    known: frozenset[str]
    split_folders: bool
    others: dict[str, str]
    problems: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    _members: dict[str, tuple[Path, int, int]] = field(default_factory=dict)
    _inside: dict[Path, bool] = field(default_factory=dict)

    def _place(self, name: str) -> tuple[Path, int, int | None]:
        """File, offset, and size where it is not all that follows. Raises: Unreadable."""
        if name in self.problems:
            raise Unreadable(self.problems[name])
        return self._members.get(name) or (locate(self.folder, name, self._inside), 0, None)

    def stamp(self, name: str) -> Stamp:
        """Whether an image's bytes are still the same, without reading them. Raises: Unreadable."""
        path, offset, size = self._place(name)
        try:
            status = path.stat()
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None
        size = status.st_size if size is None else size
        times = (status.st_mtime_ns, status.st_ctime_ns)
        identity = (status.st_dev, status.st_ino, status.st_size, offset, size, *times)
        return Stamp(size, " ".join(map(str, identity)), status.st_ctime)

    def read(self, name: str) -> bytes:
        """The bytes of an image. Raises: Unreadable."""
        path, offset, size = self._place(name)
        try:
            with path.open("rb", buffering=0) as file:
                return file.read() if size is None else os.pread(file.fileno(), size, offset)
        except OSError as error:
            raise Unreadable(f"cannot be read ({error.strerror})") from None


@cache
def _dvc_caches(folder: Path) -> tuple[Path, ...]:
    """The caches of the DVC projects that `folder` and the working directory belong to."""
    # Not at the top: DVC takes a second to import, and only links that leave the folder need it.
    from dvc.exceptions import NotDvcRepoError
    from dvc.repo import Repo

    caches = []
    for place in (folder, Path.cwd()):
        try:
            with Repo(Repo.find_root(str(place))) as repo:
                caches.append(Path(repo.cache.legacy.path).resolve())
        except NotDvcRepoError:
            continue
    return tuple(caches)


def _belongs(where: Path, folder: Path) -> bool:
    """Whether a file or folder, once links are followed, lies in `folder` or in DVC's cache."""
    target = where.resolve()
    if target.is_relative_to(folder.resolve()):
        return True
    # With cache.type symlink, as DVC advises for large data, every file is such a link.
    return where.is_symlink() and any(target.is_relative_to(c) for c in _dvc_caches(folder))


def locate(folder: Path, name: str, inside: dict[Path, bool]) -> Path:
    """The file that metadata calls `name`. Raises: Unreadable, when it is none of the folder's.

    `inside` keeps, from call to call, which folders lie within `folder` once links are followed.
    """
    outside = name.startswith("/") or ".." in name.split("/") or re.match(r"[A-Za-z]:[\\/]", name)
    if outside or not name or "\0" in name or "\r" in name:
        raise Unreadable("not a path inside the folder; name it relative to the folder")
    path = folder / name
    try:
        if not path.is_file():
            raise Unreadable("no such file; put it there, or take its row out")
        where = path if path.is_symlink() else path.parent
        if where not in inside:
            inside[where] = _belongs(where, folder)
    except OSError as error:  # a name that is too long, say
        raise Unreadable(f"no such file ({error.strerror})") from None
    if not inside[where]:
        raise Unreadable("a link that leaves the folder; put the file itself there")
    return path


def open_source(folder: Path) -> Source:
    """Tell which layout a folder has. Raises: DataError when it has none of them, or two."""
    if not folder.is_dir():
        raise DataError(
            f"{folder}: found no folder; expected one with labelled images: set data.dir"
        )
    listing = list_folder(folder)
    shards = [folder / name for name in listing.top_files if name.lower().endswith(".tar")]
    tables = [
        name for name in listing.files if name.count("/") < 2 and name.split("/")[-1] in METADATA
    ]
    tables.sort(key=lambda name: ("/" in name, name))
    _refuse_other_tables(folder, listing, tables)
    if shards and (tables or listing.top_folders):
        other = tables[0] if tables else listing.top_folders[0]
        raise DataError(
            f"{folder}: found shards ({shards[0].name}) and {other}; expected one layout: keep the "
            "shards alone, or take them out"
        )
    if shards:
        return _webdataset(folder, listing, shards)
    if tables:
        return _imagefolder(folder, listing, tables)
    if listing.top_folders or listing.linked:
        return _class_folders(folder, listing)
    top = listed(listing.top_files) or "nothing"
    advice = layouts.without_folders(folder, listing)
    if any(name.lower().endswith(ARCHIVES) for name in listing.top_files):
        advice = "; archives are not opened: unpack them"
    raise DataError(
        f"{folder}: found {top}; expected one of: a metadata.csv, .jsonl or .parquet beside the "
        f"images (columns file_name and label); a folder per class; or *.tar shards{advice}"
    )


def _refuse_other_tables(folder: Path, listing: Listing, tables: list[str]) -> None:
    """Raises: DataError for metadata that would be overlooked."""
    for name in listing.top_files:
        stem, _, ending = name.lower().partition(".")
        if stem == "metadata" and name not in tables and not tables:
            right = f"metadata.{ending}" if f"metadata.{ending}" in METADATA else "metadata.csv"
            verb = "call it" if right == f"metadata.{ending}" else "save it as"
            raise DataError(
                f"{folder}: found {name}; expected {', '.join(METADATA)}: {verb} {right}"
            )
    lists = [n for n in listing.top_files if n.endswith((".txt", ".lst")) and n != CLASSES]
    splits = split_names([n.rpartition(".")[0] for n in lists])
    if not tables and len(set(splits.values())) > 1:
        raise DataError(
            f"{folder}: found {listed(lists)}; lists of splits are not read: write a metadata.csv "
            "with the columns file_name, label and split (and set validate.split to column), or "
            "take the lists out"
        )


def _classes(folder: Path) -> list[str] | None:
    path = folder / CLASSES
    if not path.is_file():
        return None
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; expected one class per line") from None
    classes = [line for line in map(trimmed, lines) if line]
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise DataError(f"{path}: found {classes}; expected at least two classes, each once")
    return classes


def _finish(
    folder: Path,
    layout: str,
    rows: pd.DataFrame,
    others: dict[str, str],
    *,
    notes: Iterable[str] = (),
    **more: Any,
) -> Source:
    """Complete the columns, and check that each thing is spelt in one way."""
    if rows.empty:
        raise DataError(f"{folder}: no images; expected one row or file per labelled image")
    notes = list(notes)
    optional = ("group", "domain", "split")
    for column in COLUMNS:
        if column not in rows:
            rows[column] = ""
    for column in COLUMNS[1:]:
        cells = rows[column].map(trimmed)
        if count := int((cells != rows[column]).sum()):
            notes.append(f"blanks around {column}: trimmed in {count} of {len(rows)} rows")
        rows[column] = cells
        pairs = twins(cells, numbers=column == "label")
        if pairs and column != "split":
            one, other = pairs[0]
            raise DataError(
                f"{folder}: {column} = {one!r} and {other!r} differ only in blanks, case or "
                f"spelling; expected one spelling: correct one of them, or make them differ"
            )
    known = frozenset(c for c in optional if (rows[c] != "").any())
    splits: dict[str, Split] = split_names(rows["split"].unique())
    wrong = sorted(set(rows["split"]) - set(splits) - {""})
    if wrong:
        raise DataError(
            f"{folder}: split = {wrong[0]!r}; expected train, val or test: correct the column"
        )
    renamed = {name: split for name, split in splits.items() if name.lower() != split}
    if renamed:
        meanings = ", ".join(f"{name} = {split}" for name, split in sorted(splits.items()))
        notes.append(f"names of splits: {meanings}")
    rows["split"] = rows["split"].map(splits | {"": ""})
    for column in rows.columns.drop("file_name"):
        # A carriage return alone would end the row in a CSV.
        rows[column] = rows[column].str.replace("\r", "\n")
    ordered = [*COLUMNS, *(c for c in rows if c not in COLUMNS)]
    table = rows[ordered].reset_index(drop=True)
    return Source(
        folder,
        layout,
        table,
        classes=_classes(folder),
        known=known,
        others=others,
        notes=tuple(notes),
        **more,
    )


def _is_image(folder: Path, name: str) -> bool:
    """Whether a file is an image, by its name or else by its content."""
    if is_image_name(name):
        return True
    with (folder / name).open("rb", buffering=0) as file:
        return is_image_content(file.read(HEAD_BYTES))


def _leftovers(listing: Listing) -> list[str]:
    names = listing.leftovers
    return [f"left out, as what systems and programs leave: {listed(names)}"] if names else []


def _class_folders(folder: Path, listing: Listing) -> Source:
    if listing.linked:
        name, target = next(iter(sorted(listing.linked.items())))
        raise DataError(
            f"{folder}: {name} is a link to the folder {target}, and DVC follows no links to "
            "folders: its images would be missing from every version; copy the folder itself "
            "there, in place of the link"
        )
    files = [name for name in listing.files if name != CLASSES]
    tree = Tree([name for name in files if _is_image(folder, name)])
    splits = layouts.find_splits(folder, listing, tree)
    layouts.refuse_wrapper(folder, listing, tree)
    depth = 1 + bool(splits)
    classes = [name for name in listing.folders if name.count("/") == depth - 1]
    layouts.refuse_empty_classes(folder, classes, listing, tree)
    rows, problems = [], {}
    for name in tree.images:
        parts = PurePosixPath(name).parts
        label = parts[depth - 1] if len(parts) > depth else ""
        if not label:
            problems[name] = "it lies in no class folder; move it into one, or take it out"
        rows.append({"file_name": name, "label": label, "split": parts[0] if splits else ""})
    _refuse_trimmed_twins(folder, rows)
    images = set(tree.images)
    others = {name: "no image by name or content" for name in files if name not in images}
    deeper = {name: tree.folders(name) for name in classes if tree.folders(name)}
    notes = _leftovers(listing) + [
        f"images in folders of the class {name} count for it: {listed(inner)}"
        for name, inner in list(deeper.items())[:5]
    ]
    layout = "class folders" + " in split folders" * bool(splits)
    return _finish(
        folder,
        layout,
        pd.DataFrame(rows),
        others,
        split_folders=bool(splits),
        problems=problems,
        notes=notes,
    )


def _refuse_trimmed_twins(folder: Path, rows: list[dict[str, str]]) -> None:
    """Raises: DataError for folders that would become one class by trimming their names."""
    labels = {row["label"] for row in rows}
    for label in sorted(labels):
        if trimmed(label) != label and trimmed(label) in labels:
            raise DataError(
                f"{folder}: the folders {trimmed(label)!r} and {label!r} differ only in blanks; "
                "expected one folder per class: put them together"
            )


def _imagefolder(folder: Path, listing: Listing, paths: list[str]) -> Source:
    places = [path.rpartition("/")[0] for path in paths]
    if len(set(places)) != len(paths) or ("" in places and len(paths) > 1):
        raise DataError(
            f"{folder}: found {', '.join(paths)}; expected one metadata file: keep one of them"
        )
    with_images = {n.split("/")[0] for n in listing.files if "/" in n and is_image_name(n)}
    if "" not in places and (without := sorted(with_images - set(places))):
        raise DataError(
            f"{folder}: found {paths[0]}, but no metadata in {listed(without)}; expected one in "
            "each folder with images, or one at the top for all: add it, or take the folder out"
        )
    parts, notes = [], _leftovers(listing)
    for path, place in zip(paths, places, strict=True):
        table = read_table(folder / path)
        notes += check_columns(folder / path, table)
        where = PurePosixPath(place)
        names, note = _matched(table["file_name"].tolist(), place, set(listing.files))
        notes += [f"{path}: {words}" for words in note]
        inside = [(where / name).as_posix() if name else "" for name in names]
        parts.append(table.assign(file_name=inside))
    rows = pd.concat(parts, ignore_index=True).fillna("")
    splits = _imagefolder_splits(folder, listing, rows)
    files = set(listing.files)
    expected = {*rows["file_name"], *paths, CLASSES}
    others = {
        name: f"not in {paths[0].split('/')[-1]}"
        if _is_image(folder, name)
        else "no image by name or content"
        for name in listing.files
        if name not in expected
    }
    if unlisted := sum(reason.startswith("not in") for reason in others.values()):
        notes.append(f"images that {paths[0].split('/')[-1]} does not name, not used: {unlisted}")
    others |= {name: f"a link to the folder {to}" for name, to in listing.linked.items()}
    layout = f"imagefolder with {paths[0].split('/')[-1]}" + " in split folders" * bool(splits)
    return _finish(
        folder,
        layout,
        rows,
        others,
        split_folders=bool(splits),
        problems=_near_misses(folder, rows["file_name"], files),
        notes=notes,
    )


def _imagefolder_splits(folder: Path, listing: Listing, rows: pd.DataFrame) -> dict[str, Split]:
    """The split folders, if all folders are; `rows` get their splits."""
    top = listing.top_folders
    splits = split_names(top)
    if len(splits) > 1 and len(splits) < len(top):
        other = next(name for name in top if name not in splits)
        raise DataError(
            f"{folder}: found the folders {listed([*splits])} and {other}; expected folders of "
            f"splits alone, or none: take {other} out, or rename the others"
        )
    if not splits or len(splits) < len(top):
        return {}
    first = rows["file_name"].str.partition("/")[0]
    places = first.where(first.isin(list(splits)), "")
    if "split" in rows:
        given = rows["split"].map(trimmed)
        meanings = split_names(given.unique())
        meant = given.map(lambda name: meanings.get(name, ""))
        differ = (meant != "") & (meant != places.map(lambda name: splits.get(name, "")))
        if differ.any():
            row = rows[differ].iloc[0]
            raise DataError(
                f"{folder}: {row['file_name']} has split = {row['split']!r} and lies in another "
                "split's folder; expected one of them: correct the column, or take it out"
            )
    rows["split"] = places
    return splits


def _matched(names: list[str], place: str, files: set[str]) -> tuple[list[str], list[str]]:
    """Names as the files have them, where only blanks, slashes or Unicode forms differ; and notes.

    Args:
        names: as the metadata in the folder `place` has them.
        files: of the whole folder.
    """
    above = f"{place}/" if place else ""
    inside = {name.removeprefix(above) for name in files if name.startswith(above)}
    by_form: dict[str, set[str]] = defaultdict(set)
    for name in inside:
        by_form[plain(name)].add(name)
    counts = dict.fromkeys(("blanks around them", "\\ for /", "another Unicode form"), 0)

    def match(name: str) -> str:
        if name in inside or PurePosixPath(name).as_posix() in inside:
            return name
        bare = trimmed(name)
        path = PurePosixPath(bare.replace("\\", "/")).as_posix()
        ways = ({bare} & inside, {path} & inside, by_form.get(plain(path), set()))
        for words, files in zip(counts, ways, strict=True):
            if len(files) == 1:
                counts[words] += 1
                return next(iter(files))
        return bare

    matched = [match(name) for name in names]
    return matched, [
        f"{count} names match files but for {words}: taken"
        for words, count in counts.items()
        if count
    ]


def _near_misses(folder: Path, names: "pd.Series[str]", files: set[str]) -> dict[str, str]:
    """What is wrong with names that no file has but one nearly has."""
    missing = [name for name in names if name and name not in files]
    if not missing:
        return {}
    nearly: dict[str, set[str]] = defaultdict(set)
    for file in files:
        for key in (file.casefold(), file.rpartition(".")[0].casefold(), file.split("/")[-1]):
            nearly[plain(key).casefold()].add(file)
    reasons = {}
    for name in missing:
        if re.match(r"[a-z]+://", name) or name.startswith(("http:/", "https:/")):
            reasons[name] = "an address on the web; download the file, and name it here"
            continue
        try:
            locate(folder, name, {})
        except Unreadable as error:
            base = name.replace("\\", "/").split("/")[-1]
            like = nearly.get(plain(name).casefold()) or nearly.get(plain(base).casefold(), set())
            if len(like) == 1 and "no such file" in str(error):
                (file,) = like
                reasons[name] = f"no such file, but there is {file}: write its name so"
    return reasons


def _webdataset(folder: Path, listing: Listing, shards: list[Path]) -> Source:
    rows: list[dict[str, str]] = []
    members: dict[str, tuple[Path, int, int]] = {}
    problems: dict[str, str] = {}
    shard_names = {shard.name for shard in shards}
    others: dict[str, str] = {}
    for name in listing.files:
        if name.lower().endswith(ARCHIVES):
            raise DataError(f"{folder / name}: expected uncompressed shards (.tar): unpack it once")
        if name in shard_names or name == CLASSES:
            continue
        if _is_image(folder, name):
            problems[name] = "an image beside the shards; put it into one, or take it out"
            rows.append({"file_name": name})
        else:
            others[name] = "no shard"
    left = list(listing.leftovers)
    for shard in shards:
        try:
            with tarfile.open(shard, "r:") as tar:
                samples = _samples(shard, tar, members, others, problems, left)
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
    if len(table) and ("label" not in table or not table["label"].any()):
        raise DataError(
            f"{folder}: no label in {listed([*shard_names])}; expected KEY.cls or KEY.json beside "
            "every image; if it is an archive of folders, unpack it (tar xf) and take it out"
        )
    return _finish(
        folder,
        "webdataset shards",
        table,
        others,
        split_folders=False,
        problems=problems,
        notes=_leftovers(Listing(leftovers=left)),
        _members=members,
    )


def _samples(
    shard: Path,
    tar: tarfile.TarFile,
    members: dict[str, tuple[Path, int, int]],
    others: dict[str, str],
    problems: dict[str, str],
    left: list[str],
) -> dict[str, dict[str, str]]:
    """What a shard says of each key; the rest goes to the other arguments, by name.

    Raises: DataError for keys with dots, and for labels that are no text.
    """
    samples: dict[str, dict[str, str]] = {}
    for member in tar:
        if member.isdir():
            continue
        name = escaped(f"{shard.name}/{member.name}")
        place, _, base = escaped(member.name).rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{place}/{stem}" if place else stem
        if in_leftover(member.name.removeprefix("./")):
            left.append(name)
        elif not member.isfile() or member.issparse():
            others[name] = "a link, or no plain file; put the file itself there"
        elif _is_image_member(shard, member, extension):
            sample = samples.setdefault(key, {})
            if "file_name" in sample:
                _refuse_dotted_key(shard, base, key, extension)
                problems[name] = f"a second image of key {key}; give each a key of its own"
                sample = samples.setdefault(name, {})
            sample["file_name"] = name
            members[name] = (shard, member.offset_data, member.size)
        elif extension.lower() in ("cls", "json"):
            samples.setdefault(key, {}).update(_about(shard, tar, member, extension.lower()))
        else:
            if extension.lower().endswith((".cls", ".json")):
                _refuse_dotted_key(shard, base, key, extension)
            others[name] = "neither image nor .cls nor .json"
    return samples


def _is_image_member(shard: Path, member: tarfile.TarInfo, extension: str) -> bool:
    if is_image_name("." + extension):
        return True
    if extension.lower() in ("cls", "json"):
        return False
    with shard.open("rb", buffering=0) as file:
        return is_image_content(
            os.pread(file.fileno(), min(HEAD_BYTES, member.size), member.offset_data)
        )


def _about(shard: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, kind: str) -> dict[str, str]:
    """What a .cls or .json says. Raises: DataError."""
    content = tar.extractfile(member)
    try:
        text = content.read().decode() if content else ""
    except UnicodeDecodeError:
        raise DataError(
            f"{shard}: {member.name}: not UTF-8 text; expected a label or JSON"
        ) from None
    about = {"label": trimmed(text)} if kind == "cls" else json_object(shard / member.name, 1, text)
    return {escaped(k): as_text(v) for k, v in about.items() if k != "file_name"}


def _refuse_dotted_key(shard: Path, base: str, key: str, extension: str) -> None:
    """Raises: DataError where what should be one key has dots in it."""
    if "." in extension:
        raise DataError(
            f"{shard}: {base}: by WebDataset's convention a key ends at the first dot of the "
            f"file's name, so the key is {key!r} here, for several files; expected one image per "
            "key: write the shards with keys without dots (2024-01-05 instead of 2024.01.05)"
        )


def same_names(names: "pd.Series[str]") -> dict[int, str]:
    """Rows whose file name stands twice, or differs from another's in case or Unicode form only.

    Returns: the reason by row, for all but the first of each.
    """
    first: dict[str, str] = {}
    reasons = {}
    for row, name in names.items():
        like = plain(name).casefold()
        if like not in first:
            first[like] = name
        elif first[like] == name:
            reasons[row] = "listed twice; keep one row"
        else:
            reasons[row] = f"the same name as {first[like]} but for case or Unicode form; rename it"
    return reasons
