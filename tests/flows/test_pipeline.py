"""What a user, or the form in the UI, may ask of a run; and how it is refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows import pipeline, workspace
from flows.graph import Graph
from flows.options import Options
from stages.core.runner import lock
from stages.core.runner.errors import ParamsError
from tests.conftest import ROOT


def test_only_stages_of_the_run_can_be_forced() -> None:
    graph = Graph(ROOT, "ingest")
    options = Options(target="ingest", force=["ingest", "teacher", "../x/dvc.yaml:y"])
    expected = r"^force = \.\./x/dvc\.yaml:y, teacher: not among .*expected some of ingest$"
    with pytest.raises(ParamsError, match=expected):
        pipeline.run_stages(graph, options)


def test_an_overlay_from_the_form_is_not_any_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("password: hunter2")
    expected = "expected one of full, gpu, photos, tiny"
    with (
        pytest.raises(ParamsError, match=expected) as error,
        pipeline.held_workspace(str(secret), "a run"),
    ):
        pass
    assert "hunter2" not in str(error.value)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"PREFECT_API_URL": "http://127.0.0.1:9/api"}, "or unset PREFECT_API_URL"),
        ({"PREFECT_HOME": "/proc/nowhere"}, "error: /proc/nowhere: "),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, environment: dict[str, str], words: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "flows.train"],
        cwd=ROOT, env=os.environ | {"PREFECT_HOME": str(tmp_path)} | environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert process.returncode == 1
    assert words in process.stderr
    assert process.stderr.count("\n") == 1


def test_a_name_in_an_error_does_not_control_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("data: {dir: images}\n")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a\x1b]0;pwn\a\n.png").symlink_to("/nope")
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    message = pipeline.train.fn(Options()).message
    assert message is not None
    assert r"a\x1b]0;pwn\x07\n.png: a link to /nope" in message
    assert message.isprintable()


def test_nothing_changes_under_the_run_that_holds_a_workspace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    for name in ("flows.params.check", "flows.look.check_images"):
        monkeypatch.setattr(name, lambda *_, **__: None)
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "code.py").write_text("old")
    (tmp_path / workspace.OVERLAYS).mkdir(parents=True)
    overlay = tmp_path / workspace.OVERLAYS / "x.yaml"
    overlay.write_text("a: 2\n")
    workspace.git(tmp_path, "init", "--quiet")
    Repo.init(str(tmp_path)).close()
    workspace.git(tmp_path, "add", "--all")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    workspace.git(tmp_path, *identity, "commit", "--quiet", "-m", "start")

    at = workspace.prepare(tmp_path, {"a": 2}, workspace.path(tmp_path, "x"), source="x")
    overlay.write_text("a: 3\n")
    (tmp_path / "code.py").write_text("new")
    with lock.held(at, "a flow run"):
        message = pipeline.train.fn(Options(overlay="x")).message
        assert (at / "params.yaml").read_text() == "a: 2\n"
        assert (at / "code.py").read_text() == "old"
    assert "this workspace is held by a flow run (pid " in str(message)
