"""Splits: groups stay whole, shares are about right, old images stay where they are."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.core.intake import splits
from stages.core.intake.duplicates import Pairs
from stages.core.intake.splits import (
    Method,
    Unit,
    leaking,
    leaking_unlabelled,
    towards,
    with_hidden_labels,
)
from stages.core.runner.errors import DataError
from tests.helpers.manifests import built, split

NO_PAIRS: Pairs = np.empty((0, 2), np.int64)


@pytest.mark.parametrize("method", ["stratified_group", "hash", "random"])
def test_shares_are_about_right(method: Method) -> None:
    manifest = built(groups=400)
    shares = split(manifest, method, folds=5, val_folds=4).value_counts(normalize=True)
    assert shares["test"] == pytest.approx(0.2, abs=0.05)
    assert shares["val"] == pytest.approx(0.8 / 4, abs=0.05)
    assert shares["train"] == pytest.approx(0.8 * 3 / 4, abs=0.05)


@pytest.mark.parametrize("method", ["stratified_group", "hash"])
@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole(method: Method, seed: int) -> None:
    manifest = built(seed=seed)
    actual = split(manifest, method, seed=seed)
    assert set(actual) == {"train", "val", "test"}
    assert actual.groupby(manifest["group"]).nunique().eq(1).all()


def no_weighing(*_: Any, **__: Any) -> None:
    raise AssertionError("groups were weighed against each other")


@pytest.mark.parametrize("pairs", [0, 20])
def test_where_hardly_any_image_has_company(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = built(groups=1000, most=1)
    manifest.loc[manifest.index[-pairs:] if pairs else [], "group"] = manifest["group"][
        :pairs
    ].tolist()
    monkeypatch.setattr(splits, "StratifiedGroupKFold", no_weighing)
    places = [split(manifest, "stratified_group", fold=fold) for fold in range(4)]
    assert ((np.stack(places) == "test").sum(0) == 1).all()
    for actual in places:
        assert actual.groupby(manifest["group"]).nunique().eq(1).all()
        for _, stratum in actual.groupby(manifest["label"] + manifest["domain"]):
            assert abs((stratum == "test").sum() - len(stratum) / 4) <= 1 + pairs


def test_many_in_company_are_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits, "StratifiedGroupKFold", no_weighing)
    with pytest.raises(AssertionError, match="weighed"):
        split(built(), "stratified_group")


def test_random_tears_groups_and_keeps_the_strata() -> None:
    manifest = built()
    actual = split(manifest, "random")
    assert actual.groupby(manifest["group"]).nunique().gt(1).any()
    for _, stratum in actual.groupby(manifest["label"] + manifest["domain"]):
        assert abs((stratum == "test").sum() - len(stratum) / 4) <= 1


def test_strata_are_kept_by_group_about_as_well_as_groups_allow() -> None:
    manifest = built(groups=300)
    shares = (split(manifest, "stratified_group") == "test").groupby(manifest["label"]).mean()
    assert shares.between(0.2, 0.3).all()


@pytest.mark.parametrize("method", ["stratified_group", "hash", "random"])
def test_the_seed_and_nothing_else_decides(method: Method) -> None:
    manifest = built()
    first = split(manifest, method, seed=1)
    assert split(manifest, method, seed=1).equals(first)
    assert not split(manifest, method, seed=2).equals(first)


@pytest.mark.parametrize("method", ["stratified_group", "hash", "random"])
def test_every_image_is_tested_in_one_fold(method: Method) -> None:
    manifest = built()
    tested = sum((split(manifest, method, fold=f) == "test").astype(int) for f in range(4))
    assert (tested == 1).all()


def test_hash_never_moves_an_old_image() -> None:
    manifest = built(groups=200)
    draws = np.random.default_rng(0)
    whole = split(manifest, "hash")
    for count in (1, 10, len(manifest) // 2):
        remaining = manifest.iloc[np.sort(draws.choice(len(manifest), count, replace=False))]
        assert split(remaining, "hash").equals(whole[remaining.index])
    relabelled = manifest.assign(label="c", domain="")
    assert split(relabelled, "hash").equals(whole)


def test_hash_draws_test_and_val_apart() -> None:
    """Were they one draw, a fold would decide how large the validation split is."""
    manifest = built(groups=2000, most=1)
    for fold in range(4):
        actual = split(manifest, "hash", fold=fold)
        rest = actual[actual != "test"]
        assert (rest == "val").mean() == pytest.approx(0.2, abs=0.04)


def test_the_users_column_is_taken() -> None:
    manifest = built().assign(split=lambda t: np.resize(["train", "val", "test"], len(t)))
    assert split(manifest, "column").equals(manifest["split"])
    assert split(manifest, "column", seed=9, fold=3).equals(manifest["split"])


def test_a_validation_split_is_made_where_the_user_has_none() -> None:
    manifest = built()
    tested = manifest["group"].isin([f"g{g}" for g in range(15)])
    manifest["split"] = np.where(tested, "test", "train")
    given = manifest["split"].copy()
    actual = split(manifest, "column")
    assert (actual == "test").equals(given == "test")
    assert manifest["split"].equals(given)
    assert (actual == "val").sum() / (given == "train").sum() == pytest.approx(0.2, abs=0.1)
    assert actual.groupby(manifest["group"]).nunique().eq(1).all()


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("stratified_group", {"folds": 61}, "60 groups cannot be split into 61 folds"),
        ("stratified_group", {"val_folds": 50}, "groups cannot be split into 50 folds"),
        ("random", {"folds": 4000}, "images cannot be split into 4000 folds"),
        ("column", {}, "images have no split (0_0.png, 0_1.png"),
    ],
)
def test_what_cannot_be_split(method: Method, changes: dict[str, int], words: str) -> None:
    manifest = built()
    assert manifest["file_name"][1] == "0_1.png"
    with pytest.raises(DataError) as caught:
        split(manifest, method, **changes)
    assert words in str(caught.value)


@pytest.mark.parametrize("method", ["hash", "random"])
def test_what_is_drawn_one_by_one_is_representative_by_itself(method: Method) -> None:
    manifest = built()
    assert split(manifest, method).equals(split(manifest, method, val_split="fold"))


def test_the_test_split_does_not_depend_on_the_validation_split() -> None:
    manifest = built()
    actual, before = (
        split(manifest, "stratified_group", val_split=name) for name in ("representative", "fold")
    )
    assert (actual == "test").equals(before == "test")
    assert not (actual == "val").equals(before == "val")


def test_images_of_the_target_domain_do_not_choose() -> None:
    """So their groups and their profile have no say in which others do."""
    manifest = built()
    target = manifest["domain"] == "poly"
    changed = manifest.assign(mean=manifest["mean"].where(~target, 200))
    actual, other = (
        split(table, "stratified_group", target_domain="poly") for table in (manifest, changed)
    )
    assert actual.equals(other)
    assert not actual.equals(split(changed, "stratified_group"))
    rest = actual[~target & (actual != "test")]
    assert (rest == "val").mean() == pytest.approx(0.2, abs=0.02)


def test_an_index_with_gaps_is_kept() -> None:
    manifest = built().sample(frac=0.7, random_state=0)
    for method in ("stratified_group", "hash", "random"):
        assert split(manifest, method).index.equals(manifest.index)


def table(rows: list[tuple[str, str]]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["group", "split"], index=range(100, 100 + len(rows)))


def test_a_group_in_two_splits_leaks_from_the_lower() -> None:
    rows = [("a", "train"), ("a", "test"), ("a", "val"), ("b", "train"), ("c", "val")]
    assert leaking(table(rows), NO_PAIRS).to_dict() == {100: "test", 102: "test"}


def test_a_near_duplicate_in_two_splits_leaks_from_the_lower() -> None:
    rows = [("a", "train"), ("b", "val"), ("c", "train"), ("d", "train")]
    pairs = np.array([[0, 1], [2, 3]])
    assert leaking(table(rows), pairs).to_dict() == {100: "val"}


def test_likeness_is_passed_on() -> None:
    """By a pair to a group, and by that group's other image to another pair."""
    rows = [("a", "train"), ("b", "train"), ("b", "train"), ("c", "test"), ("d", "val")]
    pairs = np.array([[0, 1], [2, 3]])
    assert leaking(table(rows), pairs).to_dict() == {100: "test", 101: "test", 102: "test"}


def test_nothing_leaks_from_whole_groups() -> None:
    manifest = built()
    manifest["split"] = split(manifest, "stratified_group")
    assert leaking(manifest, NO_PAIRS).empty


def test_without_those_that_leak_nothing_leaks() -> None:
    draws = np.random.default_rng(0)
    manifest = built(groups=40)
    manifest["split"] = draws.choice(["train", "val", "test"], len(manifest), p=[0.9, 0.06, 0.04])
    pairs = np.sort(draws.integers(0, len(manifest), (10, 2)), 1)
    pairs = pairs[pairs[:, 0] < pairs[:, 1]]
    leaks = leaking(manifest, pairs)
    assert 0 < len(leaks) < len(manifest)
    places = manifest["split"].to_dict()
    remaining = set(manifest.index) - set(leaks.index)
    for a, b in pairs:
        assert not {a, b} <= remaining or places[a] == places[b]
    rest = manifest.loc[sorted(remaining)]
    assert rest.groupby("group")["split"].nunique().eq(1).all()


def test_a_target_domain_is_measured_and_its_labels_go() -> None:
    manifest = built()
    manifest["split"] = split(manifest, "stratified_group")
    aimed, left_out = towards(manifest, "poly")
    gone = manifest.loc[left_out.index]
    assert (gone["domain"] == "mono").all()
    assert (gone["split"] == "test").all()
    assert set(left_out) == {"of the domain mono, which is not measured"}
    actual = aimed.drop(index=left_out.index)
    places = actual.groupby("split")["domain"].unique().map(list).to_dict()
    assert places == {
        "train": ["mono"],
        "val": ["mono"],
        "test": ["poly"],
        "unlabelled": ["poly"],
    }
    poly = manifest[manifest["domain"] == "poly"]
    assert (actual["domain"] == "poly").sum() == len(poly)
    assert (actual["split"] == "test").sum() == (poly["split"] == "test").sum()


@pytest.mark.parametrize("name", ["thin", ""])
def test_an_unknown_domain_is_refused(name: str) -> None:
    manifest = built().assign(split="train")
    with pytest.raises(DataError, match=r"target_domain = .*: found the domains 'mono', 'poly'"):
        towards(manifest, name)
    with pytest.raises(DataError, match="found no domains; expected"):
        towards(manifest.assign(domain=""), "thin")


def test_a_domain_without_others_is_refused() -> None:
    manifest = built().assign(split="train", domain="mono")
    with pytest.raises(DataError, match=r"target_domain = 'mono'"):
        towards(manifest, "mono")


def test_unlabelled_images_leak_out_of_what_is_measured_alone() -> None:
    """Positions of pairs are the table's index, of which rows 1 and 3 may have been left out."""
    rows = [("a", "", "unlabelled"), ("b", "", "unlabelled"), ("c", "x", "test"),
            ("d", "x", "train"), ("d", "", "unlabelled"), ("e", "", "unlabelled"),
            ("f", "x", "unlabelled"), ("g", "x", "val")]  # fmt: skip
    manifest = pd.DataFrame(rows, columns=["group", "label", "split"])
    pairs = np.array([[0, 2], [1, 2], [3, 7], [4, 5], [6, 7]])
    remaining = manifest.drop(index=[1, 3])
    assert leaking_unlabelled(remaining, pairs).to_dict() == {0: "test"}
    assert leaking_unlabelled(manifest, pairs).to_dict() == {0: "test", 1: "test"}
    # The seventh has a label that is not used, but is like the one that chooses.
    through = leaking_unlabelled(manifest, np.concatenate([pairs, [[5, 6]]]))
    assert through.to_dict() == {0: "test", 1: "test", 4: "val", 5: "val"}
    # The fourth trains, so what is like it may teach.
    assert leaking_unlabelled(manifest, np.array([[3, 2], [3, 5]])).empty


def trained(groups: int = 25, most: int = 100, seed: int = 0) -> pd.DataFrame:
    manifest = built(groups, most, seed)
    splits = np.random.default_rng(seed).choice(["train", "val"], groups, p=[0.8, 0.2])
    places = dict(zip([f"g{g}" for g in range(groups)], splits.tolist(), strict=True))
    return manifest.assign(split=manifest["group"].map(places))


def labelled_rows(manifest: pd.DataFrame, share: float, by: Unit, draw: int = 0) -> "pd.Index[int]":
    """The images that train with their labels."""
    few = with_hidden_labels(manifest, share, by, draw)
    assert few.drop(columns="split").equals(manifest.drop(columns="split"))
    changed = few["split"] != manifest["split"]
    assert set(manifest.loc[changed, "split"]) <= {"train"}
    assert set(few.loc[changed, "split"]) <= {"unlabelled"}
    return few.index[few["split"] == "train"]


@pytest.mark.parametrize("share", [0.02, 0.05, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("draw", range(5))
def test_a_share_of_images_keeps_its_labels(share: float, draw: int) -> None:
    """As many as asked for, of each class its share, from as many groups as can be."""
    manifest = trained(seed=draw)
    train = manifest[manifest["split"] == "train"]
    few = train.loc[labelled_rows(manifest, share, "image", draw)]
    assert abs(len(few) - share * len(train)) <= 0.5
    for label, count in train["label"].value_counts().items():
        assert abs((few["label"] == label).sum() - share * count) <= 1
    counts = train["group"].value_counts()
    drawn = few["group"].value_counts().reindex(counts.index, fill_value=0)
    # Of each group's two classes one more or less than its share, and a little for the classes.
    assert ((drawn - share * counts).abs() <= 2.5).all()


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("draw", range(5))
def test_a_share_of_groups_keeps_its_labels(share: float, draw: int) -> None:
    manifest = trained(seed=draw)
    train = manifest[manifest["split"] == "train"]
    few = train.loc[labelled_rows(manifest, share, "group", draw)]
    assert (train["group"].isin(few["group"]) == train.index.isin(few.index)).all()
    assert set(few["label"]) == {"a", "b"}
    assert abs(len(few) - share * len(train)) <= train["group"].value_counts().max()


@pytest.mark.parametrize("by", ["group", "image"])
def test_a_larger_share_keeps_what_a_smaller_one_keeps(by: Unit) -> None:
    manifest = trained()
    before: set[int] = set()
    for share in np.linspace(0.002, 1, 60):
        now = set(labelled_rows(manifest, float(share), by))
        assert before <= now
        before = now
    assert before == set(manifest.index[manifest["split"] == "train"])


@pytest.mark.parametrize("by", ["group", "image"])
def test_each_class_keeps_two_images(by: Unit) -> None:
    """Also one of few images, in groups that come last; or one, if it has no more."""
    manifest = trained()
    train = manifest.index[manifest["split"] == "train"]
    manifest.loc[train[[7, 8, 9, 300, 301]], "label"] = [*"ccc", *"cd"]
    manifest.loc[train[[7, 300]], "group"] = ["far away", "further"]
    for draw in range(10):
        few = labelled_rows(manifest, 0.004, by, draw)
        counts = manifest.loc[few, "label"].value_counts()
        assert set(counts.index) == {"a", "b", "c", "d"}
        assert counts.drop("d").min() >= 2
        assert counts["d"] == 1


@pytest.mark.parametrize("by", ["group", "image"])
def test_the_draw_decides_which_labels_are_kept(by: Unit) -> None:
    manifest = trained()
    draws = [tuple(labelled_rows(manifest, 0.1, by, draw)) for draw in (0, 0, 1, 2, 3)]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 4


def test_without_groups_images_are_drawn_alone() -> None:
    manifest = trained(groups=1000, most=1)
    train = manifest[manifest["split"] == "train"]
    few = train.loc[labelled_rows(manifest, 0.1, "image")]
    assert abs((few["label"] == "b").mean() - (train["label"] == "b").mean()) < 0.02
