"""Names and labels that the locale's encoding lacks: in ASCII, all but English ones."""

import os
import subprocess
import sys
from pathlib import Path

from dvc.repo import Repo

from flows.workspace import prepare
from tests.conftest import ROOT
from tests.helpers.imagined import reports

ASCII = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

REPORT = r"""
import sys
from pathlib import Path
from flows import ui
from flows.graph import Node
from stages import check
from stages.core.results.every_stage import STAGES
from stages.core.runner.params import load_section
from stages.core.runner.runtime import Resources

root = Path(sys.argv[1])
folders = {name: root / name for name in STAGES}
written = {"release": root / "release", "page": root / "p.html", "metrics": root / "m.json"}
check.run(
    load_section(Path("params.yaml"), "check", check.Params),
    paths=check.Paths(
        **folders, onnx=root / "onnx", accepted=root / "accepted.json", **written
    ),
    resources=Resources(device="cpu", threads=1, processes=1, cache_gb=1),
)
node = Node("check", metrics=(root / "export/metrics.json",), tables=(root / "table.csv",))
print(ascii([data for _, _, data in ui.contents(node)]))
"""


def run(code: str, *arguments: str | Path) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, env=os.environ | ASCII,
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def test_labels_are_written_and_read(tmp_path: Path) -> None:
    reports(tmp_path)
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "fp32.onnx").touch()
    (tmp_path / "onnx" / "evidence.onnx").touch()
    (tmp_path / "accepted.json").write_text("{}")
    metrics = tmp_path / "export" / "metrics.json"
    label = "caf\u00e9"
    metrics.write_text(metrics.read_text().replace("functional", label), encoding="utf-8")
    (tmp_path / "table.csv").write_text(f"label\n{label}\n", encoding="utf-8")
    assert run(REPORT, tmp_path).count(r"caf\xe9") > 1
    for name in ("release/MODEL_CARD.md", "p.html"):
        assert label in (tmp_path / name).read_text(encoding="utf-8"), name


def test_a_workspace_is_found(tmp_path: Path) -> None:
    (root := tmp_path / "caf\u00e9").mkdir()
    (root / "params.yaml").write_text("a: 1\n")
    git = ["git", "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True, cwd=root)
    Repo.init(str(root)).close()
    for command in (["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True, cwd=root)
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    code = "import sys; from pathlib import Path; from flows.workspace import remove\n"
    run(f"{code}remove(*map(Path, sys.argv[1:]))", root, at)
    assert not at.exists()
