import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.workspace import merge, prepare, remove
from stages.core.runner.errors import ParamsError


def test_merge_changes_only_what_is_named() -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}, "b": {"w": [1, 2]}}
    merge(params, {"a": {"y": {"z": 3}}, "b": {"w": [9]}}, source="o.yaml")
    assert params == {"a": {"x": 1, "y": {"z": 3}}, "b": {"w": [9]}}


@pytest.mark.parametrize("overlay", [{"c": {}}, {"a": {"typo": 1}}, {"a": {"y": {"q": 1}}}])
def test_merge_refuses_unknown_keys(overlay: dict[str, object]) -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}}
    with pytest.raises(ParamsError, match=r"o\.yaml: .*params\.yaml has no such key"):
        merge(params, overlay, source="o.yaml")


def run(root: Path, *commands: str) -> None:
    for command in commands:
        subprocess.run(shlex.split(command), check=True, cwd=root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with git and DVC."""
    root = tmp_path / "a project"
    (root / "data" / "mine").mkdir(parents=True)
    (root / "data" / "mine" / "1.txt").write_text("old")
    (root / "params.yaml").write_text("a: 1\n")
    run(root, "git init -q", "git config user.name n", "git config user.email e")
    with Repo.init(str(root)) as repo:
        repo.add(str(root / "data" / "mine"))
    run(root, "git add -A", "git commit -qm first")
    return root


def test_tracked_data_comes_as_it_is_now(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `dvc` itself is not on the PATH."""
    at = tmp_path / "elsewhere"
    (root / "data" / "mine" / "1.txt").write_text("new")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    prepare(root, {"a": 2}, at, source="o.yaml")
    assert (at / "data" / "mine" / "1.txt").read_text() == "new"
    assert (at / "params.yaml").read_text() == "a: 2\n"


def test_stages_run_once_for_all_workspaces(root: Path, tmp_path: Path) -> None:
    """Also where the committed lock names outputs that this machine has never made.

    The last one was killed before it was prepared.
    """
    log, cache = tmp_path / "runs", tmp_path / "a cache"
    (root / "dvc.yaml").write_text(
        "stages:\n  draw:\n    params: [a]\n    deps: [data/mine]\n    outs: [drawn]\n"
        f"    cmd: echo run >> {log} && date +%s%N > drawn\n"
    )
    repro = f"{shlex.quote(sys.executable)} -m dvc repro --quiet"
    run(root, repro, "git add -A", "git commit -qm run")
    shutil.rmtree(root / ".dvc" / "cache")
    (root / ".dvc" / "config.local").write_text(f"[cache]\n    dir = {cache}\n")
    run(root, f"git worktree add -q --detach {shlex.quote(str(tmp_path / 'killed'))}")
    for name in ("first", "second", "killed"):
        at = prepare(root, {}, tmp_path / name, source="o.yaml")
        run(at, repro)
        remove(root, at)
    assert log.read_text() == "run\n" * 2, "by whoever committed, and here"
    assert not (root / ".dvc" / "cache").exists()
