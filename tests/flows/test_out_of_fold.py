"""Out-of-fold predictions: each labelled image once, and by models that never saw its group."""

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from flows import out_of_fold
from flows.out_of_fold import (
    FOLD,
    MEASURED,
    MODELS,
    SCRATCH,
    Fold,
    assembled,
    decisions,
    figures,
    plan,
    probabilities,
)
from flows.study import trials
from stages.core.dataset.data import HAS_GROUP
from stages.core.results import metrics, predictions
from stages.core.runner.errors import DataError, ParamsError
from tests.helpers.tiny import Workspace, make

CLASSES = ["functional", "defective"]
ALL_MODELS = dict.fromkeys([*MEASURED, "finetuned", "real", "synthetic", "uncalibrated"])


def manifest(number: int, *, groups: int = 8, size: int = 12) -> pd.DataFrame:
    """Two folds of whole groups: the even ones and the odd ones."""
    rows = [
        (f"{g}_{i}.png", f"g{g}", "mono", CLASSES[i % 2], "test" if g % 2 == number else split)
        for g, split in zip(range(groups), ["train", "train", "val", "val"] * groups, strict=False)
        for i in range(size)
    ]
    return pd.DataFrame(rows, columns=["file_name", "group", "domain", "label", "split"])


def predicted(table: pd.DataFrame, strength: float = 1.0, **other: float) -> pd.DataFrame:
    """Logits of all models; those of `strength` tell the classes apart."""
    tested = table[table["split"] == "test"].sort_values("group", ascending=False)
    label = (tested["label"] == CLASSES[1]).to_numpy(int)
    columns: dict[str, Any] = {"file_name": tested["file_name"], "group": tested["group"]}
    for seed, model in enumerate(ALL_MODELS):
        draws = np.random.default_rng(seed)
        for k, name in enumerate(CLASSES):
            signal = other.get(model, strength) * (label == k)
            columns[f"{model}/{name}"] = signal + draws.normal(size=len(tested))
    return pd.DataFrame(columns | {"label": label})


def folds(**strengths: float) -> list[Fold]:
    return [Fold(k, manifest(k), predicted(manifest(k), **strengths)) for k in (0, 1)]


def test_each_labelled_image_has_one_row() -> None:
    both = folds()
    table = assembled(both)
    assert table["file_name"].tolist() == sorted(both[0].manifest["file_name"])
    assert set(table.loc[table[FOLD] == 0, "group"]) == {"g0", "g2", "g4", "g6"}
    for fold in both:
        truth = fold.predictions.set_index("file_name")
        rows = table[table[FOLD] == fold.number].set_index("file_name")
        assert (rows["student/defective"] == truth.loc[rows.index, "student/defective"]).all()
        labels = rows["label"].map(CLASSES.index)
        assert (labels == truth.loc[rows.index, "label"]).all()


def test_probabilities_are_those_of_the_logits() -> None:
    table = assembled(folds())
    result = probabilities(table)
    head = ["file_name", "group", "domain", "label", "fold"]
    assert result.columns.tolist() == head + [f"{m}/{c}" for m in MODELS for c in CLASSES]
    for model in MODELS:
        expected = softmax(predictions.logits(table, model), axis=1)
        assert predictions.logits(result, model) == pytest.approx(expected)


def leak(fold: Fold, split: str) -> Fold:
    """An image of a group that is tested moves into another split."""
    changed = fold.manifest.copy()
    row = changed.index[changed["split"] == "test"][0]
    changed.loc[row, "split"] = split
    logits = fold.predictions
    others = logits[logits["file_name"] != changed.loc[row, "file_name"]]
    return Fold(fold.number, changed, others)


@pytest.mark.parametrize("split", ["train", "val", "unlabelled"])
def test_a_leak_is_noticed(split: str) -> None:
    first, second = folds()
    with pytest.raises(DataError, match=r"fold 1: 1 of its test groups .*\('g1'\).*stratified"):
        assembled([first, leak(second, split)])


def test_an_image_without_a_prediction_is_noticed() -> None:
    first, second = folds()
    with pytest.raises(DataError, match=r"48 of 96 labelled images .*'1_0.png', .* and 45 more"):
        assembled([first])
    with pytest.raises(DataError, match=r"48 of 96 labelled images .*'0_0.png'"):
        assembled([first, first, second])
    short = Fold(1, second.manifest, second.predictions.iloc[1:])
    with pytest.raises(DataError, match=rf"fold 1: predictions .* differ \('7_0.png'\).*{SCRATCH}"):
        assembled([first, short])


def test_unlabelled_images_are_not_asked_for() -> None:
    both = []
    for fold in folds():
        more = fold.manifest.iloc[:3].assign(file_name=["a", "b", "c"], label="", group="h")
        more["split"] = "unlabelled"
        both.append(Fold(fold.number, pd.concat([fold.manifest, more]), fold.predictions))
    assert len(assembled(both)) == 96


def test_names_are_no_formulas() -> None:
    both = folds()
    for fold in both:
        fold.manifest["file_name"] = "=" + fold.manifest["file_name"]
        fold.predictions["file_name"] = "'=" + fold.predictions["file_name"]
    assert assembled(both)["file_name"].str.startswith("'=").all()


def test_figures_pair_no_images_of_two_folds() -> None:
    """A constant that one fold's logits have more of changes nothing."""
    table = assembled(folds(student=2.0))
    rows = {row["model"]: row for row in figures(table)}
    assert list(rows) == list(MEASURED)
    assert float(rows["student"]["mean"]) > float(rows["control"]["mean"]) + 0.05
    part = table[table[FOLD] == 1]
    labels = part["label"].map(CLASSES.index).to_numpy(np.int64)
    expected = metrics.auroc(predictions.logits(part, "student"), labels)
    assert rows["student"]["fold 1"] == f"{expected:.3f}"
    shifted = table.copy()
    shifted.loc[shifted[FOLD] == 1, "student/defective"] += 7
    assert figures(shifted) == figures(table)
    alone = table.assign(**{HAS_GROUP: False})
    assert {row["within groups"] for row in figures(alone)} == {"-"}


@pytest.mark.parametrize("strength", [1.0, 5.0])
def test_decisions_have_the_word_of_their_interval(strength: float) -> None:
    table = assembled(folds(synthetic=strength))
    table["uncalibrated/defective"] *= strength
    rows = decisions(table, 10.0)
    assert [row["to help"] for row in rows] == ["shown" if strength > 1 else "not shown"] * 3
    assert rows[0]["decision and its figure"].startswith("synthetic images instead of real ones")
    assert re.match(r"temperature \d+\.\d\d instead of 1", rows[2]["decision and its figure"])
    assert all(re.fullmatch(r"[+-]\d\.\d{3} \[.+\]", row["gain"]) for row in rows)


PARAMS: dict[str, Any] = {
    "data": {"dir": "data/nowhere"},
    "validate": {"split": "stratified_group", "target_domain": None, "folds": 3},
}


def test_every_fold_is_a_trial() -> None:
    study = plan("full", {"teacher": {"seed": 7}}, PARAMS)
    every = trials(study)
    assert [trial.label for trial in every] == ["full-fold0", "full-fold1", "full-fold2"]
    assert every[2].changes == {"teacher": {"seed": 7}, "validate": {"fold": 2}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"split": "random"}, "validate.split = 'random': expected stratified_group or hash"),
        ({"split": "column"}, "validate.split = 'column'"),
        ({"target_domain": "mono"}, "validate.target_domain = 'mono'"),
    ],
)
def test_splits_that_do_not_test_each_image_are_refused(
    changes: dict[str, Any], words: str
) -> None:
    values = PARAMS | {"validate": PARAMS["validate"] | changes}
    with pytest.raises(ParamsError, match=words):
        plan("full", {}, values)


def test_folders_that_set_the_splits_are_refused(
    tmp_path: Path, image_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = image_folder()
    for split in ("train", "test"):
        for label in ("a", "b"):
            (folder / split / label).mkdir(parents=True)
            for image in list(folder.glob("g*_*.png"))[:2]:
                image.rename(folder / split / label / image.name)
    for rest in (*folder.glob("*.png"), folder / "metadata.csv"):
        rest.unlink()
    monkeypatch.setattr(out_of_fold, "ROOT", tmp_path)
    with pytest.raises(ParamsError, match=r"data\.dir = 'images': its folders set the splits"):
        plan("full", {}, PARAMS | {"data": {"dir": "images"}})


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    yield from make(tmp_path)


@pytest.mark.slow
def test_two_tiny_folds_and_going_on(workspace: Workspace) -> None:
    """The second call finds one fold done, runs the other, and writes the table."""
    workspace.set("validate", "folds", 2)
    command = [sys.executable, "-m", "flows.out_of_fold"]
    output = workspace.run([*command, "--minutes", "0.01"])
    assert "1 of 2 folds are left; call again" in output, output
    result = workspace.root / "data/reports/out_of_fold/default.csv"
    assert not result.exists()
    output = workspace.run(command)
    assert "default-fold0" not in output.partition("| trial |")[0], output
    decided = output.partition("| decision ")[2]
    assert re.findall(r"(instead of .+?):.+ \| (?:not )?shown \|", decided) == [
        "instead of real ones", "instead of no refinement", "instead of 1",
    ], output  # fmt: skip
    table = pd.read_csv(result)
    assert f"{len(table)} images: data/reports/out_of_fold/default.csv" in output
    for number in (0, 1):
        manifest = pd.read_csv(workspace.root / SCRATCH / f"default-fold{number}.manifest.csv")
        assert sorted(table["file_name"]) == sorted(manifest["file_name"])
        seen = manifest.query("split != 'test'")
        assert set(seen["split"]) == {"train", "val"}
        mine = table[table[FOLD] == number]
        assert len(mine)
        assert not set(mine["group"]) & set(seen["group"])
    for model in MODELS:
        assert predictions.logits(table, model).sum(1) == pytest.approx(1, abs=1e-3)
    assert not list((workspace.root / ".worktrees").glob("out_of_fold-*"))
