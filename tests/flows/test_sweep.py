"""Studies: which trials there are, what their rows hold, and going on after an end."""

import dataclasses
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dvc.repo import Repo
from sklearn.metrics import roc_auc_score

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
from flows.tables import agreed_cells, summary
from stages.core.results.metrics import auroc, auroc_within_groups
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


NOW = Inputs("p", "d", "k")
ROW = {
    PARAMS: "p", DATA: "d", CODE: "k", COMMIT: "c", DEVICE: "cpu", STATE: "done", MESSAGE: "",
    "distill.student.auroc": 0.5,
}  # fmt: skip


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
        strength = {"one": 3.0, "two": 0.5}[trial.name]
        results.add(trial, ROW, predicted(strength, seed=i))
    first = all_trials(STUDY)[0]
    results.add(first, ROW | {STATE: "failed", MESSAGE: "bad"}, None)
    assert len(results.rows) == 4
    assert not results.is_done(first, NOW)
    results.add(first, ROW | {"distill.student.auroc": 0.7}, predicted(3.0, seed=0))
    assert results.is_done(first, NOW)
    head, _, one, two, *rest = summary(STUDY, results).splitlines()
    assert head == "| trial | runs | AUROC | AUROC, within groups |"
    assert one == "| one | 2 | 0.600 ± 0.141 | 1 |"
    assert two == "| two | 2 | 0.500 | 0.741 ± 0.040 |"
    assert rest[1] == "| trial | gain | AUROC | AUROC, within groups |"
    table = gains(rest)
    assert list(table) == [("one", "over control"), ("two", "over control"), ("two", "over one")]
    assert table["one", "over control"][0].startswith("+0.3")
    assert table["two", "over one"][0].startswith("-0.253 [")
    assert rest[-3] == "95 % intervals: 6; each misses the true gain one time in twenty."
    assert rest[-1].startswith("4 of 4 trials (commits c); mean")


def gains(lines: list[str]) -> dict[tuple[str, str], list[str]]:
    """The cells of the table of gains in a summary, by trial and gain."""
    start = lines.index("| trial | gain | AUROC | AUROC, within groups |") + 2
    rows = [line.strip("| ").split(" | ") for line in lines[start : lines.index("", start)]]
    return {(trial, gain): cells for trial, gain, *cells in rows}


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


def test_gains_of_unlike_rows_are_named(tmp_path: Path) -> None:
    """Of other code, of other commits where no code is recorded, and of another CPU."""
    results, trials = Results(tmp_path, "s"), all_trials(STUDY)
    for trial in trials:
        results.add(trial, ROW, predicted(3.0, seed=0))
    assert summary(STUDY, results).splitlines()[14:] == []

    def warnings(**changes: str) -> list[str]:
        for trial in trials:
            results.add(trial, ROW | (changes if trial.name == "two" else {}), None)
        return summary(STUDY, results).splitlines()[14:]

    code = "Gains that pair rows of different code: over one (two)."
    devices = "Gains that pair rows of different devices: over one (two)."
    assert warnings(code="other", device="gpu") == [code, devices]
    not_recorded = "Hashes of code and data are not recorded for: "
    assert warnings(code="") == [code, f"{not_recorded}two-seed0-fold5, two-seed1-fold5."]
    for trial in trials:
        results.add(trial, ROW | {CODE: "", DATA: ""}, None)
    every = ", ".join(trial.label for trial in trials)
    assert summary(STUDY, results).splitlines()[14:] == [f"{not_recorded}{every}."]
    results.add(trials[0], ROW | {CODE: "", COMMIT: "d"}, None)
    assert code in summary(STUDY, results)


def test_gains_over_other_images_are_none(tmp_path: Path) -> None:
    results = Results(tmp_path, "s")
    for trial in all_trials(STUDY):
        table = predicted(3.0, seed=0)
        if trial.name == "two":
            table["file_name"] = table["file_name"].iloc[::-1].to_numpy()
        results.add(trial, ROW, table)
    table = gains(summary(STUDY, results).splitlines())
    assert table["two", "over one"] == ["-", "-"]
    assert all(cell.startswith("+0.") for cell in table["two", "over control"])


def test_the_front(tmp_path: Path) -> None:
    study = Study(
        question="?",
        trials={name: {} for name in ("good", "fast", "both", "beaten", "equal")},
        grid={"a.seed": [0, 1]},
        show={"AUROC": "x.auroc", "speed": "x.speed"},
        front=["AUROC", "speed"],
    )
    figures = {"good": (0.9, 1.0), "fast": (0.7, 9.0), "both": (0.8, 5.0), "beaten": (0.8, 4.0)}
    figures["equal"] = figures["good"]
    results = Results(tmp_path, "s")
    for trial in all_trials(study):
        auroc, speed = figures[trial.name]
        sign = 1 if trial.place["a.seed"] else -1
        row = {"x.auroc": auroc + 0.05 * sign, "x.speed": speed}
        results.add(trial, ROW | row, None)
    lines = summary(study, results).splitlines()[2:7]
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
    results.add(trial, ROW | {"x.y": 0.5}, pd.concat([first, again, teacher], axis=1))

    def gain(better: pd.DataFrame, worse: pd.DataFrame) -> float:
        tables = [(t.astype("float16"), m) for t, m in ((better, "student"), (worse, "control"))]
        left, right = (
            roc_auc_score(first["label"], logits[:, 1] - logits[:, 0])
            for logits in (t.filter(regex=f"^{m}( 1)?/").to_numpy("float32") for t, m in tables)
        )
        return float(left - right)

    table = gains(summary(study, results).splitlines())
    turned = study.model_copy(update={"gains": {"over student": ["teacher", "student"]}})
    against = gains(summary(turned, results).splitlines())["a", "over student"][0]
    over_control, over_teacher = (table["a", f"over {m}"][0] for m in ("control", "teacher"))
    assert against.startswith(f"{-(gain(first, first) + gain(again, first)) / 2:+.3f} [")
    assert over_control.startswith(f"{(gain(first, first) + gain(again, again)) / 2:+.3f} [")
    assert over_teacher.startswith(f"{(gain(first, first) + gain(again, first)) / 2:+.3f} [")


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


def test_summary_before_the_first_row(tmp_path: Path) -> None:
    assert "0 of 4 trials" in summary(STUDY, Results(tmp_path, "s"))


def test_summary_tells_rows_of_other_inputs(tmp_path: Path) -> None:
    """And leaves out those of trials that the study no longer has."""
    results, trials = Results(tmp_path, "s"), all_trials(STUDY)
    for trial in [*trials[:3], Trial("gone", {}, {})]:
        results.add(trial, ROW, predicted(3.0, seed=0))
    planned = {trial.label: NOW for trial in trials}
    assert summary(STUDY, results, planned).splitlines()[-1].startswith("3 of 4 trials")
    first, second, third, _ = (trial.label for trial in trials)
    planned[first] = Inputs("other", "d", "k")
    planned[second] = Inputs("p", "other", "other")
    planned[third] = Inputs("p", "d", "other")
    assert summary(STUDY, results, planned).splitlines()[-3:] == [
        f"Run with params that changed since: {first}.",
        f"Run with data that changed since: {second}.",
        f"Run with code that changed since: {second}, {third}; delete their rows to run them "
        "again.",
    ]


def test_a_failure_is_told_letter_by_letter(tmp_path: Path) -> None:
    results = Results(tmp_path, "s")
    row = ROW | {STATE: "failed", MESSAGE: "<b>.png | `x`: is no image"}
    results.add(all_trials(STUDY)[0], row, None)
    assert summary(STUDY, results).splitlines()[-1] == (
        "one-seed0-fold5 failed: &#60;b&#62;.png &#124; \\`x\\`: is no image"
    )


def test_summary_by_model(tmp_path: Path) -> None:
    study = STUDY.model_copy(
        update={"models": {"small": "distill.student", "none": "x.y"}, "show": {"AUROC": "auroc"}}
    )
    results = Results(tmp_path, "s")
    for trial in all_trials(study)[:3]:
        row = ROW | {"distill.student.auroc": 0.25}
        results.add(trial, row, predicted(1.0, seed=0))
    lines = summary(study, results).splitlines()
    assert lines[0] == "| trial | runs | model | AUROC | AUROC, within groups |"
    within = roc_auc_within(predicted(1.0, seed=0))
    assert lines[2:6] == [
        f"| one | 2 | small | 0.250 | {within:.3f} |", "| one | 2 | none | - | - |",
        f"| two | 1 | small | 0.250 | {within:.3f} |", "| two | 1 | none | - | - |",
    ]  # fmt: skip
    assert {trial for trial, _ in gains(lines)} == {"one", "two"}
    assert lines[-1].startswith("3 of 4 trials")


def roc_auc_within(table: pd.DataFrame) -> float:
    """AUROC of the student within groups, which all have as many pairs."""
    score = table["student/class 1"] - table["student/class 0"]
    groups = table.assign(score=score.astype("float16")).groupby("group")
    return float(np.mean([roc_auc_score(g["label"], g["score"]) for _, g in groups]))


def test_figures_within_groups_of_old_rows_are_those_of_the_predictions(tmp_path: Path) -> None:
    """A row that has the metric keeps it; what no predictions tell stays empty."""
    show = {
        "AUROC": "distill.student.auroc", "validation": "distill.validation.student.auroc",
        "wide": "distill.parameters",
    }  # fmt: skip
    study = STUDY.model_copy(update={"show": show, "gains": {}})
    results, (old, _, new, *_) = Results(tmp_path, "s"), all_trials(study)
    row = ROW | {"distill.validation.student.auroc": 0.4, "distill.parameters": 7}
    results.add(old, row, predicted(1.0, seed=0))
    head, _, line, *_ = summary(study, results).splitlines()
    assert head == "| trial | runs | AUROC | AUROC, within groups | validation | wide |"
    within = roc_auc_within(predicted(1.0, seed=0))
    assert line == f"| one | 1 | 0.500 | {within:.3f} | 0.400 | 7 |"
    key = "distill.student.auroc_within_groups"
    results.add(new, row | {key: within + 0.1}, predicted(1.0, seed=0))
    line = summary(study, results).splitlines()[2]
    assert line.startswith(f"| one | 2 | 0.500 | {within + 0.05:.3f} ± 0.071 |")


def test_recall_at_few_false_alarms_is_counted_from_the_predictions(tmp_path: Path) -> None:
    """Against a threshold that two of the forty images of the first class reach."""
    show = {"recall": "distill.student.recall_at_5_percent_false_alarms"}
    study = STUDY.model_copy(update={"show": show, "gains": {}})
    results, table = Results(tmp_path, "s"), predicted(1.0, seed=0)
    results.add(all_trials(study)[0], ROW, table)
    score = (table["student/class 1"].astype("float16") - table["student/class 0"]).to_numpy()
    third_highest = np.sort(score[table["label"] == 0])[-3]
    recall = float((score[table["label"] == 1] > third_highest).mean())
    assert 0.1 < recall < 0.9
    assert summary(study, results).splitlines()[2] == f"| one | 1 | {recall:.3f} |"


def test_cells_that_raters_doubt_are_left_out_where_asked(tmp_path: Path) -> None:
    key = "distill.student.auroc_where_raters_agree"
    show = {"agreed": key, "within": f"{key}_within_groups"}
    study = STUDY.model_copy(update={"show": show, "gains": {}})
    files = [f"images/cell{k:04}.png" for k in range(1, 81)]
    table = predicted(1.0, seed=0).assign(file_name=files)
    sure = table[table["file_name"].isin(agreed_cells())]
    assert 40 < len(sure) < 80
    # In the package's list, cell 3 has a probability of 1, cell 58 one of a third or two.
    assert "images/cell0003.png" in agreed_cells()
    assert "images/cell0058.png" not in agreed_cells()
    results = Results(tmp_path, "s")
    results.add(all_trials(study)[0], ROW, table)
    labels, groups = sure["label"].to_numpy(), sure["group"].to_numpy()
    logits = np.stack([sure[f"student/class {k}"].astype("float16") for k in (0, 1)], 1)
    expected = auroc(logits, labels), auroc_within_groups(logits, labels, groups)
    line = summary(study, results).splitlines()[2]
    assert line == "| one | 1 | {:.3f} | {:.3f} |".format(*expected)


def test_without_groups_there_is_no_figure_within_them(tmp_path: Path) -> None:
    """Though near duplicates may have formed groups that have two classes."""
    results = Results(tmp_path, "s")
    for trial in all_trials(STUDY):
        results.add(trial, ROW | {"validate.groups_given": False}, predicted(1.0, seed=0))
    lines = summary(STUDY, results).splitlines()
    assert lines[0] == "| trial | runs | AUROC |"
    cells = gains(lines)["one", "over control"]
    assert cells[0].startswith("+0.")
    assert cells[1] == "-"
    assert "95 % intervals: 3;" in lines[-3]


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
