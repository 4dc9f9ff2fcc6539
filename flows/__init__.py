"""What runs when: Prefect flows over the graph that dvc.yaml defines."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# No telemetry, whatever the user's own configuration says.
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("DVC_NO_ANALYTICS", "1")
# Only our own lines go to the terminal; Prefect's records go to its server, for the UI.
os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
