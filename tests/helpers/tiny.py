"""A copy of the project with tiny params, in which whole runs are tried."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from flows import workspace
from stages.core.runner.params import load_yaml
from tests.conftest import ROOT

TINY = "flows/overlays/tiny.yaml"
TRAIN = [sys.executable, "-m", "flows.train"]
DETERMINISTIC = (
    "ingest", "validate", "teacher", "targets", "distill", "augment", "refine", "export",
)  # fmt: skip


class Workspace:
    """A copy of the project with tiny params, its own DVC cache and its own Prefect home."""

    def __init__(self, at: Path) -> None:
        self.root = workspace.prepare(
            ROOT, load_yaml(ROOT / TINY), at / "a workspace", source=TINY, cache=at / "cache"
        )
        self.prefect = at / "prefect"
        self.environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
        self.environment |= {
            "PREFECT_HOME": str(self.prefect),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    def run(self, command: list[str], *, fails: bool = False) -> str:
        ended = subprocess.run(
            command, cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (ended.returncode != 0) == fails, ended.stdout[-5000:]
        return ended.stdout

    def set(self, section: str, key: str, value: object) -> None:
        yaml = YAML()
        values = yaml.load(self.root / "params.yaml")
        values[section][key] = value
        yaml.dump(values, self.root / "params.yaml")

    def md5s(self) -> dict[str, str]:
        lock = YAML(typ="safe").load(self.root / "dvc.lock")["stages"]
        return {o["path"]: o["md5"] for s in DETERMINISTIC for o in lock[s]["outs"]}

    def metrics(self, stage: str) -> dict[str, Any]:
        metrics: dict[str, Any] = json.loads(
            (self.root / "data" / "reports" / stage / "metrics.json").read_text()
        )
        return metrics

    def states(self, what: str) -> list[str]:
        """Different states that Prefect's database has for flow runs or task runs."""
        with closing(sqlite3.connect(self.prefect / "prefect.db")) as database:
            rows = database.execute(f"SELECT DISTINCT state_type FROM {what} ORDER BY 1")
            return [row[0] for row in rows]


def make(at: Path) -> Iterator[Workspace]:
    project = Workspace(at)
    yield project
    workspace.remove(ROOT, project.root)


def marks(output: str) -> dict[str, str]:
    """State of each stage, from the plain lines of a run."""
    states = {}
    for line in output.splitlines():
        words = line.replace(",", " ").split()
        if len(words) > 2 and words[1] in ("cached", "done", "failed", "not") and "s" in words[-1]:
            states[words[0]] = words[1]
    return states
