"""Running single stages through DVC, on a toy graph: outcomes, failures, and how they are ended."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from dvc.dvcfile import LOCK_FILE
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE

from flows.graph import Graph, StageFailed
from stages.core.runner.errors import ParamsError
from tests.conftest import ROOT

STAGE = """
import sys, time
from pathlib import Path
from stages.core.runner.parent import die_with_parent

die_with_parent(every_s=0.1)
name, *inputs = sys.argv[1:]
strength = Path("params.yaml").read_text().split(":")[1].strip()
print(f"{name} at work", flush=True)
if strength == "fail":
    sys.exit("error: toy: strength = fail; take another one")
if strength == "sleep":
    Path("started").touch()
    time.sleep(120)
Path(f"{name}.txt").write_text(strength)
"""

GRAPH = """
stages:
  second:
    cmd: python stage.py second first.txt
    deps: [first.txt]
    outs: [second.txt]
  first:
    cmd: python stage.py first
    deps: [stage.py]
    params: [strength]
    outs: [first.txt]
  aside:
    cmd: python stage.py aside
    outs: [aside.txt]
"""

# Where DVC keeps which process reads and writes what.
OF_PROCESSES = Path(Repo.DVC_DIR, "tmp", RWLOCK_FILE)


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = tmp_path / "a toy"
    root.mkdir()
    Repo.init(str(root), no_scm=True).close()
    (root / "stage.py").write_text(STAGE)
    (root / "dvc.yaml").write_text(GRAPH)
    (root / "params.yaml").write_text("strength: 1\n")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(root)
    return root


def reproduce(toy: Path, name: str, *, force: bool = False) -> tuple[str, list[str]]:
    lines: list[str] = []
    outcome = Graph(toy, "second").reproduce(name, lines.append, force=force)
    return outcome, lines


def test_nodes_are_what_the_target_needs_in_order(toy: Path) -> None:
    nodes = Graph(toy, "second").nodes
    assert [(n.name, n.needs) for n in nodes] == [("first", ()), ("second", ("first",))]


def test_outcomes(toy: Path) -> None:
    outcome, lines = reproduce(toy, "first")
    assert outcome == "ran"
    assert "first at work" in lines
    graph = Graph(toy, "second")
    assert graph.is_unchanged("first")
    assert not graph.is_unchanged("second")
    assert reproduce(toy, "first")[0] == "unchanged"
    assert reproduce(toy, "first", force=True)[0] == "ran"
    (toy / "params.yaml").write_text("strength: 2\n")
    assert not graph.is_unchanged("first")
    assert reproduce(toy, "first")[0] == "ran"
    (toy / "params.yaml").write_text("strength: 1\n")
    assert reproduce(toy, "first")[0] == "restored"
    assert (toy / "first.txt").read_text() == "1"


def test_dvc_draws_no_bars_through_ours(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    assert not Graph(toy, "second").is_unchanged("first")
    assert terminal.getvalue() == ""


def test_a_failure_carries_the_stages_own_words(toy: Path) -> None:
    (toy / "params.yaml").write_text("strength: fail\n")
    lines: list[str] = []
    with pytest.raises(StageFailed, match=r"^error: toy: strength = fail; take another one$"):
        Graph(toy, "second").reproduce("first", lines.append)
    assert lines[-1] == "dvc: failed to reproduce 'first'"


def stage_processes(toy: Path) -> list[psutil.Process]:
    def belongs(process: psutil.Process) -> bool:
        command = " ".join(process.info["cmdline"] or [])
        alive = process.info["status"] != psutil.STATUS_ZOMBIE and process.pid != os.getpid()
        ours = "stage.py" in command or "dvc_child" in command
        return alive and ours and process.info["cwd"] == str(toy)

    return [p for p in psutil.process_iter(["cmdline", "cwd", "status"]) if belongs(p)]


def wait_for(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_nothing_survives_the_end_of_the_run(toy: Path, kind: signal.Signals) -> None:
    (toy / "params.yaml").write_text("strength: sleep\n")
    code = (
        "import signal; from pathlib import Path; from flows.graph import Graph\n"
        # A shell's background jobs ignore Ctrl-C, and so would this one.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "Graph(Path.cwd(), 'second').reproduce('first', print, force=False)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], cwd=toy, stderr=subprocess.DEVNULL)
    assert wait_for((toy / "started").exists)
    assert len(stage_processes(toy)) >= 2
    driver.send_signal(kind)
    driver.wait(20)
    assert wait_for(lambda: not stage_processes(toy), seconds=10)


def test_a_stage_dies_with_dvc(toy: Path) -> None:
    (toy / "params.yaml").write_text("strength: sleep\n")
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "-q", "first"],
        cwd=toy,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert wait_for((toy / "started").exists)
    dvc.kill()
    dvc.wait(20)
    assert wait_for(lambda: not stage_processes(toy), seconds=10)


@pytest.mark.parametrize("kept", [0, 0.3, 0.55, 0.8])
@pytest.mark.parametrize(
    ("place", "outcome"), [(Path(LOCK_FILE), "restored"), (OF_PROCESSES, "unchanged")]
)
def test_what_a_kill_has_cut_is_no_obstacle(
    toy: Path, place: Path, outcome: str, kept: float
) -> None:
    assert reproduce(toy, "first")[0] == "ran"
    whole = (toy / place).read_text()
    (toy / place).write_text(whole[: int(kept * len(whole))])
    assert reproduce(toy, "first")[0] == outcome
    assert (toy / place).read_text() == whole


def test_a_failure_of_dvcs_own_says_why(toy: Path) -> None:
    graph = Graph(toy, "second")
    (toy / OF_PROCESSES).write_text("{")
    with pytest.raises(StageFailed, match=r"dvc: failed to reproduce 'first': .*is corrupted"):
        graph.reproduce("first", print)


def test_what_somebody_is_writing_is_left_alone(toy: Path) -> None:
    reproduce(toy, "first")
    path = toy / OF_PROCESSES
    path.write_text("{")
    with Repo(str(toy)) as repo, repo.lock:
        Graph(toy, "second")
        assert path.read_text() == "{"
    Graph(toy, "second")
    assert not path.exists()


def test_a_merge_conflict_is_not_thrown_away(toy: Path) -> None:
    reproduce(toy, "first")
    path = toy / LOCK_FILE
    text = f"<<<<<<< ours\n{path.read_text()}"
    path.write_text(text)
    with pytest.raises(DvcException):
        Graph(toy, "second")
    assert path.read_text() == text


def test_an_input_that_is_not_there_is_named(toy: Path) -> None:
    (toy / "stage.py").unlink()
    with pytest.raises(
        ParamsError, match=r"^stage\.py: no such file or folder, and no stage makes"
    ):
        Graph(toy, "second")
    assert [node.name for node in Graph(toy, "aside").nodes] == ["aside"]
