"""Names of splits, and names that are meant to be the same."""

import unicodedata

import pytest

from stages.core.intake.kinds import in_leftover, is_image_content, is_image_name
from stages.core.intake.names import split_names, trimmed, twins
from stages.core.release.predict import EXTENSIONS


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["train", "val", "test"], ["train", "val", "test"]),
        (["Training", "Valid", "TESTING"], ["train", "val", "test"]),
        (["training_set", "validation-set", "test set"], ["train", "val", "test"]),
        (["train2017", "val2017", "test2017"], ["train", "val", "test"]),
        (["train", "eval"], ["train", "test"]),
        (["train", "eval", "test"], ["train", "val", "test"]),
        (["training", "holdout"], ["train", "test"]),
        (["Train", "Validate"], ["train", "val"]),
        (["images_train", "images_val"], ["train", "val"]),
        (["training_data", "dev", "hold-out"], ["train", "val", "test"]),
        (["train_images", "test_images"], ["train", "test"]),
        (["TrainingDataset", "TestDataset"], ["train", "test"]),
        (
            ["train", "unlabeled2017", "Un-labelled", "unlabelled_images"],
            ["train", *["unlabelled"] * 3],
        ),
    ],
)
def test_names_of_splits(names: list[str], splits: list[str]) -> None:
    assert split_names(names) == dict(zip(names, splits, strict=True))


@pytest.mark.parametrize(
    "name", ["trainer", "bus", "trains", "latest", "contest", "device", "data", "images", "tested",
             "value", "interval", "fit", "2017", "", "set", "labelled", "unlabel", "unlabbeled"],
)  # fmt: skip
def test_names_of_classes(name: str) -> None:
    assert split_names([name]) == {}


def test_twins() -> None:
    forms = [unicodedata.normalize(form, "é") for form in ("NFC", "NFD")]
    assert twins(["cat", "Cat", "dog"]) == [("Cat", "cat")]
    assert twins(["red  wine", "red wine"]) == [("red  wine", "red wine")]
    assert len(twins(forms)) == 1
    assert twins(["1", "1.0", "01", "2"]) == []
    assert twins(["1", "1.0", "01", "2"], numbers=True) == [("01", "1"), ("01", "1.0")]
    assert twins(["a", "b", "a"]) == []


def test_trimmed() -> None:
    assert trimmed("\ufeff \u200bcat\u00a0\t") == "cat"
    assert trimmed("a b") == "a b"


@pytest.mark.parametrize(
    "path",
    ["__MACOSX/1.jpg", "a/._1.jpg", "@eaDir/x/1.jpg", "a/Thumbs.db", "x/lost+found/1.jpg",
     "FOUND.000/1.jpg", "FOUND.001/1.jpg", "~snapshot/daily/1.jpg", "LOST.DIR/1.jpg",
     "maps/00001_a.evidence.png"],
)  # fmt: skip
def test_leftovers(path: str) -> None:
    assert in_leftover(path)


@pytest.mark.parametrize(
    "path", ["a/1.jpg", "recycled/1.jpg", "misc/1.jpg", "found.7/1.jpg", "evidence.png"]
)
def test_no_leftovers(path: str) -> None:
    assert not in_leftover(path)


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n", b"GIF89a", b"II*\0", b"RIFF\0\0\0\0WEBPVP8 ",
        b"\0\0\0\x18ftypheic", b"\0\0\0\x18ftypavif", b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\0" * 128 + b"DICM", b"BM" + bytes(12) + b"\x28\0\0\0", b"8BPS",
    ],
)  # fmt: skip
def test_images_by_content(head: bytes) -> None:
    assert is_image_content(head)


@pytest.mark.parametrize("head", [b"", b"BM", b"text", b"RIFF\0\0\0\0WAVE", b"\0\0\0\x18ftypisom"])
def test_no_images_by_content(head: bytes) -> None:
    assert not is_image_content(head)


def test_images_by_name() -> None:
    assert all(is_image_name("x" + ending.upper()) for ending in EXTENSIONS)
    assert not is_image_name("notes.txt")
