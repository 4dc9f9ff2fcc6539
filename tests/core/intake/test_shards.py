"""WebDataset shards: what is in one, and every way in which one is cut or damaged."""

import io
import tarfile
from pathlib import Path

import pytest

from stages.core.intake.source import Unreadable
from stages.core.intake.sources import open_source
from stages.core.runner.errors import DataError
from tests.helpers.layouts import as_tar, by_name, picture


def test_shards(tmp_path: Path) -> None:
    (tmp_path / "a-0.tar").write_bytes(
        as_tar(
            [
                ("1.png", picture(1)),
                ("1.cls", b"cat\n"),
                ("sub/1.left.png", picture(2)),
                ("sub/1.json", b'{"label": 3, "group": "g", "file_name": "no", "place": [1, 2]}'),
                ("1.txt", b"about"),
                ("1.jpg", picture(3)),
                ("lonely.cls", b"cat"),
                ("empty.json", b"{}"),
            ]
        )
    )
    (tmp_path / "a-1.tar").write_bytes(as_tar([("1.png", picture(4)), ("1.cls", b"dog")]))
    (tmp_path / "classes.txt").write_text("dog\ncat\n3\n")
    (tmp_path / "README.md").write_text("")
    source = open_source(tmp_path)
    assert source.layout == "webdataset shards"
    assert by_name(tmp_path) == {
        "a-0.tar/1.png": "cat", "a-0.tar/sub/1.left.png": "3", "a-0.tar/1.jpg": "",
        "a-1.tar/1.png": "dog",
    }  # fmt: skip
    assert source.table["group"].tolist() == ["", "g", "", ""]
    assert source.table["place"].tolist() == ["", "[1, 2]", "", ""]
    assert source.classes == ["dog", "cat", "3"]
    assert source.others == {
        "README.md": "no shard",
        "a-0.tar/1.txt": "neither image nor .cls nor .json",
        "a-0.tar/lonely": "a label without an image",
        "a-0.tar/empty": "a label without an image",
    }
    with pytest.raises(Unreadable, match="a second image of key 1; give each a key of its own"):
        source.read("a-0.tar/1.jpg")
    assert source.read("a-0.tar/1.png") == picture(1)
    assert source.read("a-0.tar/sub/1.left.png") == picture(2)
    assert source.read("a-1.tar/1.png") == picture(4)


def test_links_in_a_shard_are_mentioned(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        (tmp_path / "1.png").write_bytes(picture())
        tar.add(tmp_path / "1.png", "1.png")
        (tmp_path / "1.cls").write_text("a")
        tar.add(tmp_path / "1.cls", "1.cls")
        for kind, name in ((tarfile.LNKTYPE, "2.png"), (tarfile.SYMTYPE, "3.png")):
            about = tarfile.TarInfo(name)
            about.type, about.linkname = kind, "1.png"
            tar.addfile(about)
    (tmp_path / "1.png").unlink()
    (tmp_path / "1.cls").unlink()
    source = open_source(tmp_path)
    assert source.table["file_name"].tolist() == ["a.tar/1.png"]
    reason = "a link, or no plain file; put the file itself there"
    assert source.others == {"a.tar/2.png": reason, "a.tar/3.png": reason}


@pytest.mark.parametrize("style", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_of_all_styles(tmp_path: Path, style: int) -> None:
    long = "folder/" * 12 + "größe.png"
    with tarfile.open(tmp_path / "a.tar", "w", format=style) as tar:
        for name, data in ((long, picture()), (long.replace(".png", ".cls"), b"a")):
            about = tarfile.TarInfo(name)
            about.size = len(data)
            tar.addfile(about, io.BytesIO(data))
    assert by_name(tmp_path) == {f"a.tar/{long}": "a"}
    assert open_source(tmp_path).read(f"a.tar/{long}") == picture()


def test_every_cut_of_a_shard_is_noticed(tmp_path: Path) -> None:
    whole = as_tar([(f"{i}.{e}", b"x" * 700) for i in range(3) for e in ("png", "cls")])
    shard = tmp_path / "a.tar"
    content = 6 * (512 + 1024)
    for end in range(0, content + 1, 256):
        shard.write_bytes(whole[:end])
        with pytest.raises(DataError, match=r"a\.tar: not readable as a tar"):
            open_source(tmp_path)
    shard.write_bytes(whole[: content + 512])
    assert len(open_source(tmp_path).table) == 3


def test_every_damaged_header_of_a_shard_is_noticed(tmp_path: Path) -> None:
    whole = as_tar([(f"{i}.{e}", b"x" * 700) for i in range(3) for e in ("png", "cls")])
    for member in range(6):
        broken = bytearray(whole)
        broken[member * 1536 + 3] ^= 1
        (tmp_path / "a.tar").write_bytes(broken)
        with pytest.raises(DataError, match=r"a\.tar: not readable as a tar"):
            open_source(tmp_path)


@pytest.mark.parametrize(
    "second", [("1.cls", b"dog"), ("1.json", b'{"label": "dog"}'), ("1.json", b'{"label": "Cat"}')]
)
def test_two_labels_of_a_key_are_refused(tmp_path: Path, second: tuple[str, bytes]) -> None:
    members = [("1.png", picture()), ("1.cls", b"cat\n"), second]
    (tmp_path / "a.tar").write_bytes(as_tar(members))
    with pytest.raises(DataError, match=r"a\.tar: key '1' has label = 'cat' and '(dog|Cat)'"):
        open_source(tmp_path)


def test_one_label_may_be_given_twice(tmp_path: Path) -> None:
    members = [("1.png", picture()), ("1.cls", b"cat\n"), ("1.json", b'{"label": "cat"}')]
    (tmp_path / "a.tar").write_bytes(as_tar(members))
    assert by_name(tmp_path) == {"a.tar/1.png": "cat"}
