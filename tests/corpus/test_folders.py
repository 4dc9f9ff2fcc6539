"""Folders as people have them: each is understood, or refused with the remedy that helps.

A long file, since it holds two tables. What a message advises is done here, and helps.
"""

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image

from stages import validate
from stages.core.dataset.data import load_dataset
from stages.core.runner.errors import DataError
from stages.core.runner.params import parse_section
from tests.corpus.folders import (
    Step,
    as_bytes,
    classes,
    elongated,
    fixed_camera,
    gone,
    linked,
    moved,
    nfd,
    picture,
    put,
    replace,
    rows,
    shard,
    steps,
    table,
)
from tests.helpers.front_door import PARAMS, manifest, metrics, quarantined, run
from tests.helpers.shapes import as_folder, digits

pytestmark = pytest.mark.usefixtures("quick")


@dataclass
class Refused:
    """A folder that is refused.

    Attributes:
        build: makes it.
        words: what the message must have.
        remedy: does what the message advises; None where it advises other data.
        folder: where the images are after the remedy, below the folder.
        changes: params after the remedy.
        labels: the classes then.
    """

    build: Step
    words: list[str]
    remedy: Step | None = None
    folder: str = ""
    changes: dict[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ("a", "b")


def nothing(root: Path) -> None:
    """The remedy is in the params."""


def two_kinds(root: Path) -> None:
    classes("cat", "dog")(root)
    put(root, "cat/odd.gif", seed=5000, kind="GIF")


def content_alone(root: Path) -> None:
    """Photographs whose names have lost their ending."""
    classes("cat", "dog")(root)
    (root / "bird").mkdir()
    for i in range(12):
        (root / "bird" / f"IMG_{i}").write_bytes(as_bytes(3000 + i, "JPEG"))


def in_two_classes(root: Path) -> None:
    classes("cat", "dog")(root)
    (root / "dog" / "copy.png").write_bytes((root / "cat" / "1.png").read_bytes())


def coco(root: Path) -> None:
    for split in ("train2017", "val2017"):
        put(root, [f"{split}/{i}.jpg" for i in range(3)])
    table("{}", "annotations/instances_train2017.json")(root)


def yolo(root: Path) -> None:
    for split in ("train", "valid"):
        put(root, [f"{split}/images/{i}.jpg" for i in range(3)])
        for i in range(3):
            table("0 0.5 0.5 0.1 0.1", f"{split}/labels/{i}.txt")(root)


def voc(root: Path) -> None:
    put(root, [f"JPEGImages/{i}.jpg" for i in range(3)])
    table("<annotation/>", "Annotations/0.xml")(root)


def groups_for_some(i: int, name: str) -> str:
    return f"{name},{'ab'[i % 2]},{'' if i % 3 == 0 else f'p{i // 3}'}"


def unlabelled_test(root: Path) -> None:
    """As Kaggle gives it: labels for what trains only."""
    classes("train/a", "train/b")(root)
    put(root, [f"test/{i}.png" for i in range(5)], seed=9000)


def zips(root: Path) -> None:
    for name in ("cats.zip", "dogs.zip"):
        table("PK", name)(root)


def unpacked(root: Path) -> None:
    gone("cats.zip", "dogs.zip")(root)
    classes("a", "b")(root)


def a_pipe(root: Path) -> None:
    classes("a", "b")(root)
    os.mkfifo(root / "a" / "pipe")


def not_utf8(root: Path) -> None:
    classes("a", "b")(root)
    (root / "a" / "1.png").rename(root / "a" / os.fsdecode(b"caf\xe9.png"))


def as_utf8(root: Path) -> None:
    (root / "a" / os.fsdecode(b"caf\xe9.png")).rename(root / "a" / "café.png")


def a_linked_class(root: Path) -> None:
    classes("a", "c")(root)
    (root / "c").rename(root.parent / "elsewhere")
    (root / "c").symlink_to(root.parent / "elsewhere")


def copied_class(root: Path) -> None:
    (root / "c").unlink()
    (root.parent / "elsewhere").rename(root / "b")


# What is there; what must be said; what then helps.
REFUSED: dict[str, Refused] = {
    # Splits that look like classes, and the other way round.
    "parts with the same classes": Refused(
        classes("first/a", "first/b", "second/a", "second/b"),
        ["first, second have the same folders in them (a, b)", "rename it to train, val or test"],
        steps(moved("first", "train"), moved("second", "test")),
    ),
    "splits below the classes": Refused(
        classes("a/train", "a/test", "b/train", "b/test"),
        ["a, b each have the split folders test, train", "train/CLASS/IMAGE"],
        steps(*(moved(f"{c}/{s}", f"{s}/{c}") for c in "ab" for s in ("train", "test")),
              gone("a", "b")),
    ),
    "a split folder beside others": Refused(
        classes("train/a", "train/b", "more/a"),
        ["found the folders train and more", "take more out"],
        gone("more"), "train",
    ),
    "splits without class folders": Refused(
        classes("train", "test"),
        ["test, train are called as splits, and have no class folders"],
        steps(moved("train", "a"), moved("test", "b")),
    ),
    "a test folder without labels": Refused(
        unlabelled_test,
        ["test has 5 images in no class folder, train has the class folders a, b",
         "take test out and set data.dir to"],
        gone("test"), "train",
    ),
    "a folder around the classes of each split": Refused(
        classes("seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a",
                "seg_test/seg_test/b"),
        ["seg_test/seg_test is one folder around the class folders", "one level up"],
        steps(*(moved(f"seg_{s}/seg_{s}/{c}", f"seg_{s}/{c}") for s in ("train", "test")
                for c in "ab"), gone("seg_train/seg_train", "seg_test/seg_test")),
    ),
    "a wrapper folder": Refused(
        classes("PetImages/a", "PetImages/b"),
        ["found one folder, PetImages, around a, b", "one level down", "images/PetImages"],
        nothing, "PetImages",
    ),
    "two wrapper folders": Refused(
        classes("archive/PetImages/a", "archive/PetImages/b"),
        ["around a, b", "images/archive/PetImages"], nothing, "archive/PetImages",
    ),
    "lists of splits": Refused(
        steps(classes("a", "b"), table("a/1.png\n", "train.txt"), table("b/1.png\n", "test.txt")),
        ["found test.txt, train.txt; lists of splits are not read", "or take the lists out"],
        gone("train.txt", "test.txt"),
    ),
    # Data sets of another kind.
    "COCO": Refused(coco, ["annotations", "object detection or segmentation (YOLO, COCO"]),
    "YOLO": Refused(yolo, ["images, labels", "one label for each whole image"]),
    "Pascal VOC": Refused(voc, ["JPEGImages", "Pascal VOC"]),
    "images and masks": Refused(classes("images", "masks"), ["images, masks", "segmentation"]),
    "archives": Refused(zips, ["found cats.zip, dogs.zip", "archives are not opened"], unpacked),
    "no folders at all": Refused(
        lambda root: put(root, ["1.png", "2.png"]), ["found 1.png, 2.png", "a folder per class"],
        steps(gone("1.png", "2.png"), classes("a", "b")),
    ),
    "labels under another file's name": Refused(
        steps(rows(), moved("metadata.csv", "labels.csv")),
        ["if labels.csv has the labels, save it as metadata.csv"],
        moved("labels.csv", "metadata.csv"),
    ),
    "metadata.csv in capitals": Refused(
        steps(rows(), moved("metadata.csv", "Metadata.CSV")),
        ["found Metadata.CSV", "call it metadata.csv"], moved("Metadata.CSV", "metadata.csv"),
    ),
    # Classes.
    "a class folder that is a link": Refused(
        a_linked_class,
        ["c is a link to the folder", "elsewhere", "DVC follows no links to folders"], copied_class,
    ),
    "a class folder without an image": Refused(
        steps(classes("a", "b"), table("", "bird/film.mp4"), table("", "bird/notes.txt")),
        ["no image in the class folder bird (2 other files)", "take the folder out"], gone("bird"),
    ),
    "an empty class folder": Refused(
        steps(classes("a", "b"), lambda root: (root / "bird").mkdir()),
        ["no image in the class folder bird"], gone("bird"),
    ),
    "an empty class in one split": Refused(
        steps(classes("train/a", "train/b", "test/a"), lambda root: (root / "test/b").mkdir()),
        ["no image in the class folder test/b"], lambda root: put(root, "test/b/1.png", seed=77),
    ),
    "folders that differ in case": Refused(
        classes("a", "b", "B"), ["label = 'B' and 'b' differ only in blanks, case or spelling"],
        gone("B"),
    ),
    "folders that differ in blanks": Refused(
        classes("a", "b", "b "), ["the folders 'b' and 'b ' differ only in blanks"], gone("b "),
    ),
    "labels that differ in case": Refused(
        rows(row=lambda i, n: f"{n},{['a', 'b', 'A'][i % 3]}"), ["label = 'A' and 'a' differ only"],
        replace(",A", ",a"),
    ),
    "labels that differ in Unicode form": Refused(
        rows(row=lambda i, n: f"{n},{['a', 'ü', nfd('ü')][i % 3]}"), ["differ only in blanks"],
        replace(nfd("ü"), "ü"), labels=("a", "ü"),
    ),
    "numbers spelt in two ways": Refused(
        rows(row=lambda i, n: f"{n},{['0', '1', '1.0'][i % 3]}"), ["label = '1' and '1.0'"],
        replace("1.0\n", "1\n"), labels=("0", "1"),
    ),
    "groups that differ in case": Refused(
        rows(header="file_name,label,group",
             row=lambda i, n: f"{n},{'ab'[i % 2]},{'Pp'[i % 2]}{i // 4}"),
        ["group = 'P0' and 'p0' differ only"], replace(",P", ",p"),
    ),
    # Metadata.
    "groups for some rows": Refused(
        rows(header="file_name,label,group", row=groups_for_some),
        ["8 of 24 rows have no group (0.png, 12.png, 15.png and 5 more), the others have one",
         "set validate.on_gaps to allow"], nothing, changes={"on_gaps": "allow"},
    ),
    "domains for some rows": Refused(
        rows(header="file_name,label,domain",
             row=lambda i, n: f"{n},{'ab'[i % 2]},{'x' if i else ''}"),
        ["1 of 24 rows have no domain (0.png)"], replace("0.png,a,\n", "0.png,a,x\n"),
    ),
    "metadata in one of two folders": Refused(
        steps(rows(), lambda root: put(root, "more/1.png", seed=99), moved("metadata.csv",
              "first/metadata.csv"), *(moved(f"{i}.png", f"first/{i}.png") for i in range(24))),
        ["found first/metadata.csv, but no metadata in more", "take the folder out"], gone("more"),
    ),
    "semicolons": Refused(
        rows(header="file_name;label", row=lambda i, n: f"{n};{'ab'[i % 2]}"),
        ["separated by semicolons; expected commas"], replace(";", ","),
    ),
    "tabs": Refused(
        rows(header="file_name\tlabel", row=lambda i, n: f"{n}\t{'ab'[i % 2]}"),
        ["separated by tabs; expected commas"], replace("\t", ","),
    ),
    "other names of the columns": Refused(
        rows(header="filename,label"), ["no column 'file_name'", "rename filename to file_name"],
        replace("filename,", "file_name,"),
    ),
    "another name of the label": Refused(
        rows(header="file_name,Category"), ["no column 'label'", "rename Category to label"],
        replace("Category", "label"),
    ),
    "a column in capitals": Refused(
        rows(header="file_name,label,Group", row=lambda i, n: f"{n},{'ab'[i % 2]},g{i}"),
        ["found the column 'Group'; expected 'group': rename it"], replace("Group", "group"),
    ),
    "a split column against split folders": Refused(
        rows(header="file_name,label,split", names=lambda i: f"{'train' if i < 12 else 'test'}/{i}"
             ".png", row=lambda i, n: f"{n},{'ab'[i % 2]},train"),
        ["has split = 'train' and lies in another split's folder"], replace(",train\n", ",\n"),
    ),
    # Shards.
    "keys with dots": Refused(
        shard(lambda i: f"2024.01.{i:02}-cam"),
        ["2024.01.", "a key ends at the first dot", "keys without dots"],
        shard(lambda i: f"2024-01-{i:02}-cam"), labels=("0", "1"),
    ),
    "a tar of class folders": Refused(
        lambda root: shard(lambda i: f"{'ab'[i % 2]}/{i}", count=0, more={
            f"{'ab'[i % 2]}/{i}.png": as_bytes(i) for i in range(24)})(root),
        ["no label in train-0.tar", "unpack it (tar xf) and take it out"],
        steps(gone("train-0.tar"), classes("a", "b")),
    ),
    "compressed shards beside others": Refused(
        steps(shard(str), table("", "train-1.tar.gz")),
        ["train-1.tar.gz: expected uncompressed shards"], gone("train-1.tar.gz"),
        labels=("0", "1"),
    ),
    # What DVC could not take.
    "a name that is not UTF-8": Refused(
        not_utf8, ["a/caf\\xe9.png: its name is not UTF-8", "rename it"], as_utf8,
    ),
    "a dead link": Refused(
        steps(classes("a", "b"), gone("a/1.png"), linked("a/1.png", "/mnt/nas/gone/1.jpg")),
        ["a/1.png: a link to /mnt/nas/gone/1.jpg, where nothing is", "or delete the link"],
        gone("a/1.png"),
    ),
    "a link to itself": Refused(
        steps(classes("a", "b"), linked("a/loop", "loop")),
        ["a/loop: a link that leads to itself: delete it"], gone("a/loop"),
    ),
    "a pipe": Refused(
        a_pipe, ["a/pipe: neither a file nor a folder (a pipe"], gone("a/pipe"),
    ),
}  # fmt: skip


def looked_at(root: Path, folder: str, changes: dict[str, Any]) -> list[str]:
    """The classes, as the stage finds them before it decodes anything."""
    params = parse_section({"validate": PARAMS | changes}, "validate", validate.Params, source="")
    source = validate.read_source(root / folder if folder else root, params)
    return validate.find_classes(source)


@pytest.mark.parametrize("kind", REFUSED.values(), ids=list(REFUSED))
def test_refused_with_the_remedy_that_helps(tmp_path: Path, kind: Refused) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    kind.build(folder)
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert [word for word in kind.words if word not in message] == [], message
    assert "\n" not in message
    if kind.remedy:
        kind.remedy(folder)
        assert looked_at(folder, kind.folder, kind.changes) == list(kind.labels)


@dataclass
class Taken:
    """A folder that is used.

    Attributes:
        build: makes it.
        lines: words that the stage prints.
        labels: images by label in the manifest.
        splits: images by split, where they are given.
        others: lines of quarantine.csv.
        changes: params.
    """

    build: Step
    lines: list[str]
    labels: dict[str, int]
    splits: dict[str, int] | None = None
    others: int = 0
    changes: dict[str, Any] = field(default_factory=dict)


def splits(train: str, test: str) -> Step:
    return steps(
        classes(f"{train}/a", f"{train}/b"),
        lambda root: put(root, [f"{test}/a/{i}.png" for i in range(4)], seed=7000),
        lambda root: put(root, [f"{test}/b/{i}.png" for i in range(4)], seed=8000),
    )


LEFT_BEHIND = (
    "__MACOSX/a/1.png", "__MACOSX/._1.png", "a/._1.png", "a/.DS_Store", "a/Thumbs.db",
    "a/ehthumbs.db", "desktop.ini", "b/desktop.ini", "@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg",
    "a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "#recycle/old.png", "$RECYCLE.BIN/x/old.png",
    "System Volume Information/x.png", "lost+found/1.png", ".ipynb_checkpoints/1.png",
    "a/.ipynb_checkpoints/1-checkpoint.png", ".AppleDouble/1.png", "Icon\r",
    ".Spotlight-V100/x.png", ".fseventsd/x", "a/MVI_1.THM", "PaxHeader/1.png", ".git/x",
    ".cache/1.png", ".nfs000000012", "a/.~lock.x.csv#", "a/~$x.csv", ".sync/1.png",
    ".stfolder/x", ".dropbox", "@Recycle/1.png", ".@__thumb/1.png", "a/1.png.crdownload",
)  # fmt: skip


def left_behind(root: Path) -> None:
    classes("a", "b")(root)
    for number, name in enumerate(LEFT_BEHIND):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(as_bytes(6000 + number))


TRAINED = {"a": 16, "b": 16}
TAKEN: dict[str, Taken] = {
    **{
        f"{train} and {test}": Taken(
            splits(train, test), [], TRAINED, {"test": 8}, changes={"val_folds": 2}
        )
        for train, test in (
            ("training_set", "test_set"), ("train", "eval"), ("training", "holdout"),
        )  # test_names.py has the other spellings
    },
    "what systems leave behind": Taken(
        left_behind, ["left out, as what systems and programs leave: #recycle, $RECYCLE.BIN"],
        {"a": 12, "b": 12},
    ),
    "what systems leave behind, in shards": Taken(
        shard(str, {name: as_bytes(6000 + i) for i, name in enumerate(LEFT_BEHIND)}),
        ["left out, as what systems and programs leave"], {"0": 12, "1": 12},
    ),
    "names in another Unicode form": Taken(
        rows(names=lambda i: f"grün_{i}.png", files=lambda i: nfd(f"grün_{i}.png")),
        ["24 names match files but for another Unicode form"], {"a": 12, "b": 12},
    ),
    "backslashes": Taken(
        rows(names=lambda i: f"sub\\{i}.png", files=lambda i: f"sub/{i}.png"),
        ["24 names match files but for \\ for /"], {"a": 12, "b": 12},
    ),
    "blanks in a table": Taken(
        rows(header="file_name, label", row=lambda i, n: f"{n} ,{['a', ' b', 'a ', 'b'][i % 4]}"),
        ["24 names match files but for blanks", "blanks around label: trimmed in 12 of 24 rows"],
        {"a": 12, "b": 12},
    ),
    "a spreadsheet's empty rows": Taken(rows(end="\n,\n,\n\n"), [], {"a": 12, "b": 12}),
    "images that no row names": Taken(
        steps(rows(), lambda root: put(root, ["x.png", "y.png"], seed=99)),
        ["images that metadata.csv does not name, not used: 2"], {"a": 12, "b": 12}, others=2,
    ),
    "folders in class folders": Taken(
        classes("a/x", "a/y", "b/z"), ["images in folders of the class a count for it: x, y"],
        {"a": 24, "b": 12},
    ),
    "no groups, but a column that may be meant": Taken(
        rows(header="file_name,label,patient_id", row=lambda i, n: f"{n},{'ab'[i % 2]},p{i}"),
        ["no column group is given; if patient_id is meant, rename it group",
         "no groups are given"], {"a": 12, "b": 12},
    ),
    "strips": Taken(
        elongated, ["not square, and stretched to squares: 24 images, the longest 3.0 : 1; "
                    "validate.fit pads or crops them instead"], {"a": 12, "b": 12},
    ),
    "strips, padded": Taken(elongated, [], {"a": 12, "b": 12}, changes={"fit": "pad"}),
    "handwritten digits": Taken(
        lambda root: as_folder(root, digits(6, 9, count=60), ["6", "9"]),
        ["symmetries: mirror (training also shows the images mirrored left to right)"],
        {"6": 60, "9": 60},
    ),
    "handwritten digits, turned": Taken(
        lambda root: as_folder(root, digits(6, 9, count=60), ["6", "9"]),
        ["warning: with symmetries = rotations, training shows these classes as each other: 6 and "
         "9 (a half turn); set validate.symmetries to none or mirror"],
        {"6": 60, "9": 60}, changes={"symmetries": "rotations"},
    ),
    "a split column that is not used": Taken(
        rows(header="file_name,label,split", row=lambda i, n: f"{n},{'ab'[i % 2]},test"),
        ["the metadata's split is not used"], {"a": 12, "b": 12},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TAKEN.values(), ids=list(TAKEN))
def test_taken_as_its_owner_means_it(
    tmp_path: Path, kind: Taken, capsys: pytest.CaptureFixture[str]
) -> None:
    kind.build(tmp_path / "images")
    out = run(tmp_path, **kind.changes)
    printed = capsys.readouterr().out
    assert [line for line in kind.lines if line not in printed] == [], printed
    table = manifest(out)
    assert table["label"].value_counts().to_dict() == kind.labels
    if kind.splits:
        counts = table["split"].value_counts().to_dict()
        assert {name: counts[name] for name in kind.splits} == kind.splits
        assert metrics(out)["split_method"] == "column"
    assert len(quarantined(out)) == kind.others


# Images that are not used: never without a line, never against `on_bad_image`.
BAD: dict[str, tuple[Step, str, str]] = {
    "a GIF among others": (two_kinds, "cat/odd.gif", "not an image of BMP, JPEG"),
    "an image beside the class folders": (
        steps(classes("cat", "dog"), lambda root: put(root, "stray.png", seed=99)),
        "stray.png", "it lies in no class folder; move it into one, or take it out",
    ),
    "an image beside shards": (
        steps(shard(str), lambda root: put(root, "stray.png", seed=99)),
        "stray.png", "an image beside the shards",
    ),
    "two images of one key": (
        shard(str, {"1.jpg": as_bytes(99, "JPEG")}), "train-0.tar/1.jpg",
        "a second image of key 1",
    ),
    "a name without its ending": (
        steps(rows(), replace("\n3.png", "\n3")), "3", "no such file, but there is 3.png",
    ),
    "a name in another case": (
        steps(rows(), replace("\n3.png", "\n3.PNG")), "3.PNG", "no such file, but there is 3.png",
    ),
    "an absolute name of Windows": (
        steps(rows(), replace("\n3.png", "\nC:\\data\\3.png")), "C:\\data\\3.png",
        "not a path inside the folder",
    ),
    "an address on the web": (
        steps(rows(), replace("\n3.png", "\nhttps://a.org/3.png")), "https:/a.org/3.png",
        "an address on the web",
    ),
    "one image in two classes": (in_two_classes, "cat/1.png", "one label for one content"),
}  # fmt: skip


@pytest.mark.parametrize(("build", "name", "reason"), BAD.values(), ids=list(BAD))
def test_bad_images_are_refused_or_listed(
    tmp_path: Path, build: Step, name: str, reason: str
) -> None:
    build(tmp_path / "images")
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    assert reason in str(caught.value)
    assert name in str(caught.value)
    out = run(tmp_path, on_bad_image="quarantine", max_bad_fraction=0.1)
    reasons = {row["file_name"]: row["reason"] for row in quarantined(out)}
    assert reason in reasons[name]


def test_images_are_told_by_content(tmp_path: Path) -> None:
    """A class whose files have no ending was gone, without a word."""
    content_alone(tmp_path / "images")
    with pytest.raises(DataError, match="its content is JPEG, its name says nothing"):
        run(tmp_path)
    for path in (tmp_path / "images" / "bird").iterdir():
        path.rename(path.with_suffix(".jpg"))
    assert manifest(run(tmp_path))["label"].value_counts().to_dict()["bird"] == 12


@pytest.mark.parametrize("ending", ["gif", "heic", "avif", "jp2", "jfif", "jpe", "dcm", "nef"])
def test_known_endings_are_images(tmp_path: Path, ending: str) -> None:
    classes("cat", "dog")(tmp_path / "images")
    for i in range(12):
        table("content", f"bird/{i}.{ending}")(tmp_path / "images")
    with pytest.raises(DataError, match=rf"bird/0\.{ending}: not an image of"):
        run(tmp_path)


def test_a_fixed_camera(tmp_path: Path) -> None:
    fixed_camera(tmp_path / "images")
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    message = str(caught.value)
    assert "images are near duplicates of each other and count as one group" in message
    assert "validate.near_duplicate_bits to 0 (now 10)" in message
    assert len(manifest(run(tmp_path, near_duplicate_bits=0))) == 48


def test_a_fixed_camera_without_its_background(tmp_path: Path) -> None:
    """On eight days, each with images of both classes."""
    fixed_camera(tmp_path / "images")
    names = sorted(p.relative_to(tmp_path / "images") for p in tmp_path.glob("images/*/*.png"))
    lines = [f"{name},{name.parent},day {int(name.stem) // 3}" for name in names]
    table("\n".join(["file_name,label,group", *lines]))(tmp_path / "images")
    with pytest.raises(DataError) as caught:
        run(tmp_path)
    assert "count as one group" in str(caught.value)
    assert "set validate.background to group, which needs groups, or validate.near" in str(
        caught.value
    )
    out = run(tmp_path, background="group")
    assert manifest(out)["group"].nunique() == 8
    assert metrics(out)["duplicates"]["near"] == 0
    assert metrics(out)["leaks"]["groups_joined"] == 0


def test_groups_for_some_rows_may_be_allowed(tmp_path: Path) -> None:
    rows(header="file_name,label,group", row=groups_for_some)(tmp_path / "images")
    out = run(tmp_path, on_gaps="allow")
    groups = manifest(out).set_index("file_name")["group"]
    assert groups["0.png"] == "0.png"
    assert groups["1.png"] == groups["2.png"] == "p0"
    data = load_dataset(out / "validated")
    assert ((data.groups < 0) == (data.group_names == data.files)).all()
    assert metrics(out)["groups_given"] is True


def test_a_class_of_one_image(tmp_path: Path) -> None:
    steps(classes("a", "b"), lambda root: put(root, "c/1.png", seed=99))(tmp_path / "images")
    with pytest.raises(DataError, match=r"c: images = 1 .*: add some, leave the class out, or"):
        run(tmp_path)
    gone("c")(tmp_path / "images")
    assert set(manifest(run(tmp_path))["label"]) == {"a", "b"}


def test_many_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A thousand; of each, the stage prints and checks no more than people read."""
    names = [f"class {k:04}/{i}.png" for k in range(1000) for i in range(2)]
    folder = tmp_path / "images"
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_little(number))
    assert len(looked_at(folder, "", {})) == 1000
    assert "class 0019 and 980 more" in capsys.readouterr().out


def _little(seed: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (2, 2), seed % 256).save(file, "BMP")
    return file.getvalue()


def test_no_formula_in_what_spreadsheets_open(tmp_path: Path) -> None:
    formula = "=HYPERLINK(1)"
    steps(classes("a", formula), table("", f"a/{formula}.txt"), table("", "a/@x.txt"),
          lambda root: put(root, "+1.png", seed=99))(tmp_path / "images")  # fmt: skip
    out = run(tmp_path, on_bad_image="quarantine", max_bad_fraction=0.5)
    for name in ("quarantine", "outcomes", "plot"):
        with (out / name).open(newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert "'+1.png" in [row["file_name"] for row in quarantined(out)]
    assert set(pd.read_csv(out / "plot")["label"]) == {"a", f"'{formula}"}
    assert set(manifest(out)["label"]) == {"a", formula}


@pytest.mark.parametrize("docs", [True])
def test_names_are_no_markup_in_data_docs(tmp_path: Path, docs: bool) -> None:
    script, image = "<script>alert(1)</script>", '"><img src=x onerror=alert(2)>'
    rows(
        header="file_name,label,group",
        row=lambda i, n: f'{n},"{("a", image.replace(chr(34), chr(34) * 2))[i % 2]}",{script}{i}',
        names=lambda i: f"{image}{i}.png".replace('"', "'"),
    )(tmp_path / "images")
    expectation = {
        "type": "expect_column_values_to_not_match_regex", "column": "group", "regex": "t>1$",
        "expected": f"no {script}",
    }  # fmt: skip
    (tmp_path / "expectations.yaml").write_text(str([expectation]))
    run(tmp_path, on_bad_image="quarantine", max_bad_fraction=0.5)
    pages = [p.read_text() for p in (tmp_path / "out" / "docs").rglob("*.html")]
    assert any("&lt;script&gt;alert(1)" in page for page in pages)
    for page in pages:
        assert script not in page
        assert "<img src=x" not in page
        assert "&amp;lt;" not in page
        assert "script-src 'none'" in page


def test_nothing_of_a_name_reaches_the_terminal_as_a_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes("a\x1b[31m", "b\u202e")(tmp_path / "images")
    looked_at(tmp_path / "images", "", {})
    printed = capsys.readouterr().out
    assert "a\\x1b[31m" in printed
    assert "b\\u202e" in printed
    assert "\x1b" not in printed


def test_pictures_of_the_corpus_differ() -> None:
    """Or else the near-duplicate check would hide what a case is about."""
    assert picture(1).tobytes() != picture(2).tobytes()
