"""A DVC project of the check stage alone."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.runner.params import load_yaml
from tests.conftest import ROOT
from tests.helpers.imagined import reports

DVC = [sys.executable, "-m", "dvc"]


class Project:
    """A DVC project of the check stage alone; what comes before it is already there."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
        self.environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        shutil.copytree(
            ROOT / "stages", root / "stages", ignore=shutil.ignore_patterns("__pycache__")
        )
        params = load_yaml(ROOT / "params.yaml")
        self._write("params.yaml", {name: params[name] for name in ("check", "resources")})
        check = load_yaml(ROOT / "dvc.yaml")["stages"]["check"]
        self._write("dvc.yaml", {"stages": {"check": check}})
        self.reports = root / "data" / "reports"
        self.reports.mkdir(parents=True)
        reports(self.reports)
        self.model = root / "data" / "models" / "onnx" / "fp32.onnx"
        self.model.parent.mkdir(parents=True)
        self.model.write_bytes(b"a good model")
        self.model.with_name("evidence.onnx").write_bytes(b"evidence")
        (root / "data" / "accepted.json").write_text("{}\n")
        self.dvc("init", "--no-scm", "--quiet")

    def _write(self, name: str, content: dict[str, Any]) -> None:
        YAML().dump(content, self.root / name)

    def dvc(self, *arguments: str, fails: bool = False) -> str:
        ended = subprocess.run(
            [*DVC, *arguments], cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert (ended.returncode != 0) == fails, ended.stdout
        return ended.stdout

    def kill_in_the_middle(self) -> None:
        """End a run, DVC and all, as soon as the stage has judged."""
        run = subprocess.Popen(
            [*DVC, "repro", "check"], cwd=self.root, env=self.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        assert run.stdout is not None
        assert any("auroc" in line for line in run.stdout)
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate(timeout=20)

    def set_gate(self, name: str, limit: float) -> None:
        params = load_yaml(self.root / "params.yaml")
        params["check"][name] = limit
        self._write("params.yaml", params)

    def release(self) -> dict[str, bytes]:
        folder = self.root / "data" / "release"
        return {file.name: file.read_bytes() for file in folder.iterdir()}

    @property
    def passed(self) -> bool:
        """The verdict, in metrics and report."""
        passed = bool(json.loads((self.reports / "check" / "metrics.json").read_text())["passed"])
        page = (self.reports / "index.html").read_text()
        assert ('<b class="good">passed</b>' in page) == passed
        return passed
