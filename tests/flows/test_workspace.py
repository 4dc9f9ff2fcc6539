import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.workspace import merge, overlay_file, path, prepare, remove
from stages.core.runner.errors import ParamsError, WorkspaceFailed
from tests.conftest import ROOT


def test_merge_changes_only_what_is_named() -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}, "b": {"w": [1, 2]}}
    merge(params, {"a": {"y": {"z": 3}}, "b": {"w": [9]}}, source="o.yaml")
    assert params == {"a": {"x": 1, "y": {"z": 3}}, "b": {"w": [9]}}


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        ({"c": {}}, "c = {}: params.yaml has no such key; there are alpha"),
        ({"alpha": {"typo": 1}}, "alpha.typo = 1: params.yaml has no such key; there are x, y"),
        (
            {"alpha": {"y": {"epoch": 1}}},
            "alpha.y.epoch = 1: params.yaml has no such key; is epochs meant?",
        ),
        (
            {"alpha": {"epochs": 1}},
            "alpha.epochs = 1: params.yaml has no such key; is y.epochs meant?",
        ),
        (
            {"alpha": {"epoch": 1}},
            "alpha.epoch = 1: params.yaml has no such key; is y.epochs meant?",
        ),
    ],
)
def test_merge_refuses_unknown_keys(overlay: dict[str, object], words: str) -> None:
    params = {"alpha": {"x": 1, "y": {"epochs": 2}}}
    with pytest.raises(ParamsError) as caught:
        merge(params, overlay, source="o.yaml")
    assert str(caught.value) == f"o.yaml: {words}"


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


def test_a_project_that_was_moved_takes_its_workspaces_along(root: Path, tmp_path: Path) -> None:
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    (at / "checkpoint").write_text("half way")
    moved = root.rename(tmp_path / "moved")
    again = prepare(moved, {"a": 3}, moved / ".worktrees" / "tiny", source="o.yaml")
    assert (again / "params.yaml").read_text() == "a: 3\n"
    assert (again / "checkpoint").exists()
    run(again, "git status", f"{shlex.quote(sys.executable)} -m dvc status --quiet")
    remove(moved, again)
    assert not again.exists()


def test_a_copy_of_a_project_leaves_the_originals_workspaces_alone(
    root: Path, tmp_path: Path
) -> None:
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    copy = tmp_path / "copy"
    shutil.copytree(root, copy, symlinks=True)
    prepare(copy, {"a": 3}, copy / ".worktrees" / "tiny", source="o.yaml")
    remove(copy, copy / ".worktrees" / "tiny")
    assert not (copy / ".worktrees" / "tiny").exists()
    assert (at / "params.yaml").read_text() == "a: 1\n"
    run(at, "git status")
    assert prepare(root, {}, at, source="o.yaml") == at


def test_a_copy_of_a_workspace_is_no_workspace(root: Path) -> None:
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    shutil.copytree(at, other := root / ".worktrees" / "other")
    (other / "stale").touch()
    prepare(root, {"a": 2}, other, source="o.yaml")
    assert not (other / "stale").exists()
    prepare(root, {}, at, source="o.yaml")
    remove(root, other)
    assert at.exists()


def test_a_project_without_a_commit_is_told_what_to_do(root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / ".git")
    run(root, "git init -q")
    with pytest.raises(WorkspaceFailed, match=r"no commit .* `git add --all && git commit"):
        prepare(root, {}, tmp_path / "w", source="o.yaml")


def test_a_git_hook_does_not_lead_us_astray() -> None:
    """Git sets GIT_DIR for its hooks."""
    code = "import os, flows; print({'GIT_DIR', 'GIT_INDEX_FILE'} & set(os.environ))"
    environment = os.environ | {"GIT_DIR": "/elsewhere", "GIT_INDEX_FILE": "/elsewhere/index"}
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True
    ).stdout
    assert output == "set()\n"


@pytest.fixture
def overlays(root: Path) -> Path:
    """A project with overlays inside it, and YAML files around it."""
    for name in ("flows/overlays/tiny.yaml", "flows/overlays/...yaml", "mine/tiny.yaml"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("a: 2\n")
    (root.parent / "secret.yaml").write_text("password: hunter2\n")
    (root / "flows" / "overlays" / "link.yaml").symlink_to(root.parent / "secret.yaml")
    (root / "flows" / "overlays" / "loop.yaml").symlink_to("loop.yaml")
    return root


@pytest.mark.parametrize("name", ["tiny", "tiny.yaml", "flows/overlays/tiny.yaml"])
def test_overlays_go_by_their_name(overlays: Path, name: str) -> None:
    assert overlay_file(overlays, name) == overlays.resolve() / "flows/overlays/tiny.yaml"
    assert path(overlays, name) == overlays / ".worktrees" / "tiny"


@pytest.mark.parametrize(
    "name",
    [
        "../secret.yaml", "/etc/hostname", "{}/../secret.yaml", "link", "loop", "...yaml",
        "flows/overlays/...yaml", "..", ".", "", "missing", ".dvc/config", "a\0b", "x" * 5000,
    ],
)  # fmt: skip
def test_an_overlay_from_elsewhere_is_refused_and_not_shown(overlays: Path, name: str) -> None:
    with pytest.raises(ParamsError, match=r"expected one of .*tiny") as error:
        path(overlays, name.replace("{}", str(overlays)))
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize("name", ["own", "own.yaml", "./own.yaml"])
def test_an_overlay_may_lie_in_the_root(overlays: Path, name: str) -> None:
    for file in ("own.yaml", "tiny.yaml"):
        (overlays / file).write_text("a: 3\n")
    assert overlay_file(overlays, name) == overlays.resolve() / "own.yaml"
    assert overlay_file(overlays, "tiny.yaml").parent == overlays.resolve() / "flows/overlays"


def test_two_overlays_of_one_name_have_two_workspaces(overlays: Path) -> None:
    assert path(overlays, "mine/tiny.yaml") != path(overlays, "tiny")
    assert path(overlays, "mine/tiny.yaml").parent == overlays / ".worktrees"


@pytest.mark.parametrize("name", ["Smith, J", "mine #1", 'it\'s "mine", J', "caf\u00e9"])
def test_a_project_may_have_any_name(root: Path, tmp_path: Path, name: str) -> None:
    project = root.rename(tmp_path / name)
    at = prepare(project, {}, project / ".worktrees" / "tiny", source="o.yaml")
    assert (at / "data" / "mine" / "1.txt").read_text() == "old"
    with Repo(str(at)) as repo:
        assert repo.cache.legacy.path == str(project / ".dvc" / "cache")
        assert repo.config["cache"]["type"] == ["reflink", "hardlink", "copy"]


def test_tracked_data_may_be_in_any_folder_of_data(root: Path) -> None:
    (root / "data" / "of" / "2026").mkdir(parents=True)
    (root / "data" / "of" / "2026" / "1.txt").write_text("1")
    with Repo(str(root)) as repo:
        repo.add(str(root / "data" / "of" / "2026"))
    (root / "data" / "of" / "2026" / "1.txt").write_text("2")
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    assert (at / "data" / "of" / "2026" / "1.txt").read_text() == "2"


def test_a_linked_folder_comes_along(root: Path, tmp_path: Path) -> None:
    """And what takes the link's place in the project does not change what it led to."""
    (images := tmp_path / "images").mkdir()
    (images / "1.txt").write_text("the user's own")
    link = root / "data" / "linked"
    link.symlink_to("../../images")
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    assert (at / "data" / "linked").readlink() == images
    prepare(root, {}, at, source="o.yaml")
    link.unlink()
    link.mkdir()
    (link / "1.txt").write_text("new")
    prepare(root, {}, at, source="o.yaml")
    assert (at / "data" / "linked" / "1.txt").read_text() == "new"
    shutil.rmtree(link)
    link.symlink_to(images)
    prepare(root, {}, at, source="o.yaml")
    link.unlink()
    link.mkdir()
    (link / "1.txt").write_text("tracked")
    with Repo(str(root)) as repo:
        repo.add(str(link))
    prepare(root, {}, at, source="o.yaml")
    assert (at / "data" / "linked" / "1.txt").read_text() == "tracked"
    assert (images / "1.txt").read_text() == "the user's own"


def test_committed_files_that_became_a_link_are_not_deleted_through_it(
    root: Path, tmp_path: Path
) -> None:
    (root / "images").mkdir()
    (root / "images" / "1.txt").write_text("1")
    run(root, "git add -A", "git commit -qm images")
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    (root / "images").rename(tmp_path / "images")
    (root / "images").symlink_to(tmp_path / "images")
    for stage in ("before", "after"):
        prepare(root, {}, at, source="o.yaml")
        assert (at / "images").readlink() == tmp_path / "images", stage
        run(root, "git add -A")
    assert (tmp_path / "images" / "1.txt").exists()


def test_a_file_may_become_a_folder_and_the_other_way_round(root: Path) -> None:
    (root / "one").write_text("1")
    (root / "other").mkdir()
    (root / "other" / "file").write_text("1")
    run(root, "git add -A", "git commit -qm files")
    at = prepare(root, {}, root / ".worktrees" / "tiny", source="o.yaml")
    (root / "one").unlink()
    shutil.rmtree(root / "other")
    (root / "one").mkdir()
    (root / "one" / "file").write_text("2")
    (root / "other").write_text("2")
    for _ in range(2):
        prepare(root, {}, at, source="o.yaml")
        assert (at / "one" / "file").read_text() == "2"
        assert (at / "other").read_text() == "2"


def test_half_a_workspace_is_made_anew(root: Path) -> None:
    """One whose removal or whose making was killed."""
    at = root / ".worktrees" / "tiny"
    (at / "data").mkdir(parents=True)
    prepare(root, {}, at, source="o.yaml")
    (root / ".git" / "worktrees" / "tiny" / "locked").write_text("initializing")
    (root / ".git" / "worktrees" / "tiny" / "HEAD").write_text("")
    (at / "half").touch()
    prepare(root, {"a": 2}, at, source="o.yaml")
    assert not (at / "half").exists()
    assert (at / "params.yaml").read_text() == "a: 2\n"
    (root / ".git" / "worktrees" / "tiny" / "locked").write_text("initializing")
    shutil.rmtree(at)
    prepare(root, {}, at, source="o.yaml")
    remove(root, at)
    assert not at.exists()
