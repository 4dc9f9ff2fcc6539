"""A folder of labelled images once its layout is known: what it says of each, and its bytes."""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from stages.core.dataset.data import UNLABELLED, Split
from stages.core.dataset.symmetries import NUMBERS, Symmetries
from stages.core.intake.kinds import HEAD_BYTES, is_image_content, is_image_name
from stages.core.intake.listing import Listing
from stages.core.intake.names import means_unlabelled, plain, split_names, trimmed, twins
from stages.core.runner.errors import DataError
from stages.core.runner.text import listed

CLASSES, SYMMETRIES, LICENCE = "classes.txt", "symmetries.txt", "licence.txt"
# The files, at the top, in which a folder says something of all its images.
DECLARATIONS = (CLASSES, SYMMETRIES, LICENCE)
# Characters that report and model card quote: enough for a name and its owner.
MAX_LICENCE = 300
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
        table: one row per image: `COLUMNS` (text, "" where the folder says nothing, and where a
            label says that there is none), then any others that the folder has.
        classes: what the params or else classes.txt say, if they do.
        known: which of group, domain and split the folder says something of.
        split_folders: whether the splits are folders.
        others: files that are no listed images, each with the reason.
        symmetries: what symmetries.txt says, if it is there.
        licence: the first line of licence.txt, if it is there.
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
    symmetries: Symmetries | None = None
    licence: str | None = None
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


def read_classes(folder: Path) -> list[str] | None:
    """What classes.txt says, if it is there. Raises: DataError."""
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


def _symmetries(folder: Path) -> Symmetries | None:
    path = folder / SYMMETRIES
    if not path.is_file():
        return None
    choices: dict[str, Symmetries] = {name: name for name in NUMBERS}
    word = path.read_text(encoding="utf-8-sig", errors="replace").strip()
    if word not in choices:
        raise DataError(f"{path}: found {word[:50]!r}; expected one word of {', '.join(choices)}")
    return choices[word]


def _licence(folder: Path) -> str | None:
    path = folder / LICENCE
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8-sig", errors="replace")
    return next((line[:MAX_LICENCE] for line in map(trimmed, text.split("\n")) if line), None)


def _refuse_second_spellings(folder: Path, names: "pd.Series[str]", place: str) -> None:
    """Raises: DataError where two names mean one split."""
    first: dict[Split, str] = {}
    for name, split in sorted(split_names(names.unique()).items()):
        other = first.setdefault(split, name)
        if other != name:
            raise DataError(
                f"{folder}: the split {place} {other!r} and {name!r}, which both mean {split}; "
                "expected one spelling for each split: put them together under one name"
            )


def unlabelled_names(names: Iterable[str], classes: list[str] | None) -> list[str]:
    """Those of the folders or labels that say that images have no label.

    Args:
        classes: those that the user lists; if one of them is called so, the others mean it.
    """
    listed_class = any(map(means_unlabelled, classes or ()))
    return [] if listed_class else [name for name in names if means_unlabelled(name)]


def _without_labels(
    rows: pd.DataFrame, classes: list[str] | None, problems: dict[str, str]
) -> list[str]:
    """Make the labels of unlabelled images blank; gives what to tell of them."""
    blank = (rows["label"] == "") & (rows["split"] != UNLABELLED)
    blank &= ~rows["file_name"].isin(list(problems))
    words = unlabelled_names(rows["label"].unique(), classes)
    named = rows["label"].isin(words)
    of_split = rows["split"] == UNLABELLED
    spare = int((of_split & ~named & (rows["label"] != "")).sum())
    rows["label"] = rows["label"].mask(named | of_split, "")
    notes = []
    if count := int(blank.sum()):
        names = listed(rows.loc[blank, "file_name"].tolist(), 3)
        notes.append(f"no label: {count} of {len(rows)} images ({names}); they are unlabelled ones")
    if count := int((named & ~of_split).sum()):
        notes.append(
            f"called {listed(words)}: {count} of {len(rows)} images; they are unlabelled ones, and "
            "this is no class unless classes.txt or validate.classes lists it"
        )
    if count := int(of_split.sum()):
        unused = f", labels that are not used: {spare}" if spare else ""
        notes.append(f"split {UNLABELLED}: {count} of {len(rows)} images{unused}")
    return notes


def completed(
    folder: Path,
    layout: str,
    rows: pd.DataFrame,
    others: dict[str, str],
    *,
    classes: list[str] | None,
    split_folders: bool,
    problems: dict[str, str],
    notes: Iterable[str] = (),
    **more: Any,
) -> Source:
    """Complete the columns, and check that each thing is spelt in one way. Raises: DataError.

    Args:
        classes: those that the user lists; one may be called as unlabelled images are.
    """
    if rows.empty:
        raise DataError(f"{folder}: no images; expected one row or file per labelled image")
    notes = list(notes)
    optional = ("group", "domain", "split")
    for column in COLUMNS:
        if column not in rows:
            rows[column] = ""
    if split_folders:  # before their names are trimmed
        _refuse_second_spellings(folder, rows["split"], "folders are")
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
            f"{folder}: split = {wrong[0]!r}; expected train, val, test or unlabelled: correct the "
            "column"
        )
    if not split_folders:
        _refuse_second_spellings(folder, rows["split"], "column has")
    if any(name != split for name, split in splits.items()):
        meanings = ", ".join(f"{name} = {split}" for name, split in sorted(splits.items()))
        notes.append(f"names of splits: {meanings}")
    rows["split"] = rows["split"].map(splits | {"": ""})
    notes += _without_labels(rows, classes, problems)
    for column in rows.columns.drop("file_name"):
        # A carriage return alone would end the row in a CSV.
        rows[column] = rows[column].str.replace("\r", "\n")
    ordered = [*COLUMNS, *(c for c in rows if c not in COLUMNS)]
    table = rows[ordered].reset_index(drop=True)
    return Source(
        folder,
        layout,
        table,
        classes=classes,
        symmetries=_symmetries(folder),
        licence=_licence(folder),
        known=known,
        split_folders=split_folders,
        others=others,
        problems=problems,
        notes=tuple(notes),
        **more,
    )


def is_image(folder: Path, name: str) -> bool:
    """Whether a file is an image, by its name or else by its content."""
    if is_image_name(name):
        return True
    with (folder / name).open("rb", buffering=0) as file:
        return is_image_content(file.read(HEAD_BYTES))


def leftover_notes(listing: Listing) -> list[str]:
    """What to tell of files that nobody put there, if there are any."""
    names = listing.leftovers
    return [f"left out, as what systems and programs leave: {listed(names)}"] if names else []


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
