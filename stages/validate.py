"""Checks the images against a data contract, splits them by group, decodes them once.

Reads:  ${data.dir} (imagefolder)
Writes: data/validated/ (pixels.npy, manifest.csv, classes.json), metrics, class counts, a grid of
        images; Data Docs
Params: validate
Run:    dvc repro validate
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.model_selection import StratifiedGroupKFold

from stages.core import pictures, report, stage
from stages.core.contract import Contract, Expectation, Suite, Violation
from stages.core.data import SPLITS, read_metadata, save_dataset
from stages.core.errors import DataError
from stages.core.images import GREY_MODES, decode_all, inspect_all
from stages.core.params import Section
from stages.core.runtime import Resources


class Params(Section):
    """Section `validate`."""

    classes: list[str] = Field(min_length=2)
    modes: list[str] = Field(min_length=1)
    image_px: int = Field(ge=32, le=1024, multiple_of=32)
    min_source_px: int = Field(ge=1)
    min_per_class: int = Field(ge=2)
    folds: int = Field(ge=2, le=20)
    fold: int = Field(ge=0, le=19)
    val_folds: int = Field(ge=2, le=20)
    seed: int = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    images: Path = stage.reads()
    validated: Path = stage.writes()
    docs: Path = stage.writes(even_on_failure=True, tracked=False)
    metrics: Path = stage.writes()
    plot: Path = stage.writes()
    grid: Path = stage.writes()


def split_by_group(manifest: pd.DataFrame, params: Params) -> pd.Series:
    """`train`, `val` or `test` for every image, all images of a group alike.

    The test split is fold `fold` of `folds`; the validation split one of `val_folds` of the rest.
    Both are stratified by label and domain (scikit-learn's StratifiedGroupKFold).

    Raises: DataError when there are fewer groups than folds.
    """
    strata = manifest["label"] + "/" + manifest["domain"]

    def fold(rows: pd.Index, folds: int, index: int) -> pd.Index:
        groups = manifest.loc[rows, "group"].nunique()
        if groups < folds:
            raise DataError(
                f"{groups} groups cannot be split into {folds} folds without tearing one apart; "
                "expected as many groups as folds: lower validate.folds or validate.val_folds"
            )
        splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=params.seed)
        pieces = splitter.split(rows, strata[rows], manifest.loc[rows, "group"])
        return rows[list(pieces)[index][1]]

    split = pd.Series("train", index=manifest.index)
    split[fold(manifest.index, params.folds, params.fold)] = "test"
    split[fold(split.index[split == "train"], params.val_folds, 0)] = "val"
    return split


def image_suite(table: pd.DataFrame, params: Params) -> Suite:
    """Every single image: there, readable, labelled, large enough, and there once."""
    import great_expectations.expectations as gxe  # see contract.py

    def large_enough(column: str) -> Expectation:
        expected = f"at least {params.min_source_px} px"
        return gxe.ExpectColumnValuesToBeBetween(
            column=column, min_value=params.min_source_px, meta={"expected": expected}
        )

    expectations = [
        gxe.ExpectColumnValuesToBeUnique(
            column="file_name", meta={"expected": "each file listed once"}
        ),
        gxe.ExpectColumnValuesToBeNull(
            column="problem", meta={"expected": "a readable image inside the folder"}
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="label",
            value_set=params.classes,
            meta={"expected": f"one of validate.classes: {', '.join(params.classes)}"},
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="mode", value_set=params.modes, meta={"expected": ", ".join(params.modes)}
        ),
        gxe.ExpectColumnValuesToBeUnique(
            column="sha256", meta={"expected": "no two files with the same content"}
        ),
        large_enough("width"),
        large_enough("height"),
    ]
    return Suite(table, "file_name", expectations)


def class_suite(table: pd.DataFrame, params: Params) -> Suite:
    """Enough images of every class."""
    import great_expectations.expectations as gxe

    counts = table["label"].value_counts().reindex(params.classes, fill_value=0)
    enough = gxe.ExpectColumnValuesToBeBetween(
        column="images",
        min_value=params.min_per_class,
        meta={"expected": f"at least {params.min_per_class} images of each class"},
    )
    frame = pd.DataFrame({"class": counts.index, "images": counts.to_numpy()})
    return Suite(frame, "class", [enough])


def split_suites(table: pd.DataFrame, params: Params) -> dict[str, Suite]:
    """No group and no image content in two splits; every class in every split."""
    import great_expectations.expectations as gxe

    suites = {}
    for what, column in (("groups", "group"), ("contents", "sha256")):
        frame = table.groupby(column)["split"].nunique().rename("splits").reset_index()
        alone = gxe.ExpectColumnValuesToBeBetween(
            column="splits", max_value=1, meta={"expected": f"each {column} in one split"}
        )
        suites[what] = Suite(frame, column, [alone])
    counts = pd.crosstab(table["label"], table["split"])
    counts = counts.reindex(index=params.classes, columns=list(SPLITS), fill_value=0).stack()
    frame = pd.DataFrame(
        {"class": [f"{label} in {split}" for label, split in counts.index], "images": counts.values}
    )
    present = gxe.ExpectColumnValuesToBeBetween(
        column="images", min_value=1, meta={"expected": "every class in every split"}
    )
    return suites | {"class_splits": Suite(frame, "class", [present])}


def refuse(violations: list[Violation], images: Path) -> None:
    """Raises: DataError that lists the violations, if there are any."""
    if violations:
        raise DataError(f"{images}: " + " | ".join(map(str, violations)))


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Validate, split and pack. Raises: DataError that names the rows at fault."""
    table = inspect_all(paths.images, read_metadata(paths.images))
    if "group" not in table:
        print("no column `group`: every image counts as a group of its own", flush=True)
        table["group"] = table["file_name"]
    if "domain" not in table:
        table["domain"] = ""

    paths.validated.mkdir()
    channels = 1 if set(table["mode"]) <= set(GREY_MODES) else 3
    pixels = np.lib.format.open_memmap(
        paths.validated / "pixels.npy",
        mode="w+",
        dtype=np.uint8,
        shape=(len(table), params.image_px, params.image_px, channels),
    )
    readable = table.index[table["problem"].isna()]
    problems = decode_all(paths.images, table["file_name"], list(readable), pixels)
    pixels.flush()
    table.loc[list(problems), "problem"] = list(problems.values())

    contract = Contract(paths.docs)
    refuse(
        contract.verify(
            {"images": image_suite(table, params), "classes": class_suite(table, params)}
        ),
        paths.images,
    )
    table["split"] = split_by_group(table, params)
    refuse(contract.verify(split_suites(table, params)), paths.images)

    save_dataset(paths.validated, table.drop(columns="problem"), params.classes)
    print(f"{len(table)} images fulfil {contract.evaluated} expectations", flush=True)
    by_split = pd.crosstab(table["split"], table["label"]).loc[list(SPLITS)]
    groups = table.groupby("split")["group"].nunique()
    report.write_metrics(
        paths.metrics,
        {
            "images": len(table),
            "channels": channels,
            "image_px": params.image_px,
            "groups": int(table["group"].nunique()),
            "expectations": contract.evaluated,
            "splits": {
                split: {"groups": int(groups[split]), "images": int(by_split.loc[split].sum())}
                | {"classes": {c: int(by_split.loc[split, c]) for c in params.classes}}
                for split in SPLITS
            },
        },
    )
    by_split.reset_index().melt("split", var_name="label", value_name="images").to_csv(
        paths.plot, index=False
    )
    examples = {
        c: np.flatnonzero((table["label"] == c) & (table["split"] == "train"))
        for c in params.classes
    }
    pictures.grid(
        paths.grid,
        {
            c: pixels[rows[np.linspace(0, len(rows) - 1, 8).astype(int)]]
            for c, rows in examples.items()
        },
    )


if __name__ == "__main__":
    stage.main("validate")
