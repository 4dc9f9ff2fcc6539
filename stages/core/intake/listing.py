"""What is in a folder, as DVC will see it; what DVC would stumble over is refused by name."""

import errno
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from stages.core.intake.kinds import is_leftover
from stages.core.runner.errors import DataError

_SHOWN = 5
# Levels of folders: DVC took more than ten minutes for 1,200 of them.
MAX_DEPTH = 100


@dataclass(frozen=True)
class Listing:
    """A folder's content. Names are relative to it, with `/`, in a fixed order.

    Attributes:
        files: links to files among them.
        folders: empty ones among them.
        linked: links to folders, with what they point to.
        leftovers: what systems and programs have left (see kinds.py), and hidden names; with a
            folder, all that is in it.
    """

    files: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    linked: dict[str, str] = field(default_factory=dict)
    leftovers: list[str] = field(default_factory=list)

    @property
    def top_files(self) -> list[str]:
        """Names of the files that lie in no folder."""
        return [name for name in self.files if "/" not in name]

    @property
    def top_folders(self) -> list[str]:
        """Names of the folders at the top."""
        return [name for name in self.folders if "/" not in name]


def unreadable(error: OSError) -> DataError:
    """The error of a file or folder that the system does not let us read."""
    return DataError(f"{error.filename}: cannot be read ({error.strerror}); give access to it")


def list_folder(folder: Path) -> Listing:
    """Look over a folder: DVC does so before any stage runs, and says less.

    Raises: DataError that names what DVC cannot take: names that are not UTF-8, links without a
        target, what is neither file nor folder, what cannot be read.
    """
    listing = Listing()
    problems: list[str] = []
    open_folders = [("", False)]
    while open_folders:
        inside, left = open_folders.pop()
        open_folders += _look(folder, inside, left, listing, problems)
    if problems:
        problems.sort()
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise DataError(f"{folder}: {'; '.join(problems[:_SHOWN])}{more}")
    for names in (listing.files, listing.folders, listing.leftovers):
        names.sort(key=lambda name: name.split("/"))
    return listing


def _look(
    folder: Path, inside: str, left: bool, listing: Listing, problems: list[str]
) -> list[tuple[str, bool]]:
    """Add what lies in `folder`/`inside`; `left`: in a leftover.

    Returns: the folders to look into next, as `inside` and `left`.
    """
    if inside.count("/") > MAX_DEPTH:
        raise DataError(
            f"{folder}: {_written(inside.split('/')[0])} has folders in more than {MAX_DEPTH} "
            "levels, for which DVC takes hours: move the images up"
        )
    try:
        with os.scandir(folder / inside if inside else folder) as entries:
            content = list(entries)
    except OSError as error:
        raise unreadable(error) from None
    inner = []
    for entry in content:
        name = inside + entry.name
        is_folder, problem = _kind(entry)
        if problem:
            problems.append(f"{_written(name)}: {problem}")
        elif left or is_leftover(entry.name, folder=is_folder):
            if not left:
                listing.leftovers.append(name)
            if is_folder and not entry.is_symlink():
                inner.append((name + "/", True))
        elif not is_folder:
            listing.files.append(name)
        elif entry.is_symlink():
            listing.linked[name] = str(Path(entry.path).readlink())
        else:
            listing.folders.append(name)
            inner.append((name + "/", False))
    return inner


def _kind(entry: "os.DirEntry[str]") -> tuple[bool, str]:
    """Whether an entry is a folder, or leads to one; and why DVC cannot take it, or ""."""
    try:
        entry.name.encode()
    except UnicodeEncodeError:
        return False, (
            "its name is not UTF-8, which DVC cannot store: rename it (convmv renames whole "
            "folders from an old encoding)"
        )
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        if error.errno == errno.ELOOP:
            return False, "a link that leads to itself: delete it"
        if error.errno != errno.ENOENT:
            raise unreadable(error) from None
        target = _written(str(Path(entry.path).readlink()))
        return False, (
            f"a link to {target}, where nothing is: bring that back (mount its disk, dvc checkout),"
            " or delete the link"
        )
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        return False, "neither a file nor a folder (a pipe, socket or device): take it out"
    if not os.access(entry.path, os.R_OK):
        return False, "cannot be read (Permission denied); give access to it"
    return stat.S_ISDIR(mode), ""


def _written(name: str) -> str:
    """`name` with bytes that are not UTF-8 as hexadecimal numbers."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
