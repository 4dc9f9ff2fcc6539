"""Predicts each labelled image with models that never saw its group: `python -m flows.out_of_fold`.

The graph runs once per fold of the test split, each time as a trial of a study (flows/sweep.py), so
an interrupted call resumes. The test splits together are all labelled images; their predictions
become one table, data/reports/out_of_fold/NAME.csv, with one row per image: file_name, group,
domain, label, fold, and MODEL/CLASS, the probability of each class by teacher, student and shipped
model (the student as it ships: refined and calibrated, where that was shown to help).

The decisions of validation are checked on these images, too. The graph itself cannot decide by
them: a run would need the runs of the other folds, whose models have learned from its test images,
and nothing would be left to measure on.
"""

import argparse
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed
from scipy.special import softmax

from flows import ROOT, look, ui, workspace
from flows.study import TRIAL, Results, Study, Trial, trials
from flows.sweep import Planner, run_flow, run_plan
from flows.tables import markdown_table
from flows.terminal import printable
from stages.core.dataset.data import HAS_GROUP
from stages.core.intake.sources import open_source
from stages.core.results import metrics, predictions
from stages.core.results.calibration import calibrate
from stages.core.results.escape import spreadsheet_cell
from stages.core.results.metrics import Paired, mean_paired_gain
from stages.core.results.schema.base import Difference
from stages.core.runner.disk import settle
from stages.core.runner.errors import AtelierError, DataError, ParamsError
from stages.core.runner.params import load_yaml
from stages.core.runner.text import terminal

REPORTS = Path("data/reports/out_of_fold")
# Rows and manifests of the folds, from which a call resumes.
SCRATCH = Path("data/scratch/out_of_fold")
MANIFEST = Path("data/validated/manifest.csv")
# What is known of an image beside its predictions.
IMAGE = ["file_name", "group", "domain", "label"]
# In the table of all images.
MODELS = ("teacher", "student", "shipped")
# In the printed figures; the probe and the control are what the others are compared with.
MEASURED = ("probe", "teacher", "control", "student", "shipped")
FOLD = "fold"
MOST_NAMES = 3


@dataclass(frozen=True)
class Fold:
    """One run of the graph.

    Attributes:
        number: of the fold that is its test split.
        manifest: its images, in all splits: the columns `IMAGE`, and split; all are text.
        predictions: its models' logits on the test split, as `predictions.write` has them.
    """

    number: int
    manifest: pd.DataFrame
    predictions: pd.DataFrame


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(map(repr, names[:MOST_NAMES])) + more


def assembled(folds: Sequence[Fold]) -> pd.DataFrame:
    """One row per labelled image: the columns `IMAGE`, fold, and MODEL/CLASS, the logits.

    Raises: DataError if a model has seen another image of a group that it predicts, in training or
        in validation, or if a labelled image is not predicted exactly once.
    """
    parts = []
    for fold in folds:
        is_test = fold.manifest["split"] == "test"
        groups = fold.manifest["group"]
        if seen := sorted(set(groups[is_test]) & set(groups[~is_test])):
            raise DataError(
                f"fold {fold.number}: {len(seen)} of its test groups are in other splits, too "
                f"({_names(seen)}), so its models have seen them; expected whole groups: set "
                "validate.split to stratified_group or hash"
            )
        tested = fold.manifest.loc[is_test, IMAGE].map(spreadsheet_cell)
        if HAS_GROUP in fold.manifest:
            tested[HAS_GROUP] = fold.manifest[HAS_GROUP] == "True"
        logits = fold.predictions.drop(columns="label")
        merged = tested.merge(logits, on=["file_name", "group"], how="outer", indicator="origin")
        if unpaired := sorted(merged.loc[merged["origin"] != "both", "file_name"]):
            raise DataError(
                f"fold {fold.number}: predictions and manifest differ ({_names(unpaired)}); "
                f"expected those of one run: delete {SCRATCH} and call again"
            )
        merged = merged.drop(columns="origin")
        merged.insert(len(IMAGE), FOLD, fold.number)
        parts.append(merged)
    table = pd.concat(parts, ignore_index=True)
    manifests = pd.concat([fold.manifest for fold in folds])
    labelled = manifests.loc[manifests["label"] != "", "file_name"].map(spreadsheet_cell).unique()
    times = table["file_name"].value_counts().reindex(labelled, fill_value=0)
    if wrong := times.index[times != 1].tolist():
        raise DataError(
            f"{len(wrong)} of {len(labelled)} labelled images are not in exactly one fold's test "
            f"split ({_names(wrong)}); expected each in one: validate must make the splits "
            "(stratified_group or hash), for all domains"
        )
    return table.sort_values("file_name", ignore_index=True)


def classes_of(table: pd.DataFrame) -> list[str]:
    """The classes in the order of the logits."""
    prefix = f"{MODELS[0]}/"
    return [name.removeprefix(prefix) for name in table if name.startswith(prefix)]


def probabilities(table: pd.DataFrame) -> pd.DataFrame:
    """The table of all images as people get it, from `assembled`."""
    columns = {
        f"{model}/{name}": values
        for model in MODELS
        for name, values in zip(
            classes_of(table), softmax(predictions.logits(table, model), axis=1).T, strict=True
        )
    }
    return table[[*IMAGE, FOLD]].assign(**columns)


def _truth(table: pd.DataFrame) -> tuple[metrics.Labels, metrics.Groups]:
    """Labels and groups as `Paired` has them."""
    number = {spreadsheet_cell(name): k for k, name in enumerate(classes_of(table))}
    groups = pd.factorize(table["group"])[0]
    if HAS_GROUP in table:
        given = table.groupby("group")[HAS_GROUP].transform("any")
        groups = np.where(given, groups, -1 - groups)
    return table["label"].map(number).to_numpy(np.int64), groups


def figures(table: pd.DataFrame) -> list[dict[str, str]]:
    """AUROC of each model: on each fold, their mean, and within groups over all folds.

    Logits of two folds come from two models, so no pair of images spans folds.
    """
    labels, groups = _truth(table)
    rows = []
    for model in MEASURED:
        logits = predictions.logits(table, model)
        each = {
            number: metrics.auroc(logits[places], labels[places])
            for number, places in table.groupby(FOLD).indices.items()
        }
        within = metrics.auroc_within_groups(logits, labels, groups)
        rows.append(
            {"model": model}
            | {f"fold {number}": f"{value:.3f}" for number, value in each.items()}
            | {"mean": f"{np.mean(list(each.values())):.3f}"}
            | {"within groups": "-" if within is None else f"{within:.3f}"}
        )
    return rows


def decisions(table: pd.DataFrame, max_temperature: float) -> list[dict[str, str]]:
    """What validation decides in each run, checked on all labelled images.

    Synthetic images, by AUROC within each fold that did not refuse them; calibration, by the mean
    cross-entropy of groups that the temperature was not fitted on. 95 % intervals over all groups.
    """
    labels, groups = _truth(table)
    logits = {name: predictions.logits(table, name) for name in ("synthetic", "real", "student")}
    folds = [
        places
        for places in table.groupby(FOLD).indices.values()
        if logits["synthetic"].size and np.isfinite(logits["synthetic"][places]).all()
    ]
    rows: list[tuple[str, Difference, Difference | None]] = []
    for name, reference in (("real", "real ones"), ("student", "no refinement")) if folds else ():
        better, worse = logits["synthetic"], logits[name]
        pairs = [
            Paired(better[places], worse[places], labels[places], groups[places])
            for places in folds
        ]
        gain = mean_paired_gain(pairs)
        what = f"synthetic images instead of {reference}: AUROC"
        rows.append((what, gain, gain.within_groups))
    calibration = calibrate(
        predictions.logits(table, "uncalibrated"), labels, groups, max_temperature
    )
    what = f"temperature {calibration.fitted:.2f} instead of 1: mean cross-entropy, in nats less"
    rows.append((what, calibration.gain, None))
    return [
        {
            "decision and its figure": what,
            "gain": str(gain),
            "within groups": str(within or "-"),
            "to help": "shown" if gain.is_shown else "not shown",
        }
        for what, gain, within in rows
    ]


def plan(name: str, changes: dict[str, Any], values: dict[str, Any]) -> Study:
    """The study that runs the graph once per fold.

    Args:
        name: of the trials.
        changes: the keys of params.yaml that differ.
        values: all params, with these changes.

    Raises: ParamsError for splits that do not come from folds of whole groups; DataError.
    """
    validate = values["validate"]
    if validate["split"] not in ("stratified_group", "hash"):
        raise ParamsError(
            f"validate.split = {validate['split']!r}: expected stratified_group or hash, which "
            "keep groups whole and test each image in one fold"
        )
    if validate["target_domain"] is not None:
        raise ParamsError(
            f"validate.target_domain = {validate['target_domain']!r}: images of other domains "
            "would never be tested; expected null"
        )
    folder = ROOT / values["data"]["dir"]
    if folder.is_dir() and open_source(folder).split_folders:
        raise ParamsError(
            f"data.dir = {values['data']['dir']!r}: its folders set the splits, so most images "
            "would never be tested; expected a folder in which validate makes the splits"
        )
    return Study(
        question="What do models predict of images whose groups they have not seen?",
        base=changes,
        target="export",
        trials={name: {}},
        grid={"validate.fold": list(range(validate["folds"]))},
        show={
            "validation": "distill.validation.student.auroc",
            "teacher": "teacher.finetuned.auroc",
            "student": "distill.student.auroc",
            "control": "distill.control.auroc",
            "shipped": "export.auroc",
        },
        gains={
            "teacher over probe": ["finetuned", "probe"],
            "student over control": ["student", "control"],
        },
    )


@flow(name="out-of-fold")
def out_of_fold(overlay: str | None = None, minutes: float | None = None) -> State[Any]:
    """Run the folds that are not done yet; start none after `minutes`. Write table and figures."""
    try:
        return _run_folds(overlay, minutes)
    except AtelierError as error:
        return Failed(message=terminal(str(error)))


def _run_folds(overlay: str | None, minutes: float | None) -> State[Any]:
    file = workspace.overlay_file(ROOT, overlay) if overlay else None
    name = file.stem if file else "default"
    changes = load_yaml(file) if file else {}
    values = load_yaml(ROOT / "params.yaml")
    workspace.merge(values, changes, source=name)
    look.check_images(ROOT, changes, source=name)
    study = plan(name, changes, values)
    results = Results(ROOT / SCRATCH, name)

    def manifest(trial: Trial) -> Path:
        return ROOT / SCRATCH / f"{trial.label}.manifest.csv"

    def keep(trial: Trial, at: Path) -> None:
        manifest(trial).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(at / MANIFEST, manifest(trial))

    failed, summary = run_plan(f"out_of_fold-{name}", study, results, minutes, keep)
    if failed:
        return Failed(message=failed)
    planned = Planner(study).all_inputs()
    every = trials(study)
    left = [trial for trial in every if not results.is_done(trial, planned[trial.label])]
    if left:
        print(f"{len(left)} of {len(every)} folds are left; call again", flush=True)
        return Completed()
    logits = results.predictions
    table = assembled(
        [
            Fold(
                trial.place["validate.fold"],
                pd.read_csv(manifest(trial), dtype=str, keep_default_na=False),
                logits[logits[TRIAL] == trial.label].drop(columns=TRIAL),
            )
            for trial in every
        ]
    )
    path = ROOT / REPORTS / f"{name}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    probabilities(table).to_csv(partial, index=False, float_format="%.6g", lineterminator="\n")
    settle(partial, path)
    tables = (figures(table), decisions(table, values["export"]["max_temperature"]))
    page = "\n\n".join([summary, *("\n".join(markdown_table(rows)) for rows in tables)])
    create_markdown_artifact(page, key=ui.artifact_key("out-of-fold", name))
    print(printable(page), flush=True)
    print(f"{len(table)} images: {path.relative_to(ROOT)}", flush=True)
    return Completed()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.out_of_fold", description=__doc__)
    parser.add_argument("--overlay", help="other params, as `python -m flows.train` takes them")
    parser.add_argument("--minutes", type=float, help="start no fold after this time")
    arguments = parser.parse_args()
    run_flow(lambda: out_of_fold(arguments.overlay, arguments.minutes, return_state=True))


if __name__ == "__main__":
    main()
