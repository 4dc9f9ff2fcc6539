import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from dvc.repo import Repo

from flows import study as study_module
from flows.study import (
    CODE,
    COMMIT,
    DATA,
    DEVICE,
    MESSAGE,
    PARAMS,
    STATE,
    TRIAL,
    Inputs,
    Results,
    Study,
    Trial,
    load,
)
from flows.study import trials as all_trials
from flows.workspace import git
from stages.core.runner import lock
from stages.core.runner.errors import ParamsError, WorkspaceBusy
from tests.conftest import ROOT
from tests.helpers.study_rows import NOW, ROW, STUDY, predicted
from tests.helpers.tiny import Workspace, make

"""Studies: which trials there are, what their rows hold, and going on after an end."""


def test_trials_are_the_product() -> None:
    changes = {t.label: t.changes for t in all_trials(STUDY)}
    assert list(changes) == [
        "one-seed0-fold5", "two-seed0-fold5", "one-seed1-fold5", "two-seed1-fold5",
    ]  # fmt: skip
    assert changes["one-seed0-fold5"] == {"a": {"x": 1, "y": 2, "seed": 0}, "b": {"fold": 5}}
    assert changes["two-seed1-fold5"] == {"a": {"x": 3, "seed": 1}, "b": {"fold": 5}}


@pytest.mark.parametrize("file", sorted((ROOT / "flows" / "studies").glob("*.yaml")))
def test_studies_fit_the_params(file: Path) -> None:
    from flows.sweep import Planner

    study = load(file)
    trials = all_trials(study)
    assert len(set(Planner(study).all_inputs().values())) == len(trials) > 1


@pytest.fixture
def small_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of two stages, as studies see it."""
    from flows import sweep

    stages = {
        "validate": {
            "cmd": "true", "params": ["validate"], "outs": ["data/validated"],
            "deps": ["data/images", "data/accepted.json", "stages/validate.py"],
        },
        "teacher": {
            "cmd": "true", "params": ["teacher"], "deps": ["data/validated", "stages/teacher.py"],
        },
    }  # fmt: skip
    (tmp_path / "dvc.yaml").write_text(json.dumps({"stages": stages}))
    params = {"data": {"dir": "data/images"}, "validate": {"seed": 1}, "teacher": {"seed": 1}}
    (tmp_path / "params.yaml").write_text(json.dumps(params))
    for name in ("data/images/1", "data/accepted.json", "stages/validate.py", "stages/teacher.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    Repo.init(str(tmp_path), no_scm=True).close()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "ROOT", tmp_path)
    return tmp_path


def test_a_row_depends_on_what_its_target_needs(small_project: Path) -> None:
    """On params, data and code up to the target, each under its own name."""
    from flows.sweep import Planner

    study = STUDY.model_copy(update={"base": {}, "trials": {"one": {}}, "grid": {}})

    def inputs(target: str) -> Inputs:
        planner = Planner(study.model_copy(update={"target": target}))
        (trial,) = all_trials(study)
        assert planner.all_inputs() == {"one": planner.inputs(trial)}
        return planner.inputs(trial)

    def edit(name: str) -> None:
        path = small_project / name
        path.write_text(path.read_text().replace("1", "2") + " ")

    validate, teacher = inputs("validate"), inputs("teacher")
    edit("data/accepted.json")
    assert inputs("validate") == validate
    edit("stages/teacher.py")
    assert inputs("validate") == validate
    other_code = inputs("teacher")
    assert other_code == dataclasses.replace(teacher, code=other_code.code) != teacher
    edit("data/images/1")
    other_data = inputs("teacher")
    assert other_data == dataclasses.replace(other_code, data=other_data.data) != other_code
    assert inputs("validate").data != validate.data
    params = json.loads((small_project / "params.yaml").read_text())
    params["teacher"]["seed"] = 3
    (small_project / "params.yaml").write_text(json.dumps(params))
    assert inputs("teacher") != other_data
    assert inputs("validate") == dataclasses.replace(validate, data=other_data.data)


def test_a_trial_with_images_of_its_own_depends_on_them(small_project: Path) -> None:
    from flows.sweep import Planner

    (small_project / "data/others").mkdir()
    (small_project / "data/others/1").write_text("1")
    trials = {"one": {}, "two": {"data": {"dir": "data/others"}}}
    study = STUDY.model_copy(
        update={"base": {}, "trials": trials, "grid": {}, "target": "validate"}
    )
    before = Planner(study).all_inputs()
    (small_project / "data/others/1").write_text("2")
    after = Planner(study).all_inputs()
    assert after["one"] == before["one"]
    assert after["two"] == dataclasses.replace(before["two"], data=after["two"].data)
    assert after["two"].data != before["two"].data


def test_a_typo_in_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("question: q\ntrials: {a: {}}\nshow: {x: y}\ngird: {}\n")
    with pytest.raises(ParamsError, match=r"s\.yaml: study\.gird"):
        load(tmp_path / "s.yaml")


def test_a_trial_that_the_grid_would_change_is_refused(tmp_path: Path) -> None:
    text = "question: q\ntrials: {a: {b: {c: 1}}}\nshow: {x: y}\ngrid: {b.c: [2, 3]}\n"
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"^s\.yaml: study\.trials\.a: sets b\.c, which the grid"):
        load(tmp_path / "s.yaml")


def test_a_row_is_done_with_its_params_and_data(tmp_path: Path) -> None:
    """Whatever the code: the summary says so. A row may not tell its data."""
    results, (first, second, *_) = Results(tmp_path, "s"), all_trials(STUDY)
    results.add(first, ROW, None)
    results.add(second, {k: v for k, v in ROW.items() if k not in (DATA, CODE, DEVICE)}, None)
    for trial in (first, second):
        assert results.is_done(trial, NOW)
        assert results.is_done(trial, dataclasses.replace(NOW, code="other"))
        assert not results.is_done(trial, dataclasses.replace(NOW, params="other"))
    other_data = dataclasses.replace(NOW, data="other")
    assert not results.is_done(first, other_data)
    assert results.is_done(second, other_data)


def test_a_commit_may_look_like_a_number(tmp_path: Path) -> None:
    results = Results(tmp_path, "s")
    for trial in all_trials(STUDY):
        results.add(trial, ROW | {COMMIT: "0012345", PARAMS: "1e5"}, predicted(1.0, seed=0))
    assert set(results.rows[COMMIT]) == {"0012345"}
    assert results.is_done(all_trials(STUDY)[0], dataclasses.replace(NOW, params="1e5"))


def test_a_row_never_stands_without_its_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, (trial, *_) = Results(tmp_path, "s"), all_trials(STUDY)
    real, written = study_module._replace, list[Path]()

    def killed(path: Path, write: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(path, write)

    monkeypatch.setattr(study_module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        results.add(trial, ROW, predicted(3.0, seed=0))
    assert not results.is_done(trial, NOW)
    monkeypatch.setattr(study_module, "_replace", real)
    results.add(trial, ROW, predicted(3.0, seed=0))
    assert results.is_done(trial, NOW)
    assert len(results.predictions) == 80


SMALL = """
question: Does it go on?
target: validate
trials:
  good: {}
  bad: {validate: {min_per_class: 100000}}
  refused: {validate: {image_px: 7}}
grid:
  validate.fold: [0, 1]
show: {images: validate.images}
"""


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    yield from make(tmp_path)


@pytest.mark.slow
def test_a_sweep_goes_on_and_a_failed_trial_does_not_end_it(workspace: Workspace) -> None:
    (workspace.root / "flows" / "studies" / "small_one.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "flows.sweep", "flows/studies/small_one.yaml"]
    first_trial = workspace.root / ".worktrees" / "small_one-good-fold0"
    lock, prepared = first_trial / "dvc.lock", first_trial / ".dvc" / "config.local"
    with subprocess.Popen(
        command, cwd=workspace.root, env=workspace.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as first:  # fmt: skip
        while not (prepared.exists() and lock.exists() and "ingest:" in lock.read_text()):
            assert first.poll() is None
            time.sleep(0.1)
        first.kill()
    half_removed = workspace.root / ".worktrees" / "small_one-bad-fold1" / "data"
    half_removed.mkdir(parents=True)
    output = workspace.run(command, fails=True)
    assert re.search(r"good-fold0 +Stage 'ingest' didn't change", output), output
    assert "4 trials failed" in output, output
    rows = pd.read_csv(workspace.root / "data/reports/studies/small_one.csv").set_index(TRIAL)
    assert rows[STATE].to_dict() == {
        "good-fold0": "done", "bad-fold0": "failed", "refused-fold0": "failed",
        "good-fold1": "done", "bad-fold1": "failed", "refused-fold1": "failed",
    }  # fmt: skip
    assert "at least 100000 images" in rows.loc["bad-fold0", MESSAGE]
    assert "validate.image_px = 7" in rows.loc["refused-fold1", MESSAGE]
    assert "at least 100000 images" in rows.loc["bad-fold1", MESSAGE]
    assert rows.loc["good-fold0", "validate.splits.test.images"] > 0
    assert "distill.parameters" not in rows
    assert not list((workspace.root / ".worktrees").iterdir())
    again = workspace.run(command, fails=True)
    assert "good-fold0" not in again.split("| trial")[0]
    assert "| good | 2 |" in workspace.run([*command, "--summary"])


def test_label_is_fit_for_a_file() -> None:
    assert Trial("a", {"distill.seed": 3, "validate.fold": 0}, {}).label == "a-seed3-fold0"
    assert Trial("a/b", {"distill.out_indices": [0, 1]}, {}).label == "a_b-out_indices_0_1_"


def test_a_row_is_on_the_disk_before_it_replaces_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut could leave an empty file otherwise."""
    written: list[str] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        assert path.stat().st_size > 0
        written.append(path.name)

    monkeypatch.setattr("os.fsync", fsync)
    Results(tmp_path, "s").add(all_trials(STUDY)[0], ROW, predicted(3.0, seed=0))
    assert written == [".partial.s.parquet", ".partial.s.csv"]


ONE = "question: q\ntarget: validate\ntrials: {a: {}}\nshow: {images: validate.images}\n"


def test_images_are_checked_before_they_are_hashed(
    small_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import sweep

    (small_project / "one.yaml").write_text(ONE)
    (small_project / "data/images/a\x1b]0;pwn\a.png").symlink_to("/nope")
    message = sweep.sweep.fn("one.yaml").message
    assert message is not None
    assert r"a\x1b]0;pwn\x07.png: a link to /nope" in message
    monkeypatch.setattr(sys, "argv", ["sweep", "one.yaml", "--summary"])
    with pytest.raises(SystemExit, match=r"^error: .*pwn\\x07\.png: a link to /nope"):
        sweep.main()


def test_images_of_a_study_may_be_outside_the_project(
    small_project: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from flows.sweep import Planner

    images = tmp_path_factory.mktemp("mnt")
    (images / "1.png").write_bytes(b"1")
    pipeline = (small_project / "dvc.yaml").read_text()
    (small_project / "dvc.yaml").write_text(pipeline.replace("data/images", str(images)))
    params = (small_project / "params.yaml").read_text()
    (small_project / "params.yaml").write_text(params.replace("data/images", str(images)))
    study = Study(question="?", target="validate", trials={"a": {}}, show={"images": "x.y"})
    before = Planner(study).all_inputs()["a"]
    (images / "1.png").write_bytes(b"2")
    after = Planner(study).all_inputs()["a"]
    assert after == dataclasses.replace(before, data=after.data) != before


def test_a_sweep_without_git_says_so(small_project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import sweep

    (small_project / "one.yaml").write_text(ONE)
    monkeypatch.setenv("PATH", "/nowhere")
    assert sweep.sweep.fn("one.yaml").message == "git: no such command; install git"


@pytest.fixture
def one_trial(small_project: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A study that runs without Prefect, in a project under git."""
    from flows import sweep

    def without_prefect(**_: object) -> Any:
        return lambda *arguments, return_state: sweep.run_trial.fn(*arguments)

    git(small_project, "init", "--quiet")
    git(small_project, "add", "--all")
    identity = ["-c", "user.name=n", "-c", "user.email=e"]
    git(small_project, *identity, "commit", "--quiet", "-m", "start")
    monkeypatch.setattr(sweep, "_commit", lambda: "c")
    monkeypatch.setattr("flows.params.check", lambda *_, **__: None)
    monkeypatch.setattr("flows.ui.follow", lambda *_: print)
    monkeypatch.setattr(sweep.run_trial, "with_options", without_prefect)
    return STUDY.model_copy(
        update={"base": {}, "trials": {"one": {}}, "grid": {}, "target": "validate", "gains": {}}
    )


def test_a_second_call_for_a_study_ends_at_once(
    one_trial: Study, small_project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import sweep

    results, calls = Results(small_project / "rows", "s"), list[str]()

    def call_again(*_: object, **__: object) -> None:
        calls.append("")
        assert len(calls) == 1, "the second call runs a trial"
        with pytest.raises(WorkspaceBusy, match=r"^this workspace is held by a sweep of s \(pid "):
            sweep.run_plan("s", one_trial, results, None)
        assert results.rows.empty
        sweep.run_plan("another", one_trial, Results(small_project / "rows", "o"), -1)
        raise ParamsError("the end")

    monkeypatch.setattr("flows.params.check", call_again)
    failed, _ = sweep.run_plan("s", one_trial, results, None)
    assert failed == "1 trial failed"
    assert results.rows[MESSAGE].tolist() == ["the end"]


def test_a_workspace_that_another_run_holds_is_left_alone(
    one_trial: Study, small_project: Path
) -> None:
    from flows import sweep, workspace

    (trial,) = all_trials(one_trial)
    at = small_project / ".worktrees" / "s-one"
    kept = small_project / ".worktrees" / "s-kept" / "looks"
    workspace.prepare(small_project, {}, at, source="a test", shared=kept.parent)
    (small_project / "stages" / "teacher.py").write_text("new")
    results = Results(small_project / "rows", "s")
    with lock.held(at, "another run"):
        failed, _ = sweep.run_plan("s", one_trial, results, None)
        assert failed == "1 trial failed"
        assert (at / "stages" / "teacher.py").read_text() == "stages/teacher.py"
    assert kept.exists()
    assert results.rows.empty
    failed, _ = sweep.run_plan("s", one_trial, results, None)
    assert results.rows[TRIAL].tolist() == [trial.label]
    assert not at.exists()
    assert not kept.exists()


@pytest.mark.slow
def test_a_trial_that_hangs_is_ended(
    small_project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import connection, server, sweep

    (small_project / "one.yaml").write_text(ONE)
    monkeypatch.setenv("PREFECT_HOME", str(small_project / "prefect"))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.setattr(sweep, "_commit", lambda: "c")

    def hang(*_: object, **__: object) -> None:
        # Pytest's own limit has the alarm; Prefect's limit then waits for the end of a call.
        for _i in range(1000):
            time.sleep(0.1)

    monkeypatch.setattr("flows.params.check", hang)
    monkeypatch.setattr(sweep, "TRIAL_LIMIT_S", 1)
    with server.starting() as wait, connection.connected(wait):
        state = sweep.sweep("one.yaml", return_state=True)
    assert state.message == "1 trial failed"
    assert "TimedOut" in capsys.readouterr().out
