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
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import HAS_GROUP, SPLITS, UNLABELLED, BackgroundKind, FileRules
from stages.core.dataset.folder import Data
from stages.core.dataset.symmetries import Symmetries
from stages.core.intake import backgrounds, drift, look_alikes
from stages.core.intake.contract import Contract, Expectation, Suite, load_expectations
from stages.core.intake.duplicates import near_duplicates
from stages.core.intake.images import Cache, examine
from stages.core.intake.packing import as_pixels, beside_each_other, save
from stages.core.intake.placement import Placement, place
from stages.core.intake.quarantine import Quarantine, refuse
from stages.core.intake.source import Source, same_names
from stages.core.intake.sources import open_source
from stages.core.intake.suites import class_suites, contradictions, image_suite
from stages.core.release.predict import MEDIAN_OF, Fit
from stages.core.results import pictures, report
from stages.core.results.escape import spreadsheet_cell
from stages.core.results.schema.data import ValidateMetrics
from stages.core.runner import stage
from stages.core.runner.errors import DataError, ParamsError
from stages.core.runner.params import parse_section
from stages.core.runner.runtime import Resources
from stages.core.runner.text import counted, listed, say


class Params(Placement):
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
    if params.fold and (source.split_folders or params.split == "column"):
        raise ParamsError(
            f"validate.fold = {params.fold}: the test split of {folder} is given, so each fold is "
            "the same; expected 0, or a folder in which validate makes the splits"
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
                least = params.min_background_images
                backgrounds.check_groups(
                    fit,
                    source.folder,
                    contract,
                    kind=params.divides,
                    least=least,
                    may_keep=params.on_small_group == "keep",
                )
                file = paths.validated / "backgrounds.npy"
                grounds = backgrounds.make(fit, file, cache, image_px=params.image_px, least=least)
            divided = grounds is not None
            pairs, duplicates = near_duplicates(fit, params.near_duplicate_bits, divided=divided)
            pairs_to_show = beside_each_other(fit, pairs, cache)
            table, figures = place(
                fit, pairs, classes, source, params, contract, quarantine, divided=divided
            )
            drifts = drift.check(
                table,
                drift.load_accepted(paths.accepted),
                warn=params.drift_warn,
                fail=params.drift_fail,
            )
        finally:
            explain(paths, contract, quarantine, cache, pairs_to_show)
        rules = FileRules(
            cache.bit_depth,
            max_pixels,
            params.fit,
            background=params.divides,
            background_images=params.min_background_images if divided else None,
            min_source_px=params.min_source_px,
            min_contrast=params.min_contrast,
        )
        pixels = save(paths.validated, table, classes, rules, symmetries, cache, grounds)
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
        **({"licence": source.licence} if source.licence else {}),
        "look_alikes": look_alikes.warn(pixels, table, classes, symmetries),
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
