"""Studies: which trials there are, what their rows hold, and going on after an end."""

import copy
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from flows import study as study_module
from flows.study import COMMIT, MESSAGE, PARAMS, STATE, TRIAL, Results, Study, Trial, load, summary
from flows.study import trials as all_trials
from stages.core.runner.errors import ParamsError
from tests.conftest import ROOT
from tests.helpers.tiny import Workspace, make

STUDY = Study(
    question="?",
    base={"a": {"x": 1}},
    trials={"one": {"a": {"y": 2}}, "two": {"a": {"x": 3}}},
    grid={"a.seed": [0, 1], "b.fold": [5]},
    show={"AUROC": "distill.student.auroc"},
    gains={"over control": ["student", "control"], "over one": ["student", "one/student"]},
)


def summed(study: Study, results: Results) -> str:
    """The summary where no param has changed since."""
    rows = results.rows
    planned = {trial.label: "" for trial in all_trials(study)}
    return summary(study, results, planned | dict(zip(rows[TRIAL], rows[PARAMS], strict=True)))


def test_trials_are_the_product() -> None:
    found = {t.label: t.changes for t in all_trials(STUDY)}
    assert list(found) == [
        "one-seed0-fold5", "two-seed0-fold5", "one-seed1-fold5", "two-seed1-fold5",
    ]  # fmt: skip
    assert found["one-seed0-fold5"] == {"a": {"x": 1, "y": 2, "seed": 0}, "b": {"fold": 5}}
    assert found["two-seed1-fold5"] == {"a": {"x": 3, "seed": 1}, "b": {"fold": 5}}


@pytest.mark.parametrize("file", sorted((ROOT / "flows" / "studies").glob("*.yaml")))
def test_studies_fit_the_params(file: Path) -> None:
    from flows.sweep import digest, sections_of

    study = load(file)
    found, sections = all_trials(study), sections_of(study)
    assert len({digest(trial, sections) for trial in found}) == len(found) > 1


def test_only_what_a_trial_depends_on_makes_it_another(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows import sweep

    values = {"data": {"dir": "d"}, "teacher": {"seed": 1}, "distill": {"seed": 2}}
    monkeypatch.setattr(sweep, "load_yaml", lambda _: copy.deepcopy(values))
    sections = sweep.sections_of(STUDY.model_copy(update={"target": "teacher"}))
    assert {"data", "ingest", "validate", "teacher"} <= sections
    assert "distill" not in sections

    def found() -> str:
        return sweep.digest(Trial("t", {}, {}), sections)

    before = found()
    values["distill"]["seed"] = 3
    assert found() == before
    values["teacher"]["seed"] = 3
    assert found() != before


def test_a_typo_in_a_study_is_refused(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("question: q\ntrials: {a: {}}\nshow: {x: y}\ngird: {}\n")
    with pytest.raises(ParamsError, match=r"s\.yaml: study\.gird"):
        load(tmp_path / "s.yaml")


def predicted(strength: float, seed: int) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    label = np.arange(80) % 2
    logits = {
        f"{model}/class {k}": draws.normal(s * (label == k), 1)
        for model, s in (("student", strength), ("control", 0.5))
        for k in range(2)
    }
    return pd.DataFrame({"file_name": label, "group": np.arange(80) // 8, "label": label} | logits)


def test_summary(tmp_path: Path) -> None:
    results = Results(tmp_path, "s")
    for i, trial in enumerate(all_trials(STUDY)):
        row = {
            PARAMS: f"p{i}",
            COMMIT: "c",
            STATE: "done",
            MESSAGE: "",
            "distill.student.auroc": 0.5,
        }
        strength = {"one": 3.0, "two": 0.5}[trial.name]
        results.add(trial, row, predicted(strength, seed=i))
    first = all_trials(STUDY)[0]
    results.add(first, {PARAMS: "p", COMMIT: "c", STATE: "failed", MESSAGE: "bad"}, None)
    assert len(results.rows) == 4
    assert not results.is_done(first, "p")
    results.add(
        first,
        {PARAMS: "p", COMMIT: "c", STATE: "done", MESSAGE: "", "distill.student.auroc": 0.7},
        predicted(3.0, seed=0),
    )
    assert results.is_done(first, "p")
    assert not results.is_done(first, "other params")
    head, _, one, two, _, end = summed(STUDY, results).splitlines()
    assert head == "| trial | runs | AUROC | over control | over one |"
    assert one.startswith("| one | 2 | 0.600 ± 0.141 | +0.3")
    assert one.endswith("] | - |")
    assert two.startswith("| two | 2 | 0.500 |")
    assert "-0.3" in two.split("|")[-2]
    assert end.startswith("4 of 4 trials (commits c); mean")


def test_gains_over_other_images_are_none(tmp_path: Path) -> None:
    results = Results(tmp_path, "s")
    row = {PARAMS: "p", COMMIT: "c", STATE: "done", MESSAGE: "", "distill.student.auroc": 0.5}
    for trial in all_trials(STUDY):
        table = predicted(3.0, seed=0)
        if trial.name == "two":
            table["file_name"] = table["file_name"].iloc[::-1].to_numpy()
        results.add(trial, row, table)
    two = summed(STUDY, results).splitlines()[3]
    assert two.endswith("] | - |")
    assert "| two | 2 | 0.500 | +0." in two


def test_the_front(tmp_path: Path) -> None:
    study = Study(
        question="?",
        trials={name: {} for name in ("good", "fast", "both", "beaten", "equal")},
        grid={"a.seed": [0, 1]},
        show={"AUROC": "x.auroc", "speed": "x.speed"},
        front=["AUROC", "speed"],
    )
    figures = {"good": (0.9, 1), "fast": (0.7, 9), "both": (0.8, 5), "beaten": (0.8, 4)}
    figures["equal"] = figures["good"]
    results = Results(tmp_path, "s")
    for trial in all_trials(study):
        auroc, speed = figures[trial.name]
        sign = 1 if trial.place["a.seed"] else -1
        row = {PARAMS: "p", COMMIT: "c", STATE: "done", MESSAGE: ""}
        row |= {"x.auroc": auroc + 0.05 * sign, "x.speed": speed}
        results.add(trial, row, None)
    lines = summed(study, results).splitlines()[2:7]
    assert [line.split("|")[-2].strip() for line in lines] == ["yes", "yes", "yes", "no", "yes"]


def test_gains_are_means_over_seeds(tmp_path: Path) -> None:
    study = Study(
        question="?",
        trials={"a": {}},
        show={"AUROC": "x.y"},
        gains={"over control": ["student", "control"], "over teacher": ["student", "teacher"]},
    )
    results, (trial,) = Results(tmp_path, "s"), all_trials(study)
    first, second = predicted(3.0, seed=0), predicted(0.0, seed=1)
    second = second.rename(columns=lambda name: name.replace("/", " 1/"))
    again = second[[c for c in second if "1/" in c]]
    teacher = first.filter(like="control/").rename(
        columns=lambda n: n.replace("control", "teacher")
    )
    row = {PARAMS: "p", COMMIT: "c", STATE: "done", MESSAGE: "", "x.y": 0.5}
    results.add(trial, row, pd.concat([first, again, teacher], axis=1))

    def gain(better: pd.DataFrame, worse: pd.DataFrame) -> float:
        tables = [(t.astype("float16"), m) for t, m in ((better, "student"), (worse, "control"))]
        left, right = (
            roc_auc_score(first["label"], logits[:, 1] - logits[:, 0])
            for logits in (t.filter(regex=f"^{m}( 1)?/").to_numpy("float32") for t, m in tables)
        )
        return float(left - right)

    line = summed(study, results).splitlines()[2].split("|")
    turned = study.model_copy(update={"gains": {"over student": ["teacher", "student"]}})
    against = summed(turned, results).splitlines()[2].split("|")
    assert against[-2].startswith(f" {-(gain(first, first) + gain(again, first)) / 2:+.3f} [")
    assert line[-3].startswith(f" {(gain(first, first) + gain(again, again)) / 2:+.3f} [")
    assert line[-2].startswith(f" {(gain(first, first) + gain(again, first)) / 2:+.3f} [")


def test_a_row_never_stands_without_its_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, (trial, *_) = Results(tmp_path, "s"), all_trials(STUDY)
    row = {PARAMS: "p", COMMIT: "c", STATE: "done", MESSAGE: ""}
    real, written = study_module._replace, []

    def killed(path: Path, write: Any) -> None:
        if written:
            raise KeyboardInterrupt
        written.append(path)
        real(path, write)

    monkeypatch.setattr(study_module, "_replace", killed)
    with pytest.raises(KeyboardInterrupt):
        results.add(trial, row, predicted(3.0, seed=0))
    assert not results.is_done(trial, "p")
    monkeypatch.setattr(study_module, "_replace", real)
    results.add(trial, row, predicted(3.0, seed=0))
    assert results.is_done(trial, "p")
    assert len(results.predictions) == 80


def test_summary_before_the_first_row(tmp_path: Path) -> None:
    assert "0 of 4 trials" in summed(STUDY, Results(tmp_path, "s"))


def test_summary_tells_rows_of_other_params(tmp_path: Path) -> None:
    """And leaves out those of trials that the study no longer has."""
    results, found = Results(tmp_path, "s"), all_trials(STUDY)
    for trial in found[:3]:
        row = {PARAMS: "old", COMMIT: "c", STATE: "done", MESSAGE: "", "distill.student.auroc": 0.5}
        results.add(trial, row, predicted(3.0, seed=0))
    planned = {t.label: "new" for t in found[1:]} | {found[1].label: "old"}
    lines = summary(STUDY, results, planned).splitlines()
    assert lines[-2].startswith("2 of 3 trials")
    assert lines[-1] == f"Run with params that have changed since: {found[2].label}."


def test_summary_by_model(tmp_path: Path) -> None:
    study = STUDY.model_copy(
        update={"models": {"small": "distill.student", "none": "x.y"}, "show": {"AUROC": "auroc"}}
    )
    results = Results(tmp_path, "s")
    for trial in all_trials(study)[:3]:
        row = {PARAMS: "p", COMMIT: "", STATE: "done", MESSAGE: "", "distill.student.auroc": 0.25}
        results.add(trial, row, predicted(3.0, seed=0))
    lines = summed(study, results).splitlines()
    assert lines[0] == "| trial | runs | model | AUROC |"
    assert lines[2:6] == [
        "| one | 2 | small | 0.250 |", "| one | 2 | none | - |",
        "| two | 1 | small | 0.250 |", "| two | 1 | none | - |",
    ]  # fmt: skip
    assert lines[7] == "| trial | over control | over one |"
    assert [line.split(" | ")[0] for line in lines[9:11]] == ["| one", "| two"]
    assert lines[-1].startswith("3 of 4 trials")


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
def made(tmp_path: Path) -> Iterator[Workspace]:
    yield from make(tmp_path)


@pytest.mark.slow
def test_a_sweep_goes_on_and_a_failed_trial_does_not_end_it(made: Workspace) -> None:
    (made.root / "flows" / "studies" / "small_one.yaml").write_text(SMALL)
    command = [sys.executable, "-m", "flows.sweep", "flows/studies/small_one.yaml"]
    first_trial = made.root / ".worktrees" / "small_one-good-fold0"
    lock, prepared = first_trial / "dvc.lock", first_trial / ".dvc" / "config.local"
    with subprocess.Popen(
        command, cwd=made.root, env=made.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as first:  # fmt: skip
        while not (prepared.exists() and lock.exists() and "ingest:" in lock.read_text()):
            assert first.poll() is None
            time.sleep(0.1)
        first.kill()
    in_the_way = made.root / ".worktrees" / "small_one-bad-fold1" / "of somebody else"
    in_the_way.mkdir(parents=True)
    output = made.run(command, fails=True)
    assert re.search(r"good-fold0 +Stage 'ingest' didn't change", output), output
    assert "4 trials failed" in output, output
    rows = pd.read_csv(made.root / "data/reports/studies/small_one.csv").set_index(TRIAL)
    assert rows[STATE].to_dict() == {
        "good-fold0": "done", "bad-fold0": "failed", "refused-fold0": "failed",
        "good-fold1": "done", "bad-fold1": "failed", "refused-fold1": "failed",
    }  # fmt: skip
    assert "at least 100000 images" in rows.loc["bad-fold0", MESSAGE]
    assert "validate.image_px = 7" in rows.loc["refused-fold1", MESSAGE]
    assert "already exists" in rows.loc["bad-fold1", MESSAGE]
    assert in_the_way.exists()
    shutil.rmtree(in_the_way.parent)
    assert rows.loc["good-fold0", "validate.splits.test.images"] > 0
    assert "distill.parameters" not in rows
    assert not list((made.root / ".worktrees").iterdir())
    again = made.run(command, fails=True)
    assert "good-fold0" not in again.split("| trial")[0]
    assert "| good | 2 |" in made.run([*command, "--summary"])


def test_label_is_fit_for_a_file() -> None:
    assert Trial("a", {"distill.seed": 3, "validate.fold": 0}, {}).label == "a-seed3-fold0"
    assert Trial("a/b", {"distill.out_indices": [0, 1]}, {}).label == "a_b-out_indices_0_1_"
