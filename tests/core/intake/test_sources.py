"""Layouts of folders: each is found out, nothing in one goes unmentioned."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stages.core.intake.listing import list_folder
from stages.core.intake.source import COLUMNS, Unreadable, locate, same_names
from stages.core.intake.sources import open_source
from stages.core.runner.errors import DataError
from tests.conftest import MakeFolder
from tests.helpers.layouts import FORMATS, ROWS, Rows, as_jsonl, by_name, picture, put

formats = pytest.mark.parametrize("name", list(FORMATS))


@formats
def test_imagefolder(tmp_path: Path, name: str) -> None:
    put(tmp_path, *(f"{i}.png" for i in range(6)), "extra.png", ".hidden.png")
    (tmp_path / "README.md").write_text("about")
    (tmp_path / name).write_bytes(FORMATS[name](ROWS))
    source = open_source(tmp_path)
    assert source.layout == f"imagefolder with {name}"
    assert source.table.columns.tolist() == [*COLUMNS, "serial", "note"]
    assert source.table["file_name"].tolist() == [f"{i}.png" for i in range(6)]
    assert source.table["label"].tolist() == list("ababab")
    assert source.table["group"].tolist() == ["g0", "g0", "g1", "g1", "g2", "g2"]
    assert source.table["serial"].tolist() == list("012345")
    for nothing in ("domain", "split", "note"):
        assert source.table[nothing].tolist() == [""] * 6
    assert source.known == {"group"}
    assert source.classes is None
    assert not source.split_folders
    assert source.others == {
        "extra.png": f"not in {name}",
        "README.md": "no image by name or content",
    }
    assert source.read("3.png") == picture(3)


@formats
def test_a_missing_label_leaves_the_others_as_they_are(tmp_path: Path, name: str) -> None:
    """Numbers beside an empty cell must not become 0.0 and 1.0."""
    labels = [0, 1, None]
    rows: Rows = [{"file_name": f"{i}.png", "label": value} for i, value in enumerate(labels)]
    if name == "metadata.csv":
        (tmp_path / name).write_text("file_name,label\n0.png,0\n1.png,1\n2.png,\n")
    else:
        (tmp_path / name).write_bytes(FORMATS[name](rows))
    assert by_name(tmp_path) == {"0.png": "0", "1.png": "1", "2.png": ""}


@formats
def test_text_stays_as_it_is(tmp_path: Path, name: str) -> None:
    labels = ["NA", "null", "007", "1e3", "True", "größer, 好", 'a "quoted" one', "two\nlines"]
    labels += ["a line\u2028separator"]
    rows: Rows = [{"file_name": f"{i}.png", "label": label} for i, label in enumerate(labels)]
    (tmp_path / name).write_bytes(FORMATS[name](rows))
    assert list(by_name(tmp_path).values()) == labels


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + FORMATS[name](ROWS))
    assert by_name(tmp_path)["0.png"] == "a"


def test_names_are_written_one_way(tmp_path: Path) -> None:
    put(tmp_path, "sub/1.png", "2.png")
    rows = "file_name,label\n./sub//1.png,a\n2.png,b\n,a\n"
    (tmp_path / "metadata.csv").write_text(rows)
    source = open_source(tmp_path)
    assert source.table["file_name"].tolist() == ["sub/1.png", "2.png", ""]
    assert source.others == {}


def test_a_carriage_return_in_a_cell_is_a_line_break(tmp_path: Path) -> None:
    """Alone, it would end the row in the manifest."""
    rows: Rows = [{"file_name": "1.png", "label": "a", "note": "one\rtwo"}]
    (tmp_path / "metadata.jsonl").write_bytes(as_jsonl(rows))
    assert by_name(tmp_path, "note") == {"1.png": "one\ntwo"}


def test_class_folders(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "cat/deep/2.JPG", "dog/1.png", "stray.webp", "cat/.x/3.png")
    (tmp_path / "dog" / "notes.txt").write_text("")
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    source = open_source(tmp_path)
    assert source.layout == "class folders"
    assert by_name(tmp_path) == {
        "cat/1.png": "cat", "cat/deep/2.JPG": "cat", "dog/1.png": "dog", "stray.webp": "",
    }  # fmt: skip
    assert source.classes == ["dog", "cat"]
    assert source.known == frozenset()
    assert source.others == {"dog/notes.txt": "no image by name or content"}
    with pytest.raises(Unreadable, match="it lies in no class folder; move it into one"):
        source.read("stray.webp")


@pytest.mark.parametrize(
    "names", [("train", "val", "test"), ("Training", "dev", "testing"), ("train", "test")]
)
def test_class_folders_in_split_folders(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path, f"{name}/cat/1.png", f"{name}/dog/1.png", f"{name}/stray.png")
    source = open_source(tmp_path)
    assert source.layout == "class folders in split folders"
    assert source.split_folders
    assert source.known == {"split"}
    split = by_name(tmp_path, "split")
    plain = dict.fromkeys(names, "train") | {names[1]: "val", names[-1]: "test"}
    files = ("cat/1.png", "dog/1.png", "stray.png")
    assert split == {f"{n}/{file}": plain[n] for n in names for file in files}
    assert by_name(tmp_path)[f"{names[0]}/dog/1.png"] == "dog"
    assert set(source.problems) == {f"{name}/stray.png" for name in names}


def test_split_folders_beside_others_are_ambiguous(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "val/cat/1.png", "extra/1.png")
    with pytest.raises(DataError, match="found the folders train, val and extra; expected"):
        open_source(tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    put(tmp_path, "train/1.png", "bus/1.png")
    source = open_source(tmp_path)
    assert source.layout == "class folders"
    assert set(source.table["label"]) == {"train", "bus"}


@formats
def test_metadata_in_each_split_folder(tmp_path: Path, name: str) -> None:
    for split in ("train", "validation", "test"):
        put(tmp_path, f"{split}/0.png", f"{split}/1.png", f"{split}/extra.png")
        (tmp_path / split / name).write_bytes(FORMATS[name](ROWS[:2]))
    source = open_source(tmp_path)
    assert source.layout == f"imagefolder with {name} in split folders"
    assert source.split_folders
    assert by_name(tmp_path, "split") == {
        f"{folder}/{i}.png": split
        for folder, split in (("train", "train"), ("validation", "val"), ("test", "test"))
        for i in range(2)
    }
    assert set(source.others) == {f"{s}/extra.png" for s in ("train", "validation", "test")}
    assert source.read("validation/1.png") == picture(1)


def test_metadata_above_split_folders(tmp_path: Path) -> None:
    put(tmp_path, "train/0.png", "test/0.png")
    rows = "file_name,label\ntrain/0.png,a\ntest/0.png,b\n"
    (tmp_path / "metadata.csv").write_text(rows)
    assert open_source(tmp_path).split_folders
    assert by_name(tmp_path, "split") == {"train/0.png": "train", "test/0.png": "test"}


def test_a_split_column(tmp_path: Path) -> None:
    rows = "file_name,label,split\n0.png,a,training\n1.png,b,valid\n2.png,a,test\n3.png,b,\n"
    (tmp_path / "metadata.csv").write_text(rows)
    source = open_source(tmp_path)
    assert source.table["split"].tolist() == ["train", "val", "test", ""]
    assert not source.split_folders


@pytest.mark.parametrize("locked", [".", "cat", "cat/deep"])
def test_a_folder_without_access_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locked: str
) -> None:
    """The tests may run as root, who has access to everything."""
    put(tmp_path, "cat/deep/1.png", "dog/1.png")
    scandir, listdir = os.scandir, os.listdir

    def refuse(place: str) -> None:
        if Path(place) == tmp_path / locked:
            raise PermissionError(13, "Permission denied", str(place))

    def careful_scandir(place: str) -> Any:
        refuse(place)
        return scandir(place)

    def careful_listdir(place: str) -> list[str]:
        refuse(place)
        return listdir(place)

    monkeypatch.setattr(os, "scandir", careful_scandir)
    monkeypatch.setattr(os, "listdir", careful_listdir)
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    expected = f"{tmp_path / locked}: cannot be read (Permission denied); give access to it"
    assert str(caught.value) == expected


def test_a_file_without_access_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "cat/1.png")
    source = open_source(tmp_path)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(Unreadable, match=r"cannot be read \(Permission denied\)"):
        source.read("cat/1.png")


def test_names_in_another_encoding_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat" / "1.png").rename(tmp_path / "cat" / os.fsdecode(b"caf\xe9.png"))
    (tmp_path / "dog" / os.fsdecode(b"\xff.txt")).write_text("")
    with pytest.raises(DataError) as caught:
        open_source(tmp_path)
    for name in (r"cat/caf\xe9.png", r"dog/\xff.txt"):
        assert f"{name}: its name is not UTF-8, which DVC cannot store: rename" in str(caught.value)


@pytest.mark.parametrize(
    "name",
    ["", "..", "../x.png", "sub/../../x.png", "/etc/passwd", "a\0.png", "a\r.png", "sub/.."],
)
def test_names_that_leave_the_folder(tmp_path: Path, name: str) -> None:
    (tmp_path.parent / "x.png").write_bytes(picture())
    with pytest.raises(Unreadable, match="not a path inside the folder"):
        locate(tmp_path, name, {})


def test_links_are_followed_inside_the_folder_only(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    put(folder, "1.png")
    put(tmp_path, "out.png")
    (folder / "inside.png").symlink_to("1.png")
    (folder / "outside.png").symlink_to("../out.png")
    (folder / "all").symlink_to(tmp_path)
    assert locate(folder, "inside.png", {}).read_bytes() == picture()
    for name in ("outside.png", "all/out.png"):
        with pytest.raises(Unreadable, match="a link that leaves the folder"):
            locate(folder, name, {})


def test_a_linked_folder_of_images_is_fine(tmp_path: Path) -> None:
    put(tmp_path / "real", "1.png")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert locate(tmp_path / "link", "1.png", {}).read_bytes() == picture()


def test_names_that_are_the_same() -> None:
    names = [
        "a.png",
        "b.png",
        "A.png",
        "a.png",
        "cafe\u0301",
        "caf\u00e9",
        "stra\u00dfe",
        "STRASSE",
    ]
    actual = same_names(pd.Series(names, index=range(10, 18)))
    assert actual == {
        12: "the same name as a.png but for case or Unicode form; rename it",
        13: "listed twice; keep one row",
        15: "the same name as cafe\u0301 but for case or Unicode form; rename it",
        17: "the same name as stra\u00dfe but for case or Unicode form; rename it",
    }


LOADER = """
import json, sys
from datasets import load_dataset
for folder in sys.argv[1:]:
    found = load_dataset("imagefolder", data_dir=folder)
    print(json.dumps({split: [[r["image"].size, r["label"], r["group"]] for r in rows]
                      for split, rows in found.items()}))
"""


@formats
def test_hugging_face_loads_the_same_folder(
    tmp_path: Path, image_folder: MakeFolder, name: str
) -> None:
    flat = image_folder(groups=2)
    table = pd.read_csv(flat / "metadata.csv", dtype=str)
    (flat / "metadata.csv").unlink()
    rows: Rows = table.to_dict("records")
    (flat / name).write_bytes(FORMATS[name](rows))
    nested = tmp_path / "nested"
    for split, part in (("train", rows[:8]), ("test", rows[8:])):
        (nested / split).mkdir(parents=True)
        (nested / split / name).write_bytes(FORMATS[name](part))
        for row in part:
            file = str(row["file_name"])
            (nested / split / file).write_bytes((flat / file).read_bytes())
    away = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    away |= {"HF_DATASETS_CACHE": str(tmp_path / "hf" / "datasets"), "TQDM_DISABLE": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", LOADER, str(flat), str(nested)],
        env=os.environ | away, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    theirs = [json.loads(line) for line in ended.stdout.splitlines()]
    for folder, actual in zip((flat, nested), theirs, strict=True):
        ours = open_source(folder).table
        splits = ours["split"].where(ours["split"] != "", "train")
        for split, part in ours.groupby(splits):
            pairs = sorted((label, group) for _, label, group in actual[split])
            assert pairs == sorted(zip(part["label"], part["group"], strict=True))
            assert {tuple(size) for size, _, _ in actual[split]} == {(40, 40)}
        assert sum(map(len, actual.values())) == len(ours) == 12


@pytest.mark.parametrize(
    ("one", "other"), [("Train", "train"), ("train", "training"), ("train", "train ")]
)
def test_two_folders_of_one_split_are_refused(tmp_path: Path, one: str, other: str) -> None:
    for split in (one, other, "test"):
        put(tmp_path, f"{split}/cat/1.png", f"{split}/dog/1.png")
    with pytest.raises(DataError, match=f"{one!r} and {other!r}, which both mean train"):
        open_source(tmp_path)


@pytest.mark.parametrize(("one", "other"), [("val", "valid"), ("Val", "val")])
def test_two_spellings_of_a_split_are_refused(tmp_path: Path, one: str, other: str) -> None:
    rows = f"file_name,label,split\n0.png,a,train\n1.png,b,{one}\n2.png,a,{other}\n"
    (tmp_path / "metadata.csv").write_text(rows)
    with pytest.raises(DataError, match=f"column has {one!r} and {other!r}, which both mean val"):
        open_source(tmp_path)


def test_another_case_of_a_split_is_mentioned(tmp_path: Path) -> None:
    put(tmp_path, "Train/a/1.png", "Train/b/1.png", "test/a/1.png", "test/b/1.png")
    assert "names of splits: Train = train, test = test" in open_source(tmp_path).notes


def test_two_folders_with_blanks_are_refused(tmp_path: Path) -> None:
    put(tmp_path, "cat /1.png", " cat/1.png", "dog/1.png")
    with pytest.raises(DataError, match="the folders ' cat' and 'cat ' differ only in blanks"):
        open_source(tmp_path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("metadata.csv", "file_name,label,label\n0.png,a,b\n"),
        ("metadata.csv", "\ufefflabel,file_name,label \nx,0.png,a\n"),
        ("metadata.jsonl", '{"file_name": "0.png", "label": "a", "label": "b"}'),
    ],
)
def test_a_label_that_stands_twice_is_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"found the (column|key) 'label' twice"):
        open_source(tmp_path)


def test_columns_without_a_name_are_no_twins(tmp_path: Path) -> None:
    (tmp_path / "metadata.csv").write_text("file_name,label,,\n0.png,a,,\n")
    assert by_name(tmp_path) == {"0.png": "a"}


def test_folders_that_are_nested_without_end_are_refused(tmp_path: Path) -> None:
    deep = tmp_path / "/".join("a" * 101)
    deep.mkdir(parents=True)
    with pytest.raises(DataError, match="a has folders in more than 100 levels"):
        list_folder(tmp_path)
    deep.rmdir()
    assert len(list_folder(tmp_path).folders) == 100
