"""Looking at a folder's files: once for each content, with a cache that survives a kill."""

import hashlib
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
import pytest
from PIL import Image

from stages.core.intake import images
from stages.core.intake.images import Cache, Look, examine, look, packed
from stages.core.intake.source import Source
from stages.core.intake.sources import open_source
from stages.core.release import predict
from stages.core.runner.errors import Unavailable
from tests.benchmarks.synthetic import shards
from tests.conftest import ROOT, MakeFolder
from tests.helpers.scenes import LIMIT, PX, pixels, saved, scene


@pytest.fixture
def source(image_folder: MakeFolder) -> Source:
    return open_source(image_folder())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with closing(Cache(tmp_path / "cache", PX, LIMIT)) as cache:
        yield cache


def examined(source: Source, cache: Cache) -> pd.DataFrame:
    return examine(source, cache, image_px=PX, max_pixels=LIMIT)


def no_look(*_: Any) -> Look:
    raise AssertionError("the cache was not used")


def test_a_row_an_image(source: Source, cache: Cache) -> None:
    source.table.index += 5
    table = examined(source, cache)
    assert table.index.tolist() == source.table.index.tolist()
    assert (table["problem"] == "").all()
    for name, row in zip(source.table["file_name"], table.itertuples(), strict=True):
        alone = look(source.read(name), PX, LIMIT)
        assert row.bytes == len(source.read(name))
        assert (row.mean, row.contrast, row.phash) == (alone.mean, alone.contrast, alone.phash)
        assert cache.pixels(row.sha256) == alone.pixels


def test_a_huge_file_is_refused_unread(source: Source, cache: Cache) -> None:
    with (source.folder / "g1_1.png").open("wb") as file:
        file.truncate(2**42)  # sparse
    table = examined(source, cache)
    row = source.table["file_name"].tolist().index("g1_1.png")
    assert table["problem"][row].startswith("a file of 4398047 MB; expected at most 75 MB, enough")
    assert (table["problem"] != "").sum() == 1


def test_more_images_than_are_in_flight(
    source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = examined(source, cache)
    monkeypatch.setattr(images, "CHUNK", 7)
    with closing(Cache(tmp_path / "other", PX, LIMIT)) as other:
        pd.testing.assert_frame_equal(examined(source, other), expected)


def test_a_second_look_uses_the_cache(
    source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = examined(source, cache)
    monkeypatch.setattr(images, "look", no_look)
    cache.close()
    with closing(Cache(cache.path.parent, PX, LIMIT)) as again:
        pd.testing.assert_frame_equal(examined(source, again), first)


def test_damaged_files_are_remembered_too(
    source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source.folder / "g1_1.png").write_bytes(b"no image")
    first = examined(source, cache)
    monkeypatch.setattr(images, "look", no_look)
    again = examined(source, cache)
    assert again["problem"].tolist() == first["problem"].tolist()
    assert (again["problem"] != "").sum() == 1


def test_the_name_is_no_part_of_what_is_remembered(source: Source, cache: Cache) -> None:
    """Of two copies, the one with the wrong extension is at fault, and stays so."""
    (source.folder / "g1_1.png").rename(source.folder / "g1_1.jpg")
    (source.folder / "g1_1.png").write_bytes((source.folder / "g1_1.jpg").read_bytes())
    table = source.table.copy()
    table.loc[0, "file_name"] = "g1_1.jpg"
    both = Source(source.folder, "", table, None, frozenset(), False, {})
    for _ in range(2):
        problems = dict(zip(table["file_name"], examined(both, cache)["problem"], strict=True))
        assert problems.pop("g1_1.jpg").startswith("its content is PNG, its name says .jpg")
        assert set(problems.values()) == {""}


def no_read(_: Source, name: str) -> bytes:
    raise AssertionError(f"{name} was read again")


@pytest.fixture
def settled(source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """What was seen first, with every file's stamp written down."""
    monkeypatch.setattr(images, "SETTLED", -60)
    return examined(source, cache)


def test_what_is_unchanged_is_not_read_again(
    source: Source, cache: Cache, settled: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Source, "read", no_read)
    pd.testing.assert_frame_equal(examined(source, cache), settled)
    pd.testing.assert_frame_equal(examined(source, cache), settled)


def test_what_has_just_changed_is_read_again(
    source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined(source, cache)
    monkeypatch.setattr(Source, "read", no_read)
    with pytest.raises(AssertionError, match="was read again"):
        examined(source, cache)


@pytest.mark.parametrize("how", ["in place", "another file in its place", "a link to another"])
def test_same_size_and_time_hide_no_change(
    source: Source, cache: Cache, settled: pd.DataFrame, how: str
) -> None:
    file, other = (source.folder / name for name in source.table["file_name"][[0, 1]])
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    if how == "in place":
        file.write_bytes(content)
    elif how == "a link to another":
        file.unlink()
        file.symlink_to(other.resolve())
    else:
        new = file.with_name("new")
        new.write_bytes(content)
        new.replace(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = examined(source, cache)
    assert (settled["sha256"] != after["sha256"]).tolist() == [True] + [False] * (len(after) - 1)
    assert (
        after["sha256"][0] == hashlib.sha256(source.read(source.table["file_name"][0])).hexdigest()
    )


def test_stamps_of_shards(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SETTLED", -60)
    shards(tmp_path / "shards", range(6), PX)
    table = examined(open_source(tmp_path / "shards"), cache)
    assert table["sha256"].nunique() == 6
    monkeypatch.setattr(Source, "read", no_read)
    pd.testing.assert_frame_equal(examined(open_source(tmp_path / "shards"), cache), table)


@pytest.mark.parametrize(
    ("px", "limit", "fit"),
    [(64, LIMIT, "stretch"), (PX, 1599, "stretch"), (64, LIMIT, "pad"), (64, LIMIT, "crop")],
)
def test_other_params_start_anew(
    source: Source, cache: Cache, px: int, limit: int, fit: predict.Fit
) -> None:
    examined(source, cache)
    cache.close()
    with closing(Cache(cache.path.parent, px, limit, fit)) as other:
        assert other.known() == {}
        table = examine(source, other, image_px=px, max_pixels=limit, fit=fit)
        if limit == LIMIT:
            assert len(other.pixels(table["sha256"][0])) == 64 * 64
        else:
            assert table["problem"].str.startswith("40 x 40 pixels").all()
    assert not cache.path.exists()


def test_a_cache_of_other_code_is_not_used(
    source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    examined(source, cache)
    cache.close()
    monkeypatch.setattr(PIL, "__version__", "0.0")
    with closing(Cache(cache.path.parent, PX, LIMIT)) as other:
        assert other.path != cache.path
        assert other.known() == {}


@pytest.mark.parametrize("damage", ["no database", "a page", "cut", "a folder"])
def test_a_corrupt_cache_says_what_to_do(source: Source, cache: Cache, damage: str) -> None:
    examined(source, cache)
    cache.close()
    content = cache.path.read_bytes()
    if damage == "no database":
        cache.path.write_bytes(b"not a database, but long enough to look like one" * 100)
    elif damage == "a page":
        cache.path.write_bytes(content[:4096] + b"\x55" * (len(content) - 4096))
    elif damage == "cut":
        cache.path.write_bytes(content[: len(content) // 2])
    else:
        cache.path.unlink()
        cache.path.mkdir()

    def use() -> None:
        with closing(Cache(cache.path.parent, PX, LIMIT)) as again:
            examined(source, again)

    with pytest.raises(Unavailable) as caught:
        use()
    assert str(cache.path) in str(caught.value)
    assert "delete this file, it is a cache" in str(caught.value)


def test_unused_entries_go_when_they_are_the_larger_part(cache: Cache) -> None:
    looks = {str(i): Look(mean=float(i), pixels=bytes([i])) for i in range(10)}
    cache.add(looks)
    cache.keep_only({str(i) for i in range(5)})
    assert len(cache.known()) == 10
    cache.keep_only({str(i) for i in range(4)} | {"another"})
    assert set(cache.known()) == {"0", "1", "2", "3"}
    assert cache.pixels("3") == b"\3"
    with pytest.raises(KeyError):
        cache.pixels("9")


def test_all_or_none_of_a_batch_is_written(cache: Cache) -> None:
    broken: Any = object()
    with pytest.raises((sqlite3.Error, Unavailable)):
        cache.add({"a": Look(), "b": Look(problem=broken)})
    assert cache.known() == {}


def test_packing(cache: Cache) -> None:
    grey = look(saved(scene("L"), "PNG"), PX, LIMIT)
    colour = look(saved(scene("RGB"), "PNG"), PX, LIMIT)
    cache.add({"grey": grey, "colour": colour})
    first, second, third = packed(["colour", "grey", "colour"], [3, 1, 3], 3, cache)
    assert first == third == pixels(colour).tobytes()
    assert second == np.repeat(pixels(grey), 3, 2).tobytes()


def deepen(folder: Path, factor: int, names: list[str] | None = None) -> None:
    """Make 16-bit files of 8-bit ones, each value times `factor`."""
    for file in sorted(folder.glob("*.png")):
        if names is None or file.name in names:
            with Image.open(file) as image:
                values = np.asarray(image).astype(np.uint16) * factor
            Image.fromarray(values).save(file)


def test_one_bit_depth_for_the_whole_folder(
    source: Source, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dark image of a 12-bit folder stays as dark as it is beside the others."""
    shallow = examined(source, cache)
    assert cache.bit_depth == 8
    expected = list(packed(shallow["sha256"], shallow["channels"], 1, cache))
    assert "16-bit" not in capsys.readouterr().out
    deepen(source.folder, 16)
    dark = source.table["file_name"][3]
    Image.fromarray(np.full((40, 40), 300, np.uint16)).save(source.folder / dark)
    table = examined(source, cache)
    assert cache.bit_depth == 12
    assert "16-bit files: 48; the value that becomes white: 4095 (12 bits, found; valid" in (
        capsys.readouterr().out
    )
    assert list(table) == list(shallow)
    for i, (before, after) in enumerate(
        zip(expected, packed(table["sha256"], table["channels"], 1, cache), strict=True)
    ):
        if i == 3:
            assert set(after) == {round(300 * 255 / 4095)}
            assert table["mean"][i] == set(after).pop()
        else:
            apart = np.frombuffer(before, np.uint8).astype(int) - np.frombuffer(after, np.uint8)
            assert np.abs(apart).max() <= 2
            assert table["mean"][i] == pytest.approx(shallow["mean"][i], abs=1.5)
            assert table["contrast"][i] == pytest.approx(shallow["contrast"][i], abs=1)


def test_a_deeper_image_later_changes_the_others_without_reading_them(
    source: Source, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    deepen(source.folder, 4)
    table = examined(source, cache)
    assert cache.bit_depth == 10
    before = cache.pixels(table["sha256"][0])
    seen: list[int] = []

    def counting(*arguments: Any) -> Look:
        seen.append(1)
        return look(*arguments)

    monkeypatch.setattr(images, "look", counting)
    Image.fromarray(np.full((40, 40), 4000, np.uint16)).save(source.folder / "g1_1.png")
    again = examined(source, cache)
    assert len(seen) == 1
    assert cache.bit_depth == 12
    after = np.frombuffer(cache.pixels(table["sha256"][0]), np.uint8)
    assert after.mean() == pytest.approx(np.frombuffer(before, np.uint8).mean() / 4, rel=0.02)
    assert again["mean"][0] == pytest.approx(table["mean"][0] / 4, rel=0.02)
    # As in a folder that is seen for the first time.
    with closing(Cache(cache.path.parent / "fresh", PX, LIMIT)) as fresh:
        pd.testing.assert_frame_equal(examined(source, fresh), again)
        assert fresh.pixels(table["sha256"][0]) == after.tobytes()


def test_few_deeper_images_are_warned_of(
    source: Source, cache: Cache, capsys: pytest.CaptureFixture[str]
) -> None:
    deepen(source.folder, 16)
    values = np.full((40, 40), 60_000, np.uint16)
    Image.fromarray(values).save(source.folder / "g1_1.png")
    examined(source, cache)
    assert cache.bit_depth == 16
    assert (
        "warning: few 16-bit files (1, g1_1.png for one) need 16 bits, the others 12 at most, and "
        "these come out dark; set validate.bit_depth to 12, or leave those few out"
    ) in capsys.readouterr().out
    table = examine(source, cache, image_px=PX, max_pixels=LIMIT, bit_depth=12)
    assert cache.bit_depth == 12
    output = capsys.readouterr().out
    assert "white: 4095 (12 bits, as validate.bit_depth says)" in output
    assert "warning" not in output
    row = source.table["file_name"].tolist().index("g1_1.png")
    assert table["mean"][row] == 255


def test_eight_bit_files_beside_deep_ones_are_left_alone(source: Source, cache: Cache) -> None:
    before = examined(source, cache)
    deepen(source.folder, 64, ["g1_1.png", "g1_2.png"])
    table = examined(source, cache)
    assert cache.bit_depth == 14
    same = before["sha256"] == table["sha256"]
    assert (~same).sum() == 2
    pd.testing.assert_frame_equal(before[same], table[same])


KILLED = """
import os, sys, time
from pathlib import Path
from stages.core.intake import images
from stages.core.intake.sources import open_source

look = images.look

def slow(*arguments):
    time.sleep(0.002)
    entry = look(*arguments)
    os.write(2, b"looked\\n")
    return entry

images.look, images.CHUNK = slow, 5
source, cache = open_source(Path(sys.argv[1])), images.Cache(Path(sys.argv[2]), 32, 10**6)
images.examine(source, cache, image_px=32, max_pixels=10**6)
"""


def test_a_killed_run_leaves_the_next_one_right(source: Source, tmp_path: Path) -> None:
    def result(folder: Path) -> tuple[pd.DataFrame, list[bytes]]:
        with closing(Cache(folder, PX, LIMIT)) as cache:
            table = examined(source, cache)
            return table, list(packed(table["sha256"], table["channels"], 1, cache))

    expected_table, expected_pixels = result(tmp_path / "undisturbed")
    draws = random.Random(0)
    entries = []
    for kill, after in enumerate((3, draws.randrange(8, 24), draws.randrange(24, 44))):
        folder = tmp_path / f"killed {kill}"
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, str(source.folder), str(folder)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        ) as running:  # fmt: skip
            assert running.stderr
            for _ in range(after):
                assert running.stderr.readline() == "looked\n"
            time.sleep(draws.uniform(0, 0.01))
            running.send_signal(signal.SIGKILL)
        assert running.returncode == -signal.SIGKILL
        with closing(Cache(folder, PX, LIMIT)) as cache:
            entries.append(len(cache.known()))
        table, out = result(folder)
        pd.testing.assert_frame_equal(table, expected_table)
        assert np.array_equal(out, expected_pixels)
    assert max(entries) < 48
    assert max(entries) > 0
