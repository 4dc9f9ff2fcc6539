"""Where the images of a folder go: which train, choose, measure, or teach without their labels.

The rules themselves are in splits.py; here they are applied, and what would leak is left out.
"""

from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import UNLABELLED
from stages.core.intake.contract import Contract
from stages.core.intake.duplicates import Pairs, among, join_groups
from stages.core.intake.quarantine import Quarantine, refuse
from stages.core.intake.source import Source
from stages.core.intake.splits import (
    Method,
    Unit,
    ValSplit,
    assign,
    leaking,
    leaking_unlabelled,
    superfluous,
    towards,
    with_hidden_labels,
)
from stages.core.intake.suites import split_suites, splits_by_group
from stages.core.runner.errors import DataError
from stages.core.runner.params import Section
from stages.core.runner.text import say


class Placement(Section):
    """The part of section `validate` that places the images."""

    near_duplicate_bits: int = Field(ge=0, le=64)
    on_leak: Literal["move", "refuse"]
    split: Method
    folds: int = Field(ge=2, le=20)
    fold: int = Field(ge=0, le=19)
    val_folds: int = Field(ge=2, le=20)
    val_split: ValSplit
    seed: int = Field(ge=0)
    max_share_error: float = Field(gt=0, le=1)
    target_domain: str | None = Field(min_length=1)
    labelled_share: float = Field(gt=0, le=1)
    labelled_by: Unit
    labelled_draw: int = Field(ge=0)
    scarce_images: int | None = Field(ge=2)

    @field_validator("fold")
    @classmethod
    def _one_of_the_folds(cls, fold: int, info: ValidationInfo) -> int:
        if fold >= info.data.get("folds", fold + 1):
            raise PydanticCustomError("fold", "should be less than folds; the first fold is 0")
        return fold


def place(
    fit: pd.DataFrame,
    pairs: Pairs,
    classes: list[str],
    source: Source,
    params: Placement,
    contract: Contract,
    quarantine: Quarantine,
    *,
    divided: bool,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The manifest with its splits, held against what is expected of them; figures of how.

    Args:
        divided: whether images are divided by their groups' backgrounds.

    Raises: DataError.
    """
    method: Method = "column" if source.split_folders else params.split
    try:
        table, leaks = _split(fit, pairs, method, params, quarantine)
        if params.target_domain is not None:
            aimed, others = towards(table, params.target_domain)
            table = quarantine.leave_out(aimed, others, "not used")
        given = fit["split"] if method == "column" else None
        table, left_out = _without_leaks(table, fit, given, pairs, quarantine)
        leaks["left_out"] += left_out
        table = _make_scarce(table, params, quarantine)
        table = _hide_labels(table.reset_index(drop=True), params)
        torn = method == "random" and _splits_tear_groups(table)
        share = (1 / params.folds, params.max_share_error) if method == "hash" else None
        suites = split_suites(table, classes, torn=torn, test_share=share)
        refuse(contract.verify(suites), source.folder)
    except DataError:
        if method == "stratified_group":
            labelled = fit[fit["label"] != ""]
            _refuse_fixed_camera(
                labelled, among(pairs, labelled.index), params, source.folder, divided=divided
            )
        raise
    return table, {"split_method": method, "split_tears_groups": torn, "leaks": leaks}


def _split(
    table: pd.DataFrame, pairs: Pairs, method: Method, params: Placement, quarantine: Quarantine
) -> tuple[pd.DataFrame, dict[str, int]]:
    """`table` with its splits, less what would leak; how much was moved or left out.

    Where groups may be formed, those that share a near duplicate become one. Where the place of an
    image is given, it goes if its group, or a near duplicate, is in a split that measures more.
    Images without a label change nothing of that.

    Raises: DataError.
    """
    groups, labelled = table["group"], table["label"] != ""
    pairs = pairs[labelled.to_numpy()[pairs].all(1)]
    if method == "stratified_group":
        table = table.assign(group=join_groups(groups.to_numpy(object), pairs))
    joined = int(groups.nunique() - table["group"].nunique())
    if joined:
        say(f"groups joined with others that have near duplicates of them: {joined}")
    placed = table[labelled]
    places = assign(
        placed,
        method,
        folds=params.folds,
        fold=params.fold,
        val_folds=params.val_folds,
        val_split=params.val_split,
        target_domain=params.target_domain,
        seed=params.seed,
    )
    placed = placed.assign(split=places)
    table = table.assign(split=placed["split"].reindex(table.index, fill_value=UNLABELLED))
    leaks = leaking(placed, among(pairs, placed.index))
    reasons = "a near duplicate, or its group, is in the " + leaks + " split"
    refused = params.on_leak == "refuse"
    if refused and (len(leaks) or joined):
        left, right = (table["file_name"].iloc[pairs[:, side]].to_numpy() for side in (0, 1))
        across = groups.to_numpy()[pairs]
        between = [
            f"{a} and {b}" for a, b, g in zip(left, right, across, strict=True) if g[0] != g[1]
        ]
        rows = [f"{table.loc[i, 'file_name']} ({why})" for i, why in reasons.items()]
        mend = "set validate.split to another" if method == "random" else "put them into one group"
        raise DataError(
            f"near duplicates or groups in two places: {'; '.join((rows or between)[:5])}; "
            f"expected none: {mend}, leave one out, or set validate.on_leak to move"
        )
    if method == "random":
        return table, {"groups_joined": 0, "left_out": 0, "leaking": len(leaks)}
    return quarantine.leave_out(table, reasons, "leak"), {
        "groups_joined": joined,
        "left_out": len(leaks),
        "leaking": 0,
    }


def _without_leaks(
    table: pd.DataFrame,
    fit: pd.DataFrame,
    given: "pd.Series[str] | None",
    pairs: Pairs,
    quarantine: Quarantine,
) -> tuple[pd.DataFrame, int]:
    """`table` less the images without a label that belong to what is measured; how many leak.

    Args:
        fit: all images; the table may lack some, but likeness is passed on by them.
        given: where the user's own splits count, each image's.
        pairs: near duplicates, by the index of both.
    """
    if given is not None:
        bare = given[table.index[table["label"] == ""]]
        measured = bare[bare.isin(["val", "test"])]
        why = "it has no label, and the " + measured + " split is measured by labels"
        table = quarantine.leave_out(table, why, "not used")
    gone = fit.drop(index=table.index).assign(split=UNLABELLED)
    leaks = leaking_unlabelled(pd.concat([table, gone]), pairs).drop(gone.index, errors="ignore")
    reasons = "a near duplicate, or its group, is in the " + leaks + " split"
    return quarantine.leave_out(table, reasons, "leak"), len(leaks)


def _make_scarce(table: pd.DataFrame, params: Placement, quarantine: Quarantine) -> pd.DataFrame:
    """`table` without most of the rarest class's training images, if the params say so."""
    if params.scarce_images is None:
        return table
    spare = superfluous(table, params.scarce_images, params.labelled_draw)
    reasons = pd.Series("one of the rarest class's; left out on purpose", index=spare)
    say(
        f"training images left out on purpose: {len(spare)} of the rarest class "
        f"(validate.scarce_images: {params.scarce_images})"
    )
    return quarantine.leave_out(table, reasons, "not used")


def _hide_labels(table: pd.DataFrame, params: Placement) -> pd.DataFrame:
    """`table` with the labels of a part of the training images alone, if the params say so."""
    if params.labelled_share == 1:
        return table
    how = (params.labelled_share, params.labelled_by, params.labelled_draw)
    few = with_hidden_labels(table, *how)
    train, kept = (int((each["split"] == "train").sum()) for each in (table, few))
    say(
        f"labels hidden on purpose: {train - kept} of {train} training images "
        f"(validate.labelled_share: {params.labelled_share:g}, by {params.labelled_by})"
    )
    return few


def _splits_tear_groups(table: pd.DataFrame) -> bool:
    """Whether a group stands in two splits, and a warning if so."""
    torn = bool(splits_by_group(table).gt(1).any())
    if torn:
        print("warning: a random split tears groups apart: its figures are too good", flush=True)
    return torn


def _refuse_fixed_camera(
    table: pd.DataFrame, pairs: Pairs, params: Placement, folder: Path, *, divided: bool
) -> None:
    """Where the splits fail since many images look alike, say that. Raises: DataError."""
    groups = join_groups(table["group"].to_numpy(object), pairs)
    sizes = pd.Series(groups[groups != table["group"].to_numpy(object)]).value_counts()
    if params.near_duplicate_bits and len(sizes) and sizes.iloc[0] > len(table) / params.folds:
        other = "" if divided else "validate.background to group, which needs groups, or "
        raise DataError(
            f"{folder}: {sizes.iloc[0]} of {len(table)} images are near duplicates of each other "
            "and count as one group, so that there is too little to split; if they show different "
            f"things before one background (a fixed camera), set {other}"
            f"validate.near_duplicate_bits to 0 (now {params.near_duplicate_bits}); if they show "
            "the same, add images of other things"
        )
