"""Prefect flows over the graph that dvc.yaml defines."""

import os
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# No telemetry, whatever the user's own configuration says.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
# Only our own lines go to the terminal; Prefect's records go to its server, for the UI.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
# `flows.server` reports it in one line.
warnings.filterwarnings("ignore", "Failed to create the Prefect home directory")

# No proxy may stand between us, or any child, and the servers on this machine.
_no_proxy = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
if _no_proxy.strip() != "*":
    _no_proxy = ",".join(filter(None, [_no_proxy, "127.0.0.1", "localhost"]))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = _no_proxy

# A git hook that starts us sets these; git and DVC would then work on the hook's repository.
for _name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX"):
    os.environ.pop(_name, None)
