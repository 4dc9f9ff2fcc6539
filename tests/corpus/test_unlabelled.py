"""Unlabelled images in every layout: each is found, and none becomes a class or a measure."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.core.runner.errors import DataError
from tests.corpus.folders import (
    Step,
    as_bytes,
    classes,
    gone,
    moved,
    put,
    replace,
    rows,
    shard,
    steps,
    table,
)
from tests.helpers.front_door import manifest, metrics, quarantined, run
from tests.helpers.layouts import as_parquet

pytestmark = pytest.mark.usefixtures("quick")


def beside(*names: str) -> Step:
    """More images, unlike all others."""
    return lambda root: put(root, list(names), seed=5000)


FIVE = [f"{i}.png" for i in range(5)]
SPLITS = steps(
    classes("train/a", "train/b"),
    lambda root: put(root, [f"test/a/{i}.png" for i in range(4)], seed=7000),
    lambda root: put(root, [f"test/b/{i}.png" for i in range(4)], seed=8000),
)


def in_folder(name: str) -> Step:
    return beside(*(f"{name}/{file}" for file in FIVE))


def some_blank(text: str) -> Step:
    """Metadata in which the last five of 29 images have `text` in place of a label."""
    return rows(row=lambda i, n: f"{n},{'ab'[i % 2] if i < 24 else text}", count=29)


def json_lines(root: Path) -> None:
    some_blank("")(root)
    lines = (root / "metadata.csv").read_text().splitlines()[1:]
    about = [dict(zip(("file_name", "label"), line.split(","), strict=True)) for line in lines]
    content = [json.dumps(x | {"label": x["label"] or None}) for x in about]
    (root / "metadata.jsonl").write_text("\n".join(content))
    (root / "metadata.csv").unlink()


def parquet(root: Path) -> None:
    json_lines(root)
    lines = (root / "metadata.jsonl").read_text().splitlines()
    (root / "metadata.parquet").write_bytes(as_parquet([json.loads(line) for line in lines]))
    (root / "metadata.jsonl").unlink()


def metadata_in_each(unlabelled: str | None) -> Step:
    """Split folders with metadata; that of the unlabelled images is `unlabelled`, if any."""

    def step(root: Path) -> None:
        SPLITS(root)
        in_folder("Unlabeled")(root)
        for split in ("train", "test"):
            files = sorted((root / split).rglob("*.png"))
            lines = [f"{f.relative_to(root / split)},{f.parent.name}" for f in files]
            table("\n".join(["file_name,label", *lines]), f"{split}/metadata.csv")(root)
        if unlabelled:
            table(unlabelled, "Unlabeled/metadata.csv")(root)

    return step


def in_shard(*members: tuple[str, bytes]) -> Step:
    """A shard with five more images, each with such a member, or with none."""
    more = {f"more{i}.png": as_bytes(5000 + i) for i in range(5)}
    more |= {f"more{i}.{kind}": data for i in range(5) for kind, data in members}
    return shard(str, more)


@dataclass
class Case:
    """Five unlabelled images beside those of two classes.

    Attributes:
        build: makes the folder.
        lines: words that the stage prints.
        changes: params.
        labels: the classes.
    """

    build: Step
    lines: list[str]
    changes: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, str] = ("a", "b")


BLANK = "no label: 5 of 29 images"
IN_SPLITS: dict[str, Any] = {"changes": {"val_folds": 2}}
CASES: dict[str, Case] = {
    **{
        f"a folder {name} beside class folders": Case(
            steps(classes("a", "b"), in_folder(name)),
            [f"called {name}: 5 of 29 images", "this is no class unless classes.txt or"],
        )
        for name in ("unlabelled", "Unlabeled", "UN-LABELLED", "unlabeled_images", "unlabeled2017")
    },
    "folders in that folder": Case(
        steps(classes("a", "b"),
              beside(*(f"unlabelled/{'xy'[i % 2]}/{i}.png" for i in range(5)))),
        ["called unlabelled: 5 of 29 images"],
    ),
    "the classes' names in that folder": Case(
        steps(classes("a", "b"),
              beside(*(f"unlabelled/{'ab'[i % 2]}/{i}.png" for i in range(5)))),
        ["called unlabelled: 5 of 29 images"],
    ),
    "a folder beside split folders": Case(
        steps(SPLITS, in_folder("unlabelled")), ["split unlabelled: 5 of 37 images"], **IN_SPLITS,
    ),
    "folders in a folder beside split folders": Case(
        steps(SPLITS, beside(*(f"unlabeled_set/{i}/1.png" for i in range(5)))),
        ["names of splits: test = test, train = train, unlabeled_set = unlabelled",
         "split unlabelled: 5 of 37 images"], **IN_SPLITS,
    ),
    "a folder beside the classes of a split": Case(
        steps(SPLITS, in_folder("train/unlabelled")), ["called unlabelled: 5 of 37"], **IN_SPLITS,
    ),
    "COCO's name, without its boxes": Case(
        steps(SPLITS, moved("train", "train2017"), moved("test", "test2017"),
              in_folder("unlabeled2017")),
        ["split unlabelled: 5 of 37"], **IN_SPLITS,
    ),
    "blank labels": Case(
        some_blank(""), [f"{BLANK} (24.png, 25.png, 26.png and 2 more); they are unlabelled ones"],
    ),
    "labels of blanks": Case(some_blank("  "), [BLANK]),
    "labels that say so": Case(some_blank("Unlabelled"), ["called Unlabelled: 5 of 29 images"]),
    "nothing in JSON lines": Case(json_lines, [BLANK]),
    "nothing in Parquet": Case(parquet, [BLANK]),
    "a column that says so": Case(
        rows(header="file_name,label,split", count=29,
             row=lambda i, n: f"{n},{'ab'[i % 2]},{'unlabelled' if i > 23 else ''}"),
        ["split unlabelled: 5 of 29 images, labels that are not used: 5"],
    ),
    "such a column, with the other splits": Case(
        rows(header="file_name,label,split", count=29, row=lambda i, n:
             f"{n},{'ab'[i % 2] if i < 24 else ''},{['train', 'test', 'val'][i // 8 % 3]}"
             if i < 24 else f"{n},,Unlabeled"),
        ["split unlabelled: 5 of 29 images"], {"split": "column"},
    ),
    "blank labels and no split, with the other splits": Case(
        rows(header="file_name,label,split", count=29, row=lambda i, n:
             f"{n},{'ab'[i % 2]},{['train', 'test', 'val'][i // 8 % 3]}" if i < 24 else f"{n},,"),
        [BLANK], {"split": "column"},
    ),
    "a folder that metadata does not name": Case(
        steps(rows(), in_folder("unlabelled")), ["no label: 5 of 29 images (unlabelled/0.png"],
    ),
    "a folder without metadata beside split folders": Case(
        metadata_in_each(None), ["split unlabelled: 5 of 37"], **IN_SPLITS,
    ),
    "a folder with metadata that has no labels": Case(
        metadata_in_each("file_name,camera\n" + "".join(f"{file},x\n" for file in FIVE)),
        ["split unlabelled: 5 of 37"], **IN_SPLITS,
    ),
    "no label in a shard": Case(in_shard(), [BLANK], labels=("0", "1")),
    "a blank label in a shard": Case(in_shard(("cls", b"\n")), [BLANK], labels=("0", "1")),
    "a label in a shard that says so": Case(
        in_shard(("cls", b"unlabeled")), ["called unlabeled: 5 of 29"], labels=("0", "1"),
    ),
    "null in a shard": Case(
        in_shard(("json", b'{"label": null, "group": null}')), [BLANK], labels=("0", "1"),
    ),
    "a split in a shard": Case(
        in_shard(("json", b'{"label": 1, "split": "unlabelled"}')),
        ["split unlabelled: 5 of 29 images, labels that are not used: 5"], labels=("0", "1"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_unlabelled_images_are_found(
    tmp_path: Path, case: Case, capsys: pytest.CaptureFixture[str]
) -> None:
    case.build(tmp_path / "images")
    out = run(tmp_path, **case.changes)
    printed = capsys.readouterr().out
    assert [line for line in case.lines if line not in printed] == [], printed
    assert "unlabelled: 5 of these images; they teach students" in printed
    result = manifest(out)
    is_bare = result["split"] == "unlabelled"
    assert is_bare.sum() == 5
    assert set(result.loc[is_bare, "label"]) == {""}
    assert set(result.loc[~is_bare, "label"]) == set(case.labels)
    assert json.loads((out / "validated" / "classes.json").read_text()) == list(case.labels)
    assert metrics(out)["unlabelled"] == 5
    assert sum(split["images"] for split in metrics(out)["splits"].values()) == (~is_bare).sum()
    assert [row for row in quarantined(out) if row["kind"] != "not used"] == []
    assert set(pd.read_csv(out / "plot", dtype=str)["label"]) == set(case.labels)


@pytest.mark.parametrize("name", ["unlabelled", "Unlabeled"])
@pytest.mark.parametrize("by", ["classes.txt", "params"])
def test_a_class_may_be_called_so(tmp_path: Path, name: str, by: str) -> None:
    classes("a/x", "a/y", name)(tmp_path / "images")
    changes: dict[str, Any] = {"classes": ["a", name]}
    if by == "classes.txt":
        table(f"a\n{name}\n", "classes.txt")(tmp_path / "images")
        changes = {}
    out = run(tmp_path, **changes)
    assert manifest(out)["label"].value_counts().to_dict() == {"a": 24, name: 12}
    assert metrics(out)["unlabelled"] == 0


def test_another_spelling_of_a_class_that_is_called_so_is_refused(tmp_path: Path) -> None:
    """Not taken for unlabelled images."""
    build = rows(row=lambda i, n: f"{n},{['a', 'unlabelled', 'Unlabelled'][i % 3]}")
    steps(build, table("a\nunlabelled\n", "classes.txt"))(tmp_path / "images")
    with pytest.raises(DataError, match="'Unlabelled' and 'unlabelled' differ only in blanks"):
        run(tmp_path)


@pytest.mark.parametrize("name", ["unlabbeled", "unknown", "other", "background", "labelled"])
def test_no_other_class_folder_becomes_one_of_unlabelled_images(tmp_path: Path, name: str) -> None:
    classes("a", "b", name)(tmp_path / "images")
    assert manifest(run(tmp_path))["label"].value_counts()[name] == 12


def all_bare(root: Path) -> None:
    rows(row=lambda i, n: f"{n},")(root)


# What is there; what must be said; what then helps; where the images are then.
REFUSED: dict[str, tuple[Step, list[str], Step | None, str]] = {
    "no label at all": (
        all_bare, ["found 0 classes (no label)", "add labelled images of another class"], None, "",
    ),
    "a folder of unlabelled images alone": (
        in_folder("unlabelled"), ["found 0 classes (no label)"], classes("a", "b"), "",
    ),
    "one class": (
        steps(classes("a"), in_folder("unlabelled")),
        ["found 1 class (a) and 5 images without a label; expected at least two"],
        lambda root: put(root, [f"b/{i}.png" for i in range(12)], seed=9000), "",
    ),
    "no label in any shard": (
        lambda root: shard(str, {"1.png": as_bytes(1)}, count=0)(root),
        ["no label in train-0.tar; expected KEY.cls or KEY.json beside every image that has one"],
        None, "",
    ),
    "folders of labelled and of unlabelled images": (
        steps(classes("labelled/a", "labelled/b"), in_folder("unlabelled")),
        ["found one folder, labelled, around a, b", "move unlabelled there, and set data.dir to"],
        moved("unlabelled", "labelled/unlabelled"), "labelled",
    ),
    "a train folder and unlabelled images": (
        steps(classes("train/a", "train/b"), in_folder("unlabelled")),
        ["found train and unlabelled; expected a folder with the test split, too",
         "move it into train, and set data.dir to"],
        moved("unlabelled", "train/unlabelled"), "train",
    ),
    "a test folder without labels": (
        steps(classes("train/a", "train/b"), in_folder("test")),
        ["test has 5 images in no class folder", "images/train/unlabelled, they teach without"],
        moved("test", "train/unlabelled"), "train",
    ),
    "images for some groups": (
        rows(header="file_name,label,group", count=29, row=lambda i, n:
             f"{n},{'ab'[i % 2]},g{i // 3}" if i < 24 else f"{n},,"),
        ["5 of 29 rows have no group", "fill the column"],
        lambda root: replace(",,\n", ",,x\n")(root), "",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("build", "words", "remedy", "inside"), REFUSED.values(), ids=list(REFUSED)
)
def test_refused_with_the_remedy_that_helps(
    tmp_path: Path, build: Step, words: list[str], remedy: Step | None, inside: str
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    build(folder)
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    if remedy:
        remedy(folder)
        if inside:
            folder.rename(tmp_path / "before")
            (tmp_path / "before" / inside).rename(folder)
        assert metrics(run(tmp_path))["unlabelled"] == 5


def test_what_is_in_no_class_folder_is_no_unlabelled_image(tmp_path: Path) -> None:
    steps(classes("a", "b"), beside("stray.png"))(tmp_path / "images")
    with pytest.raises(DataError, match="it lies in no class folder"):
        run(tmp_path)
    gone("stray.png")(tmp_path / "images")
    assert metrics(run(tmp_path))["unlabelled"] == 0


def test_bad_ones_are_bad_images_like_others(tmp_path: Path) -> None:
    steps(classes("a", "b"), in_folder("unlabelled"))(tmp_path / "images")
    (tmp_path / "images" / "unlabelled" / "0.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"unlabelled/0\.png: an empty file"):
        run(tmp_path)
    out = run(tmp_path, on_bad_image="quarantine")
    assert [row["file_name"] for row in quarantined(out)] == ["unlabelled/0.png"]
    assert metrics(out)["unlabelled"] == 4
