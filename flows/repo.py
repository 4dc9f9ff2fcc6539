"""Opens DVC's repository; its lock waits for other DVC commands, says so, and has a limit."""

import logging
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from dvc.exceptions import NotDvcRepoError
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.scm import SCMError

from stages.core.runner.errors import WorkspaceBusy, WorkspaceFailed
from stages.core.runner.text import terminal

# `dvc add` and `dvc push` hold the lock until they end, which takes long for a large folder.
LIMIT_S = 1800


def open_repo(root: Path) -> Repo:
    """DVC's view of the project in `root`.

    Taking its lock waits for up to `LIMIT_S` seconds, and prints who holds it; after that it
    raises WorkspaceBusy.

    Raises: WorkspaceFailed if DVC or git does not accept `root` as a project.
    """
    # DVC's progress bars would mix with ours; only the level of their loggers turns them off.
    for name in ("dvc.progress", "dvc_data.callbacks"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        repo = Repo(str(root))
    except (NotDvcRepoError, SCMError) as error:
        raise WorkspaceFailed(
            f"{root}: {one_line(error)}; DVC needs a git repository: clone the project with "
            "`git clone`, or, if it came as an archive, run `git init && git add --all && "
            "git commit --message start` in it"
        ) from None
    lock_once = repo.lock.lock
    repo.lock.lock = lambda: _lock_patiently(lock_once, root, Path(repo.lock.lockfile))
    return repo


def _lock_patiently(lock_once: Callable[[], None], root: Path, file: Path) -> None:
    """`lock_once` tries for three seconds, then raises LockError."""
    end = time.monotonic() + LIMIT_S
    last_holder = ""
    while True:
        try:
            return lock_once()
        except LockError:
            holder = _holder(file)
            if time.monotonic() > end:
                raise WorkspaceBusy(
                    f"{root}: {holder} has held DVC's lock for {LIMIT_S / 60:.0f} minutes; "
                    "wait for it to end, or end it, and start again"
                ) from None
            if holder != last_holder:
                print(
                    f"waiting for {holder}, which holds DVC's lock (for up to "
                    f"{LIMIT_S / 60:.0f} minutes)",
                    flush=True,
                )
                last_holder = holder


def _holder(file: Path) -> str:
    """The command whose process id is in DVC's lock file; not all commands write one."""
    try:
        process = psutil.Process(int(file.read_text(encoding="utf-8")))
        command = textwrap.shorten(" ".join(process.cmdline()), 80, placeholder=" ...")
        return f"`{terminal(command)}` (process {process.pid})"
    except (OSError, ValueError, psutil.Error):
        return "another DVC command"


def one_line(error: Exception) -> str:
    """An error's message on one line; DVC's may span several."""
    return " ".join(str(error).split())
