"""One run at a time in a workspace, whichever driver starts it."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from stages.core.errors import WorkspaceBusy

# Set by the flow for the stages that it starts: the pid that holds the lock for them.
HOLDER = "ATELIER_LOCK_HOLDER"


@contextmanager
def held(root: Path, what: str) -> Iterator[None]:
    """Hold the workspace `root` for this process, or for nothing if its flow holds it already.

    The kernel frees the lock when the holder ends, however that happens.

    Raises: WorkspaceBusy, naming the holder.
    """
    path = root / "data" / "scratch" / "run.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            text = file.read()
            holder = json.loads(text) if text else {"pid": "?", "what": "another run", "since": "?"}
            if os.environ.get(HOLDER) == str(holder["pid"]):
                yield
                return
            raise WorkspaceBusy(
                f"this workspace is held by {holder['what']} (pid {holder['pid']}, since "
                f"{holder['since']}); wait for it, or end it"
            ) from None
        file.truncate(0)
        since = datetime.now().strftime("%H:%M:%S")
        json.dump({"pid": os.getpid(), "what": what, "since": since}, file)
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
