"""What is expected of the images: the suites of the data contract."""

import pandas as pd

from stages.core.dataset.data import SPLITS, UNLABELLED
from stages.core.intake.contract import Expectation, Suite, Violation
from stages.core.release import predict


def image_suite(
    table: pd.DataFrame, classes: list[str], *, min_source_px: int, min_contrast: float
) -> Suite:
    """Every single image: there, readable, of a class if labelled, large enough, not blank."""
    import great_expectations.expectations as gxe  # see contract.py

    measures = predict.least(min_source_px, min_contrast)
    expectations: list[Expectation] = [
        gxe.ExpectColumnValuesToBeNull(
            column="problem",
            meta={"expected": "a whole image inside the folder, listed once"},
        ),
        gxe.ExpectColumnValuesToBeInSet(
            column="label",
            value_set=classes,
            meta={
                "expected": f"one of the classes {', '.join(classes[:20])}",
                "do": "correct the label, or the classes (classes.txt, validate.classes)",
            },
        ),
        *(
            gxe.ExpectColumnValuesToBeBetween(
                column=column, min_value=limit, meta={"expected": words, "do": advice}
            )
            for column, (limit, words, advice) in measures.items()
        ),
    ]
    # Great Expectations asks nothing of a cell that is null.
    labels = table["label"].where(table["label"] != "", None)
    return Suite(table.assign(label=labels), "file_name", expectations)


def class_suites(
    table: pd.DataFrame, classes: list[str], *, min_per_class: int, min_groups_per_class: int
) -> dict[str, Suite]:
    """Enough images and groups of every class."""
    import great_expectations.expectations as gxe

    by_class = table.groupby("label")
    suites = {}
    for what, counts, name, least in (
        ("images", by_class.size(), "min_per_class", min_per_class),
        ("groups", by_class["group"].nunique(), "min_groups_per_class", min_groups_per_class),
    ):
        frame = counts.reindex(classes, fill_value=0).rename(what).rename_axis("class")
        enough = gxe.ExpectColumnValuesToBeBetween(
            column=what,
            min_value=least,
            meta={
                "expected": f"at least {least} {what} of each class",
                "do": f"add some, leave the class out, or lower validate.{name}",
            },
        )
        suites[f"class_{what}"] = Suite(frame.reset_index(), "class", [enough])
    return suites


def background_suite(table: pd.DataFrame, least: int) -> Suite:
    """Enough images of each group to tell their background."""
    import great_expectations.expectations as gxe

    sizes = table.groupby("group").size().rename("images").reset_index()
    enough = gxe.ExpectColumnValuesToBeBetween(
        column="images",
        min_value=least,
        meta={
            "expected": f"at least {least} images of each group, to make its background of",
            "do": "add some, leave the group out, or lower validate.min_background_images; "
            "validate.on_small_group: keep leaves such images as they are",
        },
    )
    return Suite(sizes, "group", [enough])


def splits_by_group(table: pd.DataFrame) -> "pd.Series[int]":
    """In how many splits each group is; unlabelled images may be of groups that train."""
    splits = table["split"].replace(UNLABELLED, "train")
    return splits.groupby(table["group"]).nunique()


def split_suites(
    table: pd.DataFrame,
    classes: list[str],
    *,
    torn: bool,
    test_share: tuple[float, float] | None = None,
) -> dict[str, Suite]:
    """Every class in every split; groups whole (unless `torn` on purpose); shares as wanted.

    Args:
        test_share: the test split's share of the images and how far it may be from it, if checked.
    """
    import great_expectations.expectations as gxe

    counts = pd.crosstab(table["label"], table["split"])
    counts = counts.reindex(index=classes, columns=list(SPLITS), fill_value=0).stack()
    frame = pd.DataFrame(
        {"class": [f"{label} in {split}" for label, split in counts.index], "images": counts.values}
    )
    present = gxe.ExpectColumnValuesToBeBetween(
        column="images",
        min_value=1,
        meta={
            "expected": "every class in every split",
            "do": "add groups of this class, or try another validate.seed or fold",
        },
    )
    suites = {"class_splits": Suite(frame, "class", [present])}
    if not torn:
        groups = splits_by_group(table).rename("splits").reset_index()
        alone = gxe.ExpectColumnValuesToBeBetween(
            column="splits", max_value=1, meta={"expected": "each group in one split"}
        )
        suites["groups"] = Suite(groups, "group", [alone])
    if test_share:
        wanted, tolerance = test_share
        share = (table.loc[table["label"] != "", "split"] == "test").mean()
        near = gxe.ExpectColumnValuesToBeBetween(
            column="share",
            min_value=wanted - tolerance,
            max_value=wanted + tolerance,
            meta={
                "expected": f"{wanted:.2f} ± {tolerance:g} of the images",
                "do": "few large groups fall unevenly: try another validate.seed",
            },
        )
        frame = pd.DataFrame({"split": ["test"], "share": [share]})
        suites["balance"] = Suite(frame, "split", [near])
    return suites


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
