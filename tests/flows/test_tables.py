from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from flows.study import (
    CODE,
    COMMIT,
    DATA,
    MESSAGE,
    STATE,
    Inputs,
    Results,
    Study,
    Trial,
)
from flows.study import trials as all_trials
from flows.tables import agreed_cells, summary
from stages.core.results.metrics import auroc, auroc_within_groups
from tests.helpers.study_rows import NOW, ROW, STUDY, predicted


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
    assert rest[-3] == "95 % intervals: 6; each misses the true value one time in twenty."
    assert rest[-1].startswith("4 of 4 trials (commits c); mean")


def gains(lines: list[str]) -> dict[tuple[str, str], list[str]]:
    """The cells of the table of gains in a summary, by trial and gain."""
    start = lines.index("| trial | gain | AUROC | AUROC, within groups |") + 2
    rows = [line.strip("| ").split(" | ") for line in lines[start : lines.index("", start)]]
    return {(trial, gain): cells for trial, gain, *cells in rows}


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


def test_a_model_that_two_trials_share_has_no_gain(tmp_path: Path) -> None:
    """Where they differ only in what comes after it; one other place on the grid is enough."""
    results, (_, first, _, second) = Results(tmp_path, "s"), all_trials(STUDY)
    for trial in all_trials(STUDY):
        results.add(trial, ROW, predicted(3.0, seed=trial.place["a.seed"]))
    lines = summary(STUDY, results).splitlines()
    assert gains(lines)["two", "over one"] == ["-", "-"]
    assert "95 % intervals: 4; each misses the true value one time in twenty." in lines
    results.add(second, ROW, predicted(3.0, seed=2))
    assert first.name == second.name == "two"
    assert gains(summary(STUDY, results).splitlines())["two", "over one"][0] != "-"


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
    # Other images than the built-in ones, whose raters are not known.
    results.add(all_trials(study)[0], ROW, predicted(1.0, seed=0))
    assert summary(study, results).splitlines()[2] == "| one | 1 | - | - |"


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
    assert "95 % intervals: 2;" in lines[-3]
