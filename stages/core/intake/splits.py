"""Which images train, which choose, which measure; which only teach, having no label."""

import hashlib
import warnings
from typing import Literal

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

from stages.core.dataset.data import UNLABELLED
from stages.core.intake.duplicates import Pairs, among, tied
from stages.core.intake.representative import representative
from stages.core.runner.errors import DataError
from stages.core.runner.text import counted

Method = Literal["stratified_group", "hash", "column", "random"]
ValSplit = Literal["representative", "fold"]
# What keeps its labels, or loses them, as a whole.
Unit = Literal["group", "image"]

# Where an image that stands in several splits may stay: what measures before what trains.
RANK = {UNLABELLED: 0, "train": 1, "val": 2, "test": 3}
# With fewer images than this share in groups of several, a group is placed by its first image: to
# weigh groups against each other takes as long as there are groups, and there is nothing to weigh.
FEW = 0.05


def _fold(
    manifest: pd.DataFrame, rows: pd.Index, folds: int, index: int, seed: int, grouped: bool
) -> pd.Index:
    """Fold `index` of the given rows, stratified by label and domain."""
    strata = (manifest["label"] + "/" + manifest["domain"])[rows]
    groups = manifest.loc[rows, "group"]
    if grouped and groups.nunique() < folds:
        raise DataError(
            f"{counted(groups.nunique(), 'group')} cannot be split into {folds} folds without "
            "tearing one apart; expected as many groups as folds: lower validate.folds or "
            "validate.val_folds"
        )
    first = ~groups.duplicated()
    weighed = grouped and (~first).sum() >= FEW * len(rows)
    kind = StratifiedGroupKFold if weighed else StratifiedKFold
    splitter = kind(folds, shuffle=True, random_state=seed)
    placed = rows[first] if grouped and not weighed else rows
    with warnings.catch_warnings():
        # A class with fewer images than folds; the suite says which class a split lacks.
        warnings.simplefilter("ignore")
        try:
            pieces = list(splitter.split(placed, strata[placed], groups[placed]))
        except ValueError as error:
            raise DataError(
                f"{len(rows)} images cannot be split into {folds} folds ({error}); "
                "add images, or lower validate.folds or validate.val_folds"
            ) from None
    chosen = placed[pieces[index][1]]
    return rows[groups.isin(groups[chosen])] if grouped else chosen


def _hashed(group: str, seed: int, salt: str) -> float:
    """A number in 0 to 1 that depends on the group and the seed alone."""
    digest = hashlib.md5(f"{salt} {seed} {group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _by_hash(manifest: pd.DataFrame, folds: int, fold: int, val_folds: int, seed: int) -> pd.Series:
    def place(group: str) -> str:
        if int(_hashed(group, seed, "test") * folds) == fold:
            return "test"
        return "val" if int(_hashed(group, seed, "val") * val_folds) == 0 else "train"

    return manifest["group"].map({g: place(g) for g in manifest["group"].unique()})


def assign(
    manifest: pd.DataFrame,
    method: Method,
    *,
    folds: int,
    fold: int,
    val_folds: int,
    val_split: ValSplit,
    target_domain: str | None,
    seed: int,
) -> pd.Series:
    """`train`, `val` or `test` for every image.

    Args:
        manifest: columns file_name, label, domain, group; split for `column`; and those of
            `representative`.
        method: `stratified_group` and `hash` keep groups whole; with `hash`, an image's place
            depends on its group alone, so that adding images never moves one. `column` takes the
            user's own, and makes a validation split of its training images if it has none.
            `random` tears groups apart: only to compare with numbers that were measured so.
        folds, fold: the test split is fold `fold` of `folds`.
        val_folds: the validation split is one of this many folds of the rest.
        val_split: whether that is the first fold, or the set of groups that `representative`
            chooses among the images that are not of the target domain, which choose nothing. It is
            the first fold where images are split one by one, and `hash` has a rule of its own.

    Raises: DataError when there are fewer groups or images than folds, or no such column.
    """
    if method == "hash":
        return _by_hash(manifest, folds, fold, val_folds, seed)
    grouped = method != "random"
    if method == "column":
        split = manifest["split"].copy()
        if (missing := split == "").any():
            names = ", ".join(manifest.loc[missing, "file_name"].head(5))
            have = "has" if missing.sum() == 1 else "have"
            raise DataError(
                f"{counted(int(missing.sum()), 'image')} {have} no split ({names}); expected "
                "train, val or test for each: fill the column split, or set validate.split "
                "to stratified_group"
            )
        if not (split == "test").any():
            raise DataError(
                "no image has the split test; expected some that measure the model: rename the "
                "folder or the value that is meant, or let validate.split make the splits "
                "(stratified_group; with split folders, set data.dir to the one with all images)"
            )
    else:
        split = pd.Series("train", index=manifest.index)
        split[_fold(manifest, manifest.index, folds, fold, seed, grouped)] = "test"
    if not (split == "val").any():
        rest = split.index[split == "train"]
        val = _fold(manifest, rest, val_folds, 0, seed, grouped)
        choosing = manifest.loc[rest]
        choosing = choosing[choosing["domain"] != target_domain]
        if val_split == "representative" and grouped and len(choosing):
            first = pd.Series(choosing.index.isin(val), index=choosing.index)
            inside = representative(choosing, first, share=1 / val_folds, seed=seed)
            val = rest[manifest.loc[rest, "group"].isin(choosing.loc[inside, "group"])]
        split[val] = "val"
    return split


def towards(manifest: pd.DataFrame, target: str) -> "tuple[pd.DataFrame, pd.Series[str]]":
    """The same images, split to learn from the other domains and to measure on the target's.

    Images of the target that would train or choose become `unlabelled`; those of other domains
    that would measure are to be left out.

    Args:
        manifest: columns domain and split; unlabelled images have their split already.
        target: a domain.

    Returns: the images, and for each one to leave out, by its index, the reason.

    Raises: DataError when there is no such domain, or no other.
    """
    inside = manifest["domain"] == target
    labelled = manifest["split"] != UNLABELLED
    if inside[labelled].all() or not inside[labelled].any():
        names = sorted(manifest.loc[labelled, "domain"].unique())
        domains = "no domains" if names == [""] else f"the domains {', '.join(map(repr, names))}"
        raise DataError(
            f"validate.target_domain = {target!r}: found {domains}; expected images of "
            "it and of another one: correct its name, or the metadata's column domain"
        )
    measures = manifest["split"] == "test"
    split = manifest["split"].mask(inside & ~measures, UNLABELLED)
    others = manifest.loc[measures & ~inside, "domain"]
    return manifest.assign(split=split), "of the domain " + others + ", which is not measured"


def leaking(manifest: pd.DataFrame, pairs: Pairs) -> pd.Series:
    """Images whose group, or a near duplicate, stands in a split that measures more.

    Args:
        manifest: columns group and split.
        pairs: near duplicates, by position.

    Returns: for each such image, by its index, that split.
    """
    codes, _ = pd.factorize(manifest["group"])
    _, first = np.unique(codes, return_index=True)
    by_group = np.stack([first[codes], np.arange(len(codes))], 1)
    component = tied(len(codes), np.concatenate([by_group, pairs]))
    rank = manifest["split"].map(RANK).to_numpy()
    highest = np.zeros(component.max() + 1, dtype=np.int64)
    np.maximum.at(highest, component, rank)
    names = list(RANK)
    lower = rank < highest[component]
    return pd.Series([names[r] for r in highest[component[lower]]], index=manifest.index[lower])


def leaking_unlabelled(manifest: pd.DataFrame, pairs: Pairs) -> pd.Series:
    """Images without a label that would teach what `val` or `test` measures.

    Likeness is passed on by all images but those that train, which have their place already.

    Args:
        manifest: columns label, group and split; its index holds the positions that `pairs` names.
        pairs: near duplicates.

    Returns: as `leaking`.
    """
    rows = manifest[manifest["split"] != "train"]
    leaks = leaking(rows, among(pairs, rows.index))
    return leaks[rows.loc[leaks.index, "label"] == ""]


def with_hidden_labels(manifest: pd.DataFrame, share: float, by: Unit, draw: int) -> pd.DataFrame:
    """The same images, but only some of those that train keep their labels; the rest teach without.

    With the same draw, a larger share keeps all labels that a smaller one keeps.

    Args:
        manifest: columns label, group and split.
        share: of the training images, above 0 to 1.
        by: `group` keeps the labels of whole groups in a random order, as many as come nearest to
            the share; `image` those of images from every group, with the classes' shares as they
            are. Each class keeps two images, if it has them: one alone has no variance.
        draw: seed.
    """
    train = manifest[manifest["split"] == "train"]
    order = _group_order(train, draw) if by == "group" else _image_order(train, draw)
    images = order.value_counts().sort_index().cumsum().to_numpy()
    count = 1 + int(np.abs(images - share * len(train)).argmin())
    first_of_class = order.groupby(train["label"]).nsmallest(2)
    hidden = train.index[(order >= count) & ~order.isin(first_of_class)]
    return manifest.assign(split=manifest["split"].mask(manifest.index.isin(hidden), UNLABELLED))


def superfluous(manifest: pd.DataFrame, count: int, draw: int) -> "pd.Index[int]":
    """The rarest class's training images but `count` of them, drawn at random by the seed `draw`.

    With the same draw, a larger count keeps all images that a smaller one keeps.

    Args:
        manifest: columns label and split.
    """
    train = manifest[manifest["split"] == "train"]
    rarest = train["label"].value_counts().sort_index().idxmin()
    candidates = train.index[train["label"] == rarest]
    return candidates[np.random.default_rng(draw).permutation(len(candidates))[count:]]


def _group_order(train: pd.DataFrame, draw: int) -> "pd.Series[int]":
    """The number of each image's group in a random order, from 0."""
    names = sorted(train["group"].unique())
    order = np.random.default_rng(draw).permutation(len(names)).tolist()
    return train["group"].map(dict(zip(names, order, strict=True)))


def _image_order(train: pd.DataFrame, draw: int) -> "pd.Series[int]":
    """The number of each image in a random order, from 0, of which every start is stratified.

    By systematic sampling (Madow 1949): of a stratum's n images, number r is at (r + u) / n, u
    being random in 0 to 1, so up to a place t there are t n of them, give or take one. First the
    images of each class are spread over the groups in this way, and then the classes.
    """
    draws = np.random.default_rng(draw)
    place = pd.Series(draws.permutation(len(train)), index=train.index, dtype=float)
    for columns in (["label", "group"], ["label"]):
        stratum = train.groupby(columns).ngroup()
        number = place.groupby(stratum).rank(method="first") - 1
        offset = draws.random(stratum.max() + 1)[stratum]
        place = (number + offset) / stratum.map(stratum.value_counts())
    return place.rank(method="first").astype(int) - 1
