"""Running single stages through DVC, on a toy graph: outcomes, failures, and how they are ended."""

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from dvc.dvcfile import LOCK_FILE
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE

from flows import graph as graph_module
from flows.graph import Graph, StageFailed
from stages.core.runner.errors import ParamsError, WorkspaceBusy, WorkspaceFailed
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


@pytest.mark.parametrize("share", [0, 0.3, 0.55, 0.8])
@pytest.mark.parametrize(
    ("place", "outcome"), [(Path(LOCK_FILE), "restored"), (OF_PROCESSES, "unchanged")]
)
def test_what_a_kill_has_cut_is_no_obstacle(
    toy: Path, place: Path, outcome: str, share: float
) -> None:
    assert reproduce(toy, "first")[0] == "ran"
    whole = (toy / place).read_text()
    (toy / place).write_text(whole[: int(share * len(whole))])
    assert reproduce(toy, "first")[0] == outcome
    assert (toy / place).read_text() == whole


def test_a_failure_of_dvcs_own_says_why(toy: Path) -> None:
    graph = Graph(toy, "second")
    (toy / OF_PROCESSES).write_text("{")
    with pytest.raises(StageFailed, match=r"dvc: failed to reproduce 'first': .*is corrupted"):
        graph.reproduce("first", print)


@contextmanager
def lock_held(toy: Path, seconds: float) -> Iterator[None]:
    """DVC's lock, held by another process that has it for `seconds` or until the end."""
    code = (
        "import sys, time; from dvc.repo import Repo\n"
        "with Repo('.') as repo, repo.lock: print(flush=True); time.sleep(float(sys.argv[1]))"
    )
    command = [sys.executable, "-c", code, str(seconds)]
    with subprocess.Popen(command, cwd=toy, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        yield
        holder.kill()


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """DVC's own wait for its lock is shorter than three seconds."""
    monkeypatch.setattr("dvc.lock.DEFAULT_TIMEOUT", 0.2)


def test_the_lock_of_another_dvc_command_is_waited_for(
    toy: Path, brief: None, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = Graph(toy, "second")
    with lock_held(toy, 1):
        assert not graph.is_unchanged("first")
    message = capsys.readouterr().out
    assert message.startswith("waiting for `")
    assert "python -c" in message
    assert message.count("\n") == 1


def test_a_stage_waits_for_it_too_and_says_so(toy: Path) -> None:
    """In a child process, where DVC tries for three seconds."""
    graph, lines = Graph(toy, "second"), list[str]()
    with lock_held(toy, 8):
        assert graph.reproduce("first", lines.append) == "ran"
    assert len([line for line in lines if "which holds DVC's lock" in line]) == 1


def test_the_wait_has_a_limit(toy: Path, brief: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.repo.LIMIT_S", 0.3)
    graph = Graph(toy, "second")
    expected = r"a toy: `.*` \(process \d+\) has held DVC's lock for .* and start again$"
    with lock_held(toy, 60), pytest.raises(WorkspaceBusy, match=expected):
        graph.is_unchanged("first")


def test_what_somebody_is_writing_is_left_alone(
    toy: Path, brief: None, capsys: pytest.CaptureFixture[str]
) -> None:
    reproduce(toy, "first")
    path = toy / OF_PROCESSES
    path.write_text("{")
    with lock_held(toy, 1):
        Graph(toy, "second")
    assert "which holds DVC's lock" in capsys.readouterr().out
    assert not path.exists()


def test_a_merge_conflict_is_not_thrown_away(toy: Path) -> None:
    reproduce(toy, "first")
    path = toy / LOCK_FILE
    text = f"<<<<<<< ours\n{path.read_text()}"
    path.write_text(text)
    with pytest.raises(ParamsError, match=r"^dvc\.lock: has merge conflict markers"):
        Graph(toy, "second")
    assert path.read_text() == text


@pytest.mark.parametrize("target", ["data", "../other/dvc.yaml:first", "dvc.yaml", "-f", ""])
def test_only_a_stage_is_a_target(toy: Path, target: str) -> None:
    (toy / "data").mkdir()
    expected = r"^target = '.*': no such stage; expected one of second, first, aside$"
    with pytest.raises(ParamsError, match=expected):
        Graph(toy, target)


def test_a_folder_without_git_is_told_what_to_do(toy: Path) -> None:
    (toy / ".dvc" / "config").write_text("")
    with pytest.raises(WorkspaceFailed, match=r"is not a git repository; .*`git init"):
        Graph(toy, "second")


def test_an_input_that_is_not_there_is_named(toy: Path) -> None:
    (toy / "stage.py").unlink()
    with pytest.raises(
        ParamsError, match=r"^stage\.py: no such file or folder, and no stage writes"
    ):
        Graph(toy, "second")
    assert [node.name for node in Graph(toy, "aside").nodes] == ["aside"]


def test_no_line_of_a_stage_controls_the_terminal(toy: Path) -> None:
    message = r"error: toy: \x1b]0;pwn\x07.png"
    (toy / "stage.py").write_text(f"import sys; sys.exit('{message}')")
    lines: list[str] = []
    with pytest.raises(StageFailed) as error:
        Graph(toy, "second").reproduce("first", lines.append)
    assert str(error.value) == message
    assert message in lines


def test_the_locale_is_no_matter_to_a_stage(toy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("LC_ALL", "C"), ("PYTHONCOERCECLOCALE", "0"), ("PYTHONUTF8", "0")):
        monkeypatch.setenv(name, value)
    (toy / "params.yaml").write_text("strength: caf\u00e9\n", encoding="utf-8")
    assert reproduce(toy, "first")[0] == "ran"
    assert (toy / "first.txt").read_text(encoding="utf-8") == "caf\u00e9"


def test_inputs_outside_the_project_have_whole_paths(toy: Path, tmp_path: Path) -> None:
    (images := tmp_path / "images").mkdir()
    (images / "1.png").write_bytes(b"1")
    text = GRAPH.replace("deps: [stage.py]", f"deps: [stage.py, {images}]")
    (toy / "dvc.yaml").write_text(text)
    sources = Graph(toy, "second").sources()
    assert set(sources) == {"stage.py", str(images)}
    (images / "1.png").write_bytes(b"2")
    assert Graph(toy, "second").sources()[str(images)] != sources[str(images)]


def test_a_workspace_without_an_untracked_input_says_how_to_have_it(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my project").mkdir()
    (toy / "stage.py").rename(tmp_path / "my project" / "stage.py")
    monkeypatch.setattr(graph_module, "ROOT", tmp_path / "my project")
    expected = r"^stage\.py: neither git nor DVC .*`dvc add stage\.py`.*/my project/stage\.py$"
    with pytest.raises(ParamsError, match=expected):
        Graph(toy, "second")
