"""What surrounds a stage's work: inputs that change, outputs that are whole, one run at a time."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from stages.core.runner import digest, lock, stage
from stages.core.runner.errors import DataError, InputsChanged, ParamsError
from stages.core.runner.params import Section
from tests.conftest import ROOT


class Params(Section):
    strength: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    data: Path = stage.reads()
    result: Path = stage.writes()
    page: Path = stage.writes(even_on_failure=True)


Work = Callable[[Paths], None]


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(
        "toy: {strength: 1}\nresources: {device: cpu, threads: null, processes: 1, cache_gb: 1}\n"
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").write_text("a")
    return tmp_path


def execute(root: Path, work: Work) -> None:
    def run(params: Params, *, paths: Paths, resources: object) -> None:
        work(paths)

    paths = Paths(
        data=root / "data", result=root / "result", page=root / "page", scratch=root / "scratch"
    )
    stage.execute(stage.Stage("toy", Params, Paths, run), paths, root)


def write_both(paths: Paths) -> None:
    paths.result.mkdir()
    (paths.result / "x").write_text("x")
    paths.page.write_text("page")


def test_outputs_appear_when_all_is_done(workspace: Path) -> None:
    def work(paths: Paths) -> None:
        write_both(paths)
        assert not (workspace / "result").exists()

    execute(workspace, work)
    assert (workspace / "result" / "x").read_text() == "x"
    assert sorted(p.name for p in workspace.iterdir() if p.name.startswith(".partial")) == []


def test_a_failure_leaves_only_the_report(workspace: Path) -> None:
    def work(paths: Paths) -> None:
        write_both(paths)
        raise DataError("bad")

    with pytest.raises(DataError):
        execute(workspace, work)
    assert not (workspace / "result").exists()
    assert (workspace / "page").read_text() == "page"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curved(stage.Paths):
    result: Path = stage.writes()
    curve: Path = stage.writes(live=True)


@pytest.mark.parametrize("atomic", [True, False])
def test_an_output_is_swapped_for_a_better_one(
    workspace: Path, atomic: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the file system has it, at once: a reader never finds the folder missing or in part."""
    if not atomic:
        monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: SimpleNamespace())
    looks, end = [0, 0], threading.Event()

    def watch() -> None:
        while not end.is_set():
            looks[(workspace / "result" / "x").exists()] += 1

    execute(workspace, write_both)
    watcher = threading.Thread(target=watch)
    watcher.start()
    for number in range(100):
        paths = Paths(data=workspace / "data", result=workspace / "result", page=workspace / "page")
        with stage.staged(paths) as partial:
            write_both(partial)
            (partial.result / "number").write_text(str(number))
    end.set()
    watcher.join()
    assert (workspace / "result" / "number").read_text() == "99"
    assert sorted(p.name for p in workspace.iterdir()) == [
        "data", "page", "params.yaml", "result",
    ]  # fmt: skip
    assert looks[1]
    if atomic:
        assert not looks[0]


def test_what_is_live_is_seen_while_the_stage_runs(tmp_path: Path) -> None:
    result, curve = tmp_path / "result", tmp_path / "curve"
    result.write_text("old")
    curve.write_text("old")
    paths = Curved(result=result, curve=curve, scratch=tmp_path / "scratch")
    with stage.staged(paths) as partial:
        assert not curve.exists(), "an old one would pass for this run's"
        for path in (partial.result, partial.curve):
            path.write_text("new")
        assert (result.read_text(), curve.read_text()) == ("old", "new")
    assert (result.read_text(), curve.read_text()) == ("new", "new")


def test_a_forgotten_output_is_an_error(workspace: Path) -> None:
    with pytest.raises(RuntimeError, match=r"did not write .*page"):
        execute(workspace, lambda paths: paths.result.mkdir())


@pytest.mark.parametrize("how", ["edit", "add", "remove"])
def test_changed_inputs_are_noticed(workspace: Path, how: str) -> None:
    def work(paths: Paths) -> None:
        write_both(paths)
        if how == "edit":
            (workspace / "data" / "a.txt").write_text("b")
        elif how == "add":
            (workspace / "data" / "b.txt").write_text("b")
        else:
            shutil.rmtree(workspace / "data")

    with pytest.raises(InputsChanged, match="data changed while the stage ran"):
        execute(workspace, work)
    assert not (workspace / "result").exists()


def test_touching_an_input_is_no_change(workspace: Path) -> None:
    def work(paths: Paths) -> None:
        write_both(paths)
        os.utime(workspace / "data" / "a.txt", (1, 1))

    execute(workspace, work)


def test_changed_params_are_noticed(workspace: Path) -> None:
    def work(paths: Paths) -> None:
        write_both(paths)
        text = (workspace / "params.yaml").read_text()
        (workspace / "params.yaml").write_text(text.replace("strength: 1", "strength: 2"))

    with pytest.raises(InputsChanged, match=r"section of params\.yaml changed"):
        execute(workspace, work)


def test_changed_code_is_noticed(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = workspace / "stages" / "toy.py"
    file.parent.mkdir()
    file.write_text("one = 1")
    monkeypatch.setitem(sys.modules, "toy", SimpleNamespace(__file__=str(file)))

    def work(paths: Paths) -> None:
        write_both(paths)
        file.write_text("one = 2")

    with pytest.raises(InputsChanged, match=r"stages/toy\.py changed while the stage ran"):
        execute(workspace, work)
    assert not (workspace / "result").exists()


def test_missing_input(workspace: Path) -> None:
    shutil.rmtree(workspace / "data")
    with pytest.raises(ParamsError, match="no such file or folder"):
        execute(workspace, write_both)


def test_scratch_depends_on_params_and_inputs_and_is_removed(workspace: Path) -> None:
    seen = []

    def work(paths: Paths) -> None:
        write_both(paths)
        paths.scratch.mkdir(parents=True)
        seen.append(paths.scratch)

    execute(workspace, work)
    execute(workspace, work)
    (workspace / "data" / "a.txt").write_text("other")
    execute(workspace, work)
    assert seen[0] == seen[1] != seen[2]
    assert not any(folder.exists() for folder in seen)


def test_digest_of_a_folder_is_what_dvc_says(tmp_path: Path) -> None:
    from dvc.repo import Repo

    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x.txt").write_text("x")
    (folder / "b-2.txt").write_text("y")
    with Repo.init(str(tmp_path), no_scm=True) as repo:
        (tracked,) = repo.add(str(folder))
        theirs = tracked.outs[0].hash_info.value
    assert digest.md5(folder) == theirs


def test_a_second_run_is_told_who_holds_the_workspace(tmp_path: Path) -> None:
    with lock.held(tmp_path, "a test"):
        code = (
            "from pathlib import Path; from stages.core.runner import lock\n"
            f"with lock.held(Path({str(tmp_path)!r}), 'another'): pass"
        )
        environment = {k: v for k, v in os.environ.items() if k != lock.HOLDER}
        second = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
        )
        assert f"held by a test (pid {os.getpid()}" in second.stderr
        ours = {**environment, lock.HOLDER: str(os.getpid())}
        assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=ours).returncode == 0
    with lock.held(tmp_path, "later"):
        held = json.loads((tmp_path / "data" / "scratch" / "run.lock").read_text())
        assert held["what"] == "later"


def test_the_next_run_learns_of_one_that_was_killed(tmp_path: Path) -> None:
    code = (
        "import os; from pathlib import Path; from stages.core.runner import lock\n"
        f"with lock.held(Path({str(tmp_path)!r}), 'a test', run='one'): os._exit(9)"
    )
    environment = {k: v for k, v in os.environ.items() if k != lock.HOLDER}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment)
    with lock.held(tmp_path, "later", run="two") as killed:
        assert killed == "one"
    with lock.held(tmp_path, "in good order") as killed:
        assert killed == ""
    (tmp_path / "data" / "scratch" / "run.lock").write_bytes(b"\0" * 60)
    with lock.held(tmp_path, "after a power cut") as killed:
        assert killed == ""


TOY = """
import dataclasses, errno, os
from pathlib import Path
from stages.core.runner import stage
from stages.core.runner.params import Section

class Params(Section):
    strength: int

@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    data: Path = stage.reads()
    result: Path = stage.writes()

def run(params, *, paths, resources):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(paths.result))

stage.main("toy", Params, Paths, run)
"""


def failing(workspace: Path, toy: str) -> list[str]:
    """What a stage says on stderr when it fails, in a process of its own."""
    (workspace / "toy.py").write_text(toy)
    environment = {k: v for k, v in os.environ.items() if k != lock.HOLDER}
    ended = subprocess.run(
        [sys.executable, "toy.py", "--data", "data", "--result", "result"],
        cwd=workspace, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 1
    return ended.stderr.splitlines()


def test_a_full_disk_is_one_line(workspace: Path) -> None:
    (line,) = failing(workspace, TOY)
    assert re.fullmatch(
        r"error: toy: the disk is full \(.*result\): .* has [\d.]+ GB left; make some, run again",
        line,
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_folder_that_may_not_be_written_is_one_line(workspace: Path, number: int) -> None:
    toy = TOY.replace("errno.ENOSPC", str(number)).replace("str(paths.result)", "'result'")
    assert failing(workspace, toy) == [
        f"error: toy: result: {os.strerror(number)}; check its permissions"
    ]


def test_what_trains_nothing_starts_without_torch() -> None:
    code = (
        "import sys; from stages import check, ingest, validate\n"
        "assert not {'torch', 'timm', 'onnxruntime'} & set(sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
