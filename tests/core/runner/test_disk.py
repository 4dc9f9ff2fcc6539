"""What a full disk does to what we write: always the same error, and no half of a file."""

import errno
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core.intake.images import Cache
from stages.core.runner import disk
from stages.core.runner.checkpoint import Checkpoint

FULL_DEVICE = Path("/dev/full")


def test_numpy_on_a_full_disk_is_told() -> None:
    # What NumPy raises where its array does not fit on a real, full disk.
    assert disk.is_full(OSError("1000000 requested and 131056 written"))
    with pytest.raises(OSError, match="No space left") as failure:
        FULL_DEVICE.write_bytes(b"x")
    assert disk.is_full(failure.value)
    assert not disk.is_full(PermissionError(errno.EACCES, "no"))


def test_no_half_of_an_array_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fallocate(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    with pytest.raises(OSError, match="No space left"):
        disk.allocated(tmp_path / "a.npy", np.float32, (10, 10))
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_on_a_full_disk(tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path, "net")
    checkpoint.save({"a": torch.zeros(3)})
    (tmp_path / "net.partial").symlink_to(FULL_DEVICE)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save({"a": torch.ones(10**6)})
    assert torch.equal(checkpoint.read()["a"], torch.zeros(3))


def test_a_full_disk_is_no_damaged_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache(tmp_path, 32, 10**6)
    error = sqlite3.OperationalError("database or disk is full")
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    with pytest.raises(OSError, match="No space left") as failure, cache._corruption_named():
        raise error
    assert disk.is_full(failure.value)
    cache.close()
