"""One run at a time in a workspace, whichever driver starts it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, TextIO

from stages.core.runner.errors import WorkspaceBusy

# Set by the flow for the stages that it starts: the pid that holds the lock for them.
HOLDER = "ATELIER_LOCK_HOLDER"


def _record(file: TextIO) -> dict[str, Any]:
    """What the holder wrote; after a power cut that may be anything."""
    unknown: dict[str, Any] = {"pid": "?", "what": "another run", "since": "?", "run": ""}
    file.seek(0)
    try:
        return unknown | dict(json.loads(file.read()))
    except (ValueError, TypeError):
        return unknown


@contextmanager
def held(root: Path, what: str, *, run: str = "") -> Iterator[str]:
    """Hold the workspace `root` for this process, or for nothing if its flow holds it already.

    The kernel frees the lock when the holder ends, however that happens. Yields the `run` of a
    holder before us that was killed, or "".

    Raises: WorkspaceBusy, naming the holder.
    """
    path = root / "data" / "scratch" / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _record(file)
            if os.environ.get(HOLDER) == str(holder["pid"]):
                yield ""
                return
            raise WorkspaceBusy(
                f"this workspace is held by {holder['what']} (pid {holder['pid']}, since "
                f"{holder['since']}); wait for it, or end it"
            ) from None
        # A run that ends normally leaves no record.
        killed = str(_record(file)["run"])
        file.truncate(0)
        since = datetime.now().strftime("%H:%M:%S")
        json.dump({"pid": os.getpid(), "what": what, "since": since, "run": run}, file)
        file.flush()
        try:
            yield killed
        finally:
            file.truncate(0)
