import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.workspace import merge, prepare
from stages.core.errors import ParamsError


def test_merge_changes_only_what_is_named() -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}, "b": {"w": [1, 2]}}
    merge(params, {"a": {"y": {"z": 3}}, "b": {"w": [9]}}, source="o.yaml")
    assert params == {"a": {"x": 1, "y": {"z": 3}}, "b": {"w": [9]}}


@pytest.mark.parametrize("overlay", [{"c": {}}, {"a": {"typo": 1}}, {"a": {"y": {"q": 1}}}])
def test_merge_refuses_unknown_keys(overlay: dict[str, object]) -> None:
    params = {"a": {"x": 1, "y": {"z": 2}}}
    with pytest.raises(ParamsError, match=r"o\.yaml: .*params\.yaml has no such key"):
        merge(params, overlay, source="o.yaml")


def test_tracked_data_comes_as_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where `dvc` itself is not on the PATH."""
    root, at = tmp_path / "a project", tmp_path / "elsewhere"
    (root / "data" / "mine").mkdir(parents=True)
    (root / "data" / "mine" / "1.txt").write_text("old")
    (root / "params.yaml").write_text("a: 1\n")
    for command in ("init -q", "config user.name n", "config user.email e"):
        subprocess.run(["git", *command.split()], check=True, cwd=root)
    with Repo.init(str(root)) as repo:
        repo.add(str(root / "data" / "mine"))
    for command in ("add -A", "commit -qm first"):
        subprocess.run(["git", *command.split()], check=True, cwd=root)
    (root / "data" / "mine" / "1.txt").write_text("new")
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    prepare(root, {"a": 2}, at, source="o.yaml")
    assert (at / "data" / "mine" / "1.txt").read_text() == "new"
    assert (at / "params.yaml").read_text() == "a: 2\n"
