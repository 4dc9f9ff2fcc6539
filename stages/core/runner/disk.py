"""Files that are whole on the disk, or not there: space is taken before it is written to."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_full(error: OSError) -> bool:
    """Whether a write failed since the disk has no space left."""
    # NumPy's own error for an array that did not fit has no number.
    return error.errno in _FULL or (error.errno is None and "written" in str(error))


def allocated(path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """An array in a new `.npy` file whose bytes the disk has already given, memory-mapped.

    Without that, a full disk is met when a page of the map is written: SIGBUS, and no word.

    Raises: OSError, with no file left, when there is no space (`is_full`).
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    try:
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError:
        path.unlink()
        raise
    return array


def settle(partial: Path, path: Path) -> None:
    """Move a written file to its place once all of it is on the disk: no power cut halves it."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)


def room(folder: Path) -> str:
    """How much space is left where a folder lies, in words."""
    return f"{folder} has {shutil.disk_usage(folder).free / 1e9:.1f} GB left"
