"""Checks the images against a data contract, splits them, decodes them once.

Reads:  ${data.dir} (see core/intake/sources.py for its layouts), data/expectations.yaml (the user's
        own expectations), data/accepted.json (profile of the data that was last accepted)
Writes: data/validated/ (pixels.npy, manifest.csv, classes.json, rules.json, views.json,
        profile.json; with backgrounds also backgrounds.npy, and raw.npy for the test split),
        metrics, counts, every expectation's outcome, what was left out and why, pictures; Data Docs
Params: validate
Run:    dvc repro validate
"""

import dataclasses
import json
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import (
    HAS_GROUP,
    SPLITS,
    UNLABELLED,
    BackgroundKind,
    FileRules,
    save_dataset,
)
from stages.core.dataset.folder import Data
from stages.core.dataset.symmetries import NAMES, NUMBERS, Symmetries
from stages.core.intake import backgrounds, drift
from stages.core.intake.contract import Contract, Expectation, Suite, Violation, load_expectations
from stages.core.intake.duplicates import Pairs, among, join_groups, near_pairs
from stages.core.intake.images import HASH_BYTES, Cache, examine, packed
from stages.core.intake.layouts import listed
from stages.core.intake.look_alikes import look_alikes
from stages.core.intake.quarantine import Quarantine, refuse
from stages.core.intake.source import Source, same_names
from stages.core.intake.sources import open_source
from stages.core.intake.splits import (
    Method,
    Unit,
    ValSplit,
    assign,
    counted,
    leaking,
    leaking_unlabelled,
    towards,
    with_hidden_labels,
)
from stages.core.intake.suites import (
    background_suite,
    class_suites,
    image_suite,
    split_suites,
    splits_by_group,
)
from stages.core.release.predict import MEDIAN_OF, Fit
from stages.core.results import pictures, report
from stages.core.results.escape import spreadsheet_cell
from stages.core.results.schema import ValidateMetrics
from stages.core.runner import stage
from stages.core.runner.errors import DataError
from stages.core.runner.params import Section, parse_section
from stages.core.runner.runtime import Resources
from stages.core.runner.text import terminal


class Params(Section):
    """Section `validate`."""

    classes: list[str] | None = Field(min_length=2)
    symmetries: Symmetries | None
    image_px: int = Field(ge=32, le=1024, multiple_of=32)
    fit: Fit
    min_source_px: int = Field(ge=1)
    max_megapixels: float = Field(gt=0, le=1000)
    bit_depth: int | None = Field(ge=8, le=16)
    min_contrast: float = Field(ge=0, le=128)
    min_per_class: int = Field(ge=2)
    min_groups_per_class: int = Field(ge=1)
    on_bad_image: Literal["fail", "quarantine"]
    max_bad_fraction: float = Field(ge=0, le=1)
    on_gaps: Literal["refuse", "allow"]
    background: Literal["none"] | BackgroundKind
    min_background_images: int = Field(ge=3, le=MEDIAN_OF)
    on_small_group: Literal["refuse", "keep"]
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
    drift_warn: float = Field(gt=0)
    drift_fail: float = Field(gt=0)

    @property
    def divides(self) -> BackgroundKind | None:
        """What images are divided by; None: by nothing."""
        return None if self.background == "none" else self.background

    @field_validator("classes")
    @classmethod
    def _each_once(cls, classes: list[str] | None) -> list[str] | None:
        if classes and len(set(classes)) < len(classes):
            raise PydanticCustomError("twice", "should name each class once")
        return classes

    @field_validator("fold")
    @classmethod
    def _one_of_the_folds(cls, fold: int, info: ValidationInfo) -> int:
        if fold >= info.data.get("folds", fold + 1):
            raise PydanticCustomError("fold", "should be less than folds; the first fold is 0")
        return fold


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    dir: Path = stage.reads()
    expectations: Path = stage.reads()
    accepted: Path = stage.reads()
    cache: Path = stage.keeps()
    validated: Path = stage.writes()
    docs: Path = stage.writes(even_on_failure=True, tracked=False)
    metrics: Path = stage.writes()
    plot: Path = stage.writes()
    outcomes: Path = stage.writes(even_on_failure=True)
    quarantine: Path = stage.writes(even_on_failure=True)
    grid: Path = stage.writes()
    complaints: Path = stage.writes(even_on_failure=True)


def say(line: str) -> None:
    """Print a line in which labels and names of files may stand."""
    print(terminal(line), flush=True)


def read_source(folder: Path, params: Params) -> Source:
    """The user's folder, and what is remarkable about it in words. Raises: ParamsError, DataError.

    `dvc repro` has checked no other section than this stage's.
    """
    parse_section({"data": {"dir": str(folder)}}, "data", Data, source="params.yaml")
    source = open_source(folder, params.classes)
    say(f"{counted(len(source.table), 'image')}: {source.layout}")
    for note in source.notes:
        say(note)
    if source.others:
        say(f"{counted(len(source.others), 'other file')}, listed in quarantine.csv")
    if "group" not in source.known:
        say("no groups are given: every image counts as a group of its own")
        if params.divides:
            raise DataError(
                f"{folder}: found no groups; expected one for each image (validate.background = "
                f"{params.background}): add the column group to the metadata, or set "
                "validate.background to none"
            )
    is_split = set(source.table["split"]) - {"", UNLABELLED}
    if is_split and not source.split_folders and params.split != "column":
        say(f"the metadata's split is not used (validate.split: {params.split}; column uses it)")
    for column, meaning in (("group", "a group of its own"), ("domain", "of one more domain")):
        gaps = source.table[source.table[column] == ""]
        if column in source.known and len(gaps) and params.on_gaps == "refuse":
            raise DataError(
                f"{folder}: {len(gaps)} of {counted(len(source.table), 'row')} have no {column} "
                f"({listed(gaps['file_name'].tolist(), 3)}), the others have one; expected one in "
                f"each row, or in none: fill the column, or set validate.on_gaps to allow (each "
                f"row without counts as {meaning})"
            )
    return source


def keep_apart(source: Source, measured: list[str]) -> Source:
    """`source` with those of its columns renamed that are called as what is measured."""
    names = {name: f"given_{name}" for name in measured if name in source.table}
    for old, new in names.items():
        say(f"the metadata's column {old} is kept as {new}: {old} is measured")
    return dataclasses.replace(source, table=source.table.rename(columns=names))


def find_classes(source: Source) -> list[str]:
    """The classes in the order of the model's outputs. Raises: DataError for fewer than two."""
    if source.classes:
        return source.classes
    labels = sorted(set(source.table["label"]) - {""})
    if len(labels) < 2:
        number = "1 class" if labels else "0 classes"
        bare = int((source.table["label"] == "").sum())
        more = f" and {counted(bare, 'image')} without a label" if bare and labels else ""
        raise DataError(
            f"{source.folder}: found {number} ({', '.join(labels) or 'no label'}){more}; "
            "expected at least two: add labelled images of another class"
        )
    say(f"classes, in alphabetical order: {listed(labels, 20)}; a classes.txt changes it")
    return labels


def check_groups(table: pd.DataFrame, folder: Path, params: Params, contract: Contract) -> None:
    """Say which groups have no background. Raises: DataError, where none may lack one."""
    coloured = table.loc[table["channels"] > 1, "file_name"].tolist()
    if params.divides == "both" and coloured:
        raise DataError(
            f"{folder}: {counted(len(coloured), 'colour image')} ({listed(coloured, 3)}); expected "
            "grey ones, since validate.background is both, which puts image, quotient and "
            "background into three channels: set it to group"
        )
    sizes = table["group"].value_counts()
    small = sizes[sizes < params.min_background_images]
    may_keep = params.on_small_group == "keep" and len(small) < len(sizes)
    if not may_keep:
        suite = background_suite(table, params.min_background_images)
        refuse(contract.verify({"backgrounds": suite}), folder)
    elif len(small):
        say(
            f"groups with fewer than {params.min_background_images} images, images without a group "
            f"among them: {len(small)}; their images ({small.sum()}) are not divided"
        )


def find_symmetries(source: Source, params: Params) -> Symmetries:
    """What training may do to the images: the params' word, or the folder's, or the default."""
    if choice := params.symmetries or source.symmetries:
        return choice
    say(
        "symmetries: mirror (training also shows the images mirrored left to right); "
        "validate.symmetries or a symmetries.txt changes it"
    )
    return "mirror"


def say_stretched(table: pd.DataFrame) -> None:
    """Tell how many images are to be stretched visibly: by more than a tenth."""
    sides = table[["width", "height"]]
    ratio = sides.max(axis=1) / sides.min(axis=1)
    if count := int((ratio > 1.1).sum()):
        say(
            f"not square, and stretched to squares: {counted(count, 'image')}, the longest "
            f"{ratio.max():.1f} : 1; validate.fit pads or crops them instead"
        )


def warn_of_look_alikes(
    pixels: NDArray[np.uint8], table: pd.DataFrame, classes: list[str], symmetries: Symmetries
) -> dict[str, str]:
    """Warn of classes that a symmetry exchanges; gives it by their names, the clearest 20."""
    number = {name: k for k, name in enumerate(classes)} | {"": -1}
    labels = table["label"].map(number).to_numpy(np.int64)
    train = np.flatnonzero(table["split"] == "train")
    found = look_alikes(pixels, labels, train, symmetries)
    if not found:
        return {}
    pairs: dict[str, str] = {}
    for x in found:
        pairs.setdefault(f"{classes[x.one]} and {classes[x.other]}", NAMES[x.symmetry])
    words = [f"{pair} ({name})" for pair, name in pairs.items()]
    exchanging = {x.symmetry for x in found}
    safe = [name for name, numbers in NUMBERS.items() if not exchanging & set(numbers)]
    say(
        f"warning: with symmetries = {symmetries}, training shows these classes as each other: "
        f"{listed(words, 5)}; set validate.symmetries to {' or '.join(safe)}, unless something "
        "else tells them apart"
    )
    return dict(list(pairs.items())[:20])


def contradictions(table: pd.DataFrame) -> list[Violation]:
    """The same content under two labels."""
    table = table[table["label"] != ""]
    labels = table.groupby("sha256")["label"].transform("nunique")
    rows = table[labels > 1]
    if rows.empty:
        return []
    others = rows.groupby("sha256")["file_name"].transform(", ".join)
    names = [
        (name, f"{label} (same content: {other})")
        for name, label, other in zip(rows["file_name"], rows["label"], others, strict=True)
    ]
    return [Violation("label", "one label for one content: correct one of them", names)]


def near_duplicates(table: pd.DataFrame, params: Params) -> tuple[Pairs, dict[str, int]]:
    """Pairs of images (by position) that show the same, and how many of which kind."""
    hashes = np.frombuffer(b"".join(table["phash"]), np.uint8).reshape(-1, HASH_BYTES)
    pairs = near_pairs(hashes, params.near_duplicate_bits)
    if params.divides:  # divided by two backgrounds, the same content has two hashes
        contents = np.frombuffer(bytes.fromhex("".join(table["sha256"])), np.uint8)
        pairs = np.unique(np.concatenate([pairs, near_pairs(contents.reshape(-1, 32), 0)]), axis=0)
    left, right = (table.iloc[pairs[:, side]].reset_index(drop=True) for side in (0, 1))
    same = left["sha256"] == right["sha256"]
    both = (left["label"] != "") & (right["label"] != "")
    return pairs, {
        "identical": int(same.sum()),
        "near": int((~same).sum()),
        "across_groups": int((left["group"] != right["group"]).sum()),
        "contradicting": int((both & (left["label"] != right["label"])).sum()),
    }


def split(
    table: pd.DataFrame, pairs: Pairs, method: Method, params: Params, quarantine: Quarantine
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
    if method == "random":
        return table, {"groups_joined": 0, "left_out": 0, "leaking": len(leaks)}
    if refused and (len(leaks) or joined):
        left, right = (table["file_name"].iloc[pairs[:, side]].to_numpy() for side in (0, 1))
        across = groups.to_numpy()[pairs]
        between = [
            f"{a} and {b}" for a, b, g in zip(left, right, across, strict=True) if g[0] != g[1]
        ]
        rows = [f"{table.loc[i, 'file_name']} ({why})" for i, why in reasons.items()]
        raise DataError(
            f"near duplicates or groups in two places: {'; '.join((rows or between)[:5])}; "
            "expected none: put them into one group, leave one out, or set validate.on_leak to move"
        )
    return quarantine.leave_out(table, reasons, "leak"), {
        "groups_joined": joined,
        "left_out": len(leaks),
        "leaking": 0,
    }


def without_leaks(
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


def hide_labels(table: pd.DataFrame, params: Params) -> pd.DataFrame:
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


def check_drift(table: pd.DataFrame, accepted: dict[str, Any], params: Params) -> dict[str, Any]:
    """Stability index of every column against the accepted data; empty where there is none.

    Raises: DataError above `drift_fail`.
    """
    if "data" not in accepted:
        return {}
    indices = drift.compare(table, accepted["data"])
    for column, index in indices.items():
        if index > params.drift_warn:
            print(f"warning: {column} has drifted: stability index {index:.3f}", flush=True)
    worst = max(indices, key=indices.__getitem__)
    if indices[worst] > params.drift_fail:
        raise DataError(
            f"{worst} has drifted from the accepted data: stability index {indices[worst]:.3f}; "
            f"expected at most {params.drift_fail:g}: look at the new images, then accept them or "
            "raise validate.drift_fail"
        )
    return indices


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Validate, split and pack. Raises: DataError that names the rows at fault."""
    paths.docs.mkdir()
    source = read_source(paths.dir, params)
    classes = find_classes(source)
    max_pixels = round(params.max_megapixels * 1e6)
    contract = Contract(paths.docs)
    quarantine = Quarantine(
        source, refuse_bad=params.on_bad_image == "fail", max_fraction=params.max_bad_fraction
    )
    symmetries = find_symmetries(source, params)
    with closing(Cache(paths.cache, params.image_px, max_pixels, params.fit)) as cache:
        pairs_to_show: dict[str, list[NDArray[np.uint8]]] = {}
        try:
            look = examine(
                source,
                cache,
                image_px=params.image_px,
                max_pixels=max_pixels,
                bit_depth=params.bit_depth,
                fit=params.fit,
            )
            measured = [*look, HAS_GROUP, *(["background"] if params.divides else [])]
            source = keep_apart(source, measured)
            own = load_expectations(paths.expectations, [*source.table, *look])
            fit = accepted_images(source, look, classes, own, params, contract, quarantine)
            paths.validated.mkdir()
            grounds = None
            if params.divides:
                check_groups(fit, source.folder, params, contract)
                file = paths.validated / "backgrounds.npy"
                least = params.min_background_images
                grounds = backgrounds.make(fit, file, cache, image_px=params.image_px, least=least)
            pairs, duplicates = near_duplicates(fit, params)
            pairs_to_show = beside_each_other(fit, pairs, cache)
            table, figures = checked_splits(
                fit, pairs, classes, source, params, contract, quarantine
            )
            drifts = check_drift(table, drift.load_accepted(paths.accepted), params)
        finally:
            explain(paths, contract, quarantine, cache, pairs_to_show)
        pixels = save(table, classes, symmetries, paths, params, cache, grounds)
        cache.keep_only(set(look["sha256"]))
    if left := len(look) - len(pixels):
        say(f"images left out: {left}; quarantine.csv has the reasons")
    say(f"{len(pixels)} images fulfil {len(contract.outcomes)} expectations")
    if bare := int((table["split"] == UNLABELLED).sum()):
        say(
            f"unlabelled: {bare} of these images; they teach students what the teacher sees in "
            "them, and neither choose nor measure"
        )
    if params.fit == "stretch":
        say_stretched(table)
    figures |= {
        "fit": params.fit,
        "symmetries": symmetries,
        "look_alikes": warn_of_look_alikes(pixels, table, classes, symmetries),
        "layout": source.layout,
        "bit_depth": cache.bit_depth,
        "groups_given": "group" in source.known,
        "expectations": len(contract.outcomes),
        "bad_images": quarantine.bad,
        "other_files": len(source.others),
        "duplicates": duplicates,
        "drift": drifts,
    }
    if grounds is not None:
        figures["background"] = {
            "kind": params.divides,
            "min_images": params.min_background_images,
            "groups": len(grounds) - 1,
            "kept": int((table["background"] == 0).sum()),
        }
    _report(paths, table, pixels, classes, figures)


def checked_splits(
    fit: pd.DataFrame,
    pairs: Pairs,
    classes: list[str],
    source: Source,
    params: Params,
    contract: Contract,
    quarantine: Quarantine,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The manifest with its splits, held against what is expected of them; figures of how.

    Raises: DataError.
    """
    method: Method = "column" if source.split_folders else params.split
    try:
        table, leaks = split(fit, pairs, method, params, quarantine)
        if params.target_domain is not None:
            aimed, others = towards(table, params.target_domain)
            table = quarantine.leave_out(aimed, others, "not used")
        given = fit["split"] if method == "column" else None
        table, left_out = without_leaks(table, fit, given, pairs, quarantine)
        leaks["left_out"] += left_out
        table = hide_labels(table.reset_index(drop=True), params)
        torn = method == "random" and splits_tear_groups(table)
        share = (1 / params.folds, params.max_share_error) if method == "hash" else None
        suites = split_suites(table, classes, torn=torn, test_share=share)
        refuse(contract.verify(suites), source.folder)
    except DataError:
        if method == "stratified_group":
            labelled = fit[fit["label"] != ""]
            refuse_fixed_camera(labelled, among(pairs, labelled.index), params, source.folder)
        raise
    return table, {"split_method": method, "split_tears_groups": torn, "leaks": leaks}


def refuse_fixed_camera(table: pd.DataFrame, pairs: Pairs, params: Params, folder: Path) -> None:
    """Where the splits fail since many images look alike, say that. Raises: DataError."""
    groups = join_groups(table["group"].to_numpy(object), pairs)
    sizes = pd.Series(groups[groups != table["group"].to_numpy(object)]).value_counts()
    if params.near_duplicate_bits and len(sizes) and sizes.iloc[0] > len(table) / params.folds:
        other = "" if params.divides else "validate.background to group, which needs groups, or "
        raise DataError(
            f"{folder}: {sizes.iloc[0]} of {len(table)} images are near duplicates of each other "
            "and count as one group, so that there is too little to split; if they show different "
            f"things before one background (a fixed camera), set {other}"
            f"validate.near_duplicate_bits to 0 (now {params.near_duplicate_bits}); if they show "
            "the same, add images of other things"
        )


def explain(
    paths: Paths,
    contract: Contract,
    quarantine: Quarantine,
    cache: Cache,
    pairs_to_show: dict[str, list[NDArray[np.uint8]]],
) -> None:
    """Write what tells people about the images, also when they are refused."""
    contract.document()
    outcomes = pd.DataFrame(contract.outcomes)
    for column in outcomes.select_dtypes("str"):
        outcomes[column] = outcomes[column].map(spreadsheet_cell)
    outcomes.to_csv(paths.outcomes, index=False, lineterminator="\n")
    quarantine.write(paths.quarantine)
    left_out = [as_pixels(row, cache) for row in quarantine.decodable(8)]
    pictures.grid(paths.complaints, {"left out": left_out, **pairs_to_show})


def accepted_images(
    source: Source,
    look: pd.DataFrame,
    classes: list[str],
    own: list[Expectation],
    params: Params,
    contract: Contract,
    quarantine: Quarantine,
) -> pd.DataFrame:
    """The manifest of the images that are fit for use. Raises: DataError."""
    table = source.table.join(look)
    for row, reason in same_names(table["file_name"]).items():
        table.loc[row, "problem"] = reason
    table["problem"] = table["problem"].where(table["problem"] != "", None)
    alone = table["group"] == ""
    if alone.any():
        table[HAS_GROUP] = ~alone
        table.loc[alone, "group"] = table.loc[alone, "file_name"]

    images = image_suite(
        table, classes, min_source_px=params.min_source_px, min_contrast=params.min_contrast
    )
    table = quarantine.take(table, contract.verify({"images": images}))
    if own:
        table = quarantine.take(table, contract.verify({"own": Suite(table, "file_name", own)}))
    table = quarantine.take(table, contradictions(table))
    refuse(
        contract.verify(
            class_suites(
                table,
                classes,
                min_per_class=params.min_per_class,
                min_groups_per_class=params.min_groups_per_class,
            )
        ),
        source.folder,
    )
    return table


def splits_tear_groups(table: pd.DataFrame) -> bool:
    """Whether a group stands in two splits, and a warning if so."""
    torn = bool(splits_by_group(table).gt(1).any())
    if torn:
        print("warning: a random split tears groups apart: its figures are too good", flush=True)
    return torn


def as_pixels(row: Any, cache: Cache) -> NDArray[np.uint8]:
    """A manifest row's packed image (P, P, C)."""
    pixels = np.frombuffer(cache.pixels(row.sha256), np.uint8)
    side = round((len(pixels) / row.channels) ** 0.5)
    return pixels.reshape(side, side, row.channels)


def beside_each_other(
    table: pd.DataFrame, pairs: Pairs, cache: Cache, count: int = 8
) -> dict[str, list[NDArray[np.uint8]]]:
    """Some pairs of near duplicates for a picture, those of two groups or labels first."""
    harmless = np.ones(len(pairs), dtype=bool)
    for column in ("group", "label"):
        values = table[column].to_numpy()[pairs].reshape(-1, 2)
        harmless &= (values[:, 0] == values[:, 1]) | (values == "").any(1)
    worst = pairs[np.argsort(harmless, kind="stable")[:count]]
    rows = {"near": worst[:, 0], "duplicates": worst[:, 1]}
    return {
        name: [as_pixels(row, cache) for row in table.iloc[places].itertuples()]
        for name, places in rows.items()
    }


def write_images(
    path: Path, contents: Iterable[bytes], count: int, image_px: int, channels: int
) -> NDArray[np.uint8]:
    """Write packed images as one array (count, P, P, C), image by image; gives it memory-mapped."""
    shape = (count, image_px, image_px, channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for content in contents:
            file.write(content)
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return images


def save(
    table: pd.DataFrame,
    classes: list[str],
    symmetries: Symmetries,
    paths: Paths,
    params: Params,
    cache: Cache,
    grounds: backgrounds.Images | None,
) -> NDArray[np.uint8]:
    """Write the rest of the validated dataset; gives its pixels, memory-mapped."""
    channels = int(table["channels"].max()) if grounds is None else grounds.shape[3]
    contents = packed(table["sha256"], table["channels"], channels, cache)
    rules = FileRules(cache.bit_depth, round(params.max_megapixels * 1e6), params.fit)
    if grounds is not None and params.divides:
        test = table[table["split"] == "test"]
        raw = packed(test["sha256"], test["channels"], channels, cache)
        write_images(paths.validated / "raw.npy", raw, len(test), params.image_px, channels)
        contents = backgrounds.without(table, contents, grounds, params.divides)
        channels = 3 if params.divides == "both" else channels
        rules = dataclasses.replace(
            rules, background=params.divides, background_images=params.min_background_images
        )
    path = paths.validated / "pixels.npy"
    pixels = write_images(path, contents, len(table), params.image_px, channels)
    manifest = table.drop(columns=["problem", "channels"])
    manifest["label"] = manifest["label"].where(manifest["split"] != UNLABELLED, "")
    manifest["phash"] = [phash.hex() for phash in manifest["phash"]]
    save_dataset(paths.validated, manifest, classes, rules, symmetries)
    profile = json.dumps(drift.profile(table), indent=1) + "\n"
    (paths.validated / "profile.json").write_text(profile)
    return pixels


def _report(
    paths: Paths,
    table: pd.DataFrame,
    pixels: NDArray[np.uint8],
    classes: list[str],
    figures: dict[str, Any],
) -> None:
    labelled = table[table["split"] != UNLABELLED]
    by_split = pd.crosstab(labelled["split"], labelled["label"]).loc[list(SPLITS)]
    groups = table.groupby("split")["group"].nunique()
    splits = {
        split: {"groups": int(groups[split]), "images": int(by_split.loc[split].sum())}
        | {"classes": {c: int(by_split.loc[split, c]) for c in classes}}
        for split in SPLITS
    }
    counts = {
        "images": len(table),
        "channels": pixels.shape[3],
        "image_px": pixels.shape[1],
        "groups": int(table["group"].nunique()),
        "unlabelled": int((table["split"] == UNLABELLED).sum()),
        "splits": splits,
    }
    report.write_metrics(paths.metrics, ValidateMetrics.model_validate(figures | counts))
    plotted = by_split.reset_index().melt("split", var_name="label", value_name="images")
    plotted["label"] = plotted["label"].map(spreadsheet_cell)
    plotted.to_csv(paths.plot, index=False)
    examples = {}
    for name in classes[:12]:
        rows = np.flatnonzero((table["label"] == name) & (table["split"] == "train"))
        examples[name] = list(pixels[rows[np.linspace(0, len(rows) - 1, 8).astype(int)]])
    pictures.grid(paths.grid, examples)


if __name__ == "__main__":
    stage.main("validate", Params, Paths, run)
