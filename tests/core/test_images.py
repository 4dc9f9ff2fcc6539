"""Looking at files: every mode and format, what is broken, and the cache that survives a kill."""

import hashlib
import io
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

import imagehash
import numpy as np
import pandas as pd
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from stages.core import images
from stages.core.errors import Unavailable
from stages.core.images import HASH_SIDE, Cache, Look, examine, look, packed
from stages.core.predict import decode
from stages.core.sources import Source, open_source
from tests.benchmarks.synthetic import shards
from tests.conftest import ROOT, MakeFolder

PX = 32
LIMIT = 10**6
EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


def scene(mode: str = "RGB", width: int = 60, height: int = 44) -> Image.Image:
    """A smooth picture without symmetries, in any of the modes."""
    y, x = np.mgrid[:height, :width]
    red = 255 * x / width
    green = 255 * y / height
    blue = 127 + 100 * np.sin(x / 9 + y / 5)
    rgb = Image.fromarray(np.stack([red, green, blue], 2).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16)) * 257)
    if mode == "I;16B":
        deep = np.asarray(rgb.convert("L")).astype(">u2") * 257
        return Image.frombytes("I;16B", (width, height), deep.tobytes())
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    made = rgb.convert(mode)
    if mode in ("LA", "RGBA"):
        made.putalpha(Image.fromarray((80 + red * 0.6).astype(np.uint8)))
    return made


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(found: Look) -> NDArray[np.uint8]:
    assert found.problem == ""
    return np.frombuffer(found.pixels, np.uint8).reshape(PX, PX, found.channels)


def naive(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """What decode promises, in three lines."""
    plain = image.convert("L" if channels == 1 else "RGB")
    small = plain.resize((PX, PX), Image.Resampling.BICUBIC)
    return np.asarray(small).reshape(PX, PX, channels)


# For every format the modes that it can hold, and how many channels come out.
HELD = [
    *(("PNG", mode, 1) for mode in ("1", "L", "LA", "I;16")),
    *(("PNG", mode, 3) for mode in ("P", "RGB", "RGBA")),
    *(("TIFF", mode, 1) for mode in ("1", "L", "LA", "I;16", "I;16B")),
    *(("TIFF", mode, 3) for mode in ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")),
    *(("BMP", mode, 1) for mode in ("1", "L")),
    *(("BMP", mode, 3) for mode in ("P", "RGB")),
    ("JPEG", "L", 1), ("JPEG", "RGB", 3), ("JPEG", "CMYK", 3),
    ("WEBP", "RGB", 3), ("WEBP", "RGBA", 3),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "mode", "channels"), HELD)
def test_every_mode_of_every_format(kind: str, mode: str, channels: int) -> None:
    options = {"lossless": True} if kind == "WEBP" else {"quality": 100} if kind == "JPEG" else {}
    content = saved(scene(mode), kind, **options)
    found = look(content, PX, LIMIT)
    assert (found.format, found.width, found.height) == (kind, 60, 44)
    assert found.mode == mode
    assert found.channels == channels
    grey = scene("L") if mode.startswith("I;16") else scene(mode)
    apart = np.abs(pixels(found).astype(int) - naive(grey, channels))
    assert apart.max() <= (12 if kind == "JPEG" else 1)
    assert found.mean == pytest.approx(naive(grey, 1).mean(), abs=2)
    assert found.contrast == pytest.approx(naive(grey, 1).std(), abs=2)
    # As a released model decodes: grey for a grey one, and for one of colours.
    for wanted in {channels, 3}:
        with Image.open(io.BytesIO(content)) as image:
            assert np.array_equal(
                decode(image, PX, wanted), np.repeat(pixels(found), wanted // channels, 2)
            )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    best: dict[str, dict[str, Any]] = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}
    upright = scene()
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    found = look(saved(stored, kind, exif=exif, **best.get(kind, {})), PX, LIMIT)
    # Pillow turns TIFFs by itself.
    assert (found.width, found.height) == (upright.size if kind == "TIFF" else stored.size)
    shown = pixels(found).astype(int)
    assert np.abs(shown - naive(upright, 3)).mean() < 1.5
    assert orientation == 1 or np.abs(shown - naive(stored, 3)).mean() > 10


def test_sixteen_bits_keep_their_brightness() -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16)
    deep = Image.fromarray(np.tile(values, (256, 1)))
    found = look(saved(deep, "PNG"), 256, LIMIT)
    row = np.frombuffer(found.pixels, np.uint8).reshape(256, 256)[0]
    assert row.tolist() == list(range(256))


def test_sixteen_bits_are_rounded_to_the_nearest() -> None:
    deep = Image.fromarray(np.full((40, 40), 257 * 3 + 129, np.uint16))
    assert set(look(saved(deep, "PNG"), PX, LIMIT).pixels) == {4}


def test_dark_sixteen_bits_are_not_stretched() -> None:
    deep = Image.fromarray(np.full((40, 40), 257 * 3, np.uint16))
    assert set(look(saved(deep, "TIFF"), PX, LIMIT).pixels) == {3}


def test_large_jpegs_are_close_to_the_whole_decoding() -> None:
    big = scene(width=900, height=700)
    found = look(saved(big, "JPEG", quality=95), PX, LIMIT)
    assert (found.width, found.height) == (900, 700)
    apart = np.abs(pixels(found).astype(int) - naive(big, 3))
    assert apart.mean() < 2


def test_jpegs_are_never_decoded_too_small() -> None:
    draws = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    detailed = Image.fromarray(draws).resize((512, 512), Image.Resampling.BICUBIC)
    found = look(saved(detailed, "JPEG", quality=95), 128, LIMIT)
    made = np.frombuffer(found.pixels, np.uint8).reshape(128, 128, 3).astype(int)
    whole = np.asarray(detailed.resize((128, 128), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(made - whole).mean() < 3


def test_a_camera_jpeg_with_a_preview_is_a_jpeg() -> None:
    content = saved(scene(), "MPO", save_all=True, append_images=[scene()])
    found = look(content, PX, LIMIT)
    assert found.problem == ""
    assert found.format == "MPO"


def test_sharpness_tells_blur_from_detail() -> None:
    draws = np.random.default_rng(0).integers(0, 256, (PX, PX), dtype=np.uint8)
    sharp = Image.fromarray(draws)
    soft = sharp.resize((8, 8)).resize((PX, PX), Image.Resampling.BICUBIC)
    values = [look(saved(image, "PNG"), PX, LIMIT).sharpness for image in (sharp, soft)]
    assert values[0] > 10 * values[1]
    grey = draws.astype(float)
    laplacian = sum(np.roll(grey, s, a) for s in (1, -1) for a in (0, 1)) - 4 * grey
    assert values[0] == pytest.approx(laplacian[1:-1, 1:-1].var(), rel=1e-4)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("kind", ["noise", "smooth"])
def test_perceptual_hash_is_imagehash(kind: str, seed: int) -> None:
    draws = np.random.default_rng(seed)
    side = 90 if kind == "noise" else 6
    made = Image.fromarray(draws.integers(0, 256, (side, side, 3), dtype=np.uint8))
    found = look(saved(made.resize((90, 70)), "PNG"), PX, LIMIT)
    expected = imagehash.phash(Image.fromarray(pixels(found)), hash_size=HASH_SIDE).hash
    assert found.phash == np.packbits(expected).tobytes()


def test_what_is_damaged_says_so_in_words() -> None:
    whole = saved(scene(), "PNG")
    assert look(b"", PX, LIMIT).problem == "an empty file (0 bytes); copy it again"
    assert look(whole[:-40], PX, LIMIT).problem.startswith("not a whole image (")
    no_image = "not an image of BMP, JPEG, PNG, TIFF, WEBP; save or copy it again"
    assert look(b"no image", PX, LIMIT).problem == no_image
    assert look(whole, PX, 60 * 44).problem == ""
    assert look(whole, PX, 60 * 44 - 1).problem.startswith("60 x 44 pixels; expected at most")
    for content in (b"no image", whole[:-40], whole[:20]):
        assert look(content, PX, LIMIT) == look(content, PX, LIMIT)


SMALL = [
    saved(scene(mode, 24, 20), kind)
    for kind, mode in (("PNG", "RGB"), ("PNG", "P"), ("PNG", "I;16"), ("JPEG", "RGB"),
                       ("JPEG", "CMYK"), ("TIFF", "L"), ("WEBP", "RGB"), ("BMP", "RGB"))
]  # fmt: skip
TURNED = Image.Exif()
TURNED[0x010E], TURNED[0x0112], TURNED[0x8769] = "hello", 6, {0x9000: b"0220"}
SMALL.append(saved(scene("RGB", 24, 20), "JPEG", exif=TURNED))


@settings(max_examples=200, deadline=None)
@given(
    content=st.sampled_from(SMALL),
    edits=st.lists(st.tuples(st.integers(0, 10**4), st.integers(0, 255)), max_size=8),
    cut=st.integers(0, 2000),
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_images_never_raise(content: bytes, edits: list[tuple[int, int]], cut: int) -> None:
    broken = bytearray(content)
    for place, value in edits:
        # Most of them in the headers.
        broken[place % min(len(broken), 1 + place // 10)] = value
    whole = len(broken) - cut % len(broken) if cut % 2 else len(broken)
    found = look(bytes(broken[:whole]), PX, LIMIT)
    assert "\n" not in found.problem
    assert bool(found.problem) != bool(found.pixels)


@pytest.mark.parametrize("content", SMALL, ids=range(len(SMALL)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_byte_of_a_header_raises(content: bytes) -> None:
    places = [*range(min(len(content), 130)), *range(max(0, len(content) - 130), len(content))]
    for place in dict.fromkeys(places):
        for value in (0, 1, 2, 12, 255):
            broken = bytearray(content)
            broken[place] = value
            found = look(bytes(broken), PX, LIMIT)
            assert bool(found.problem) != bool(found.pixels)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_no_image(content: bytes) -> None:
    assert look(content, PX, LIMIT).problem


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_a_bomb_is_not_unpacked(side: int) -> None:
    started = time.monotonic()
    header = saved(Image.new("1", (8, 8)), "BMP")
    bomb = header[:18] + side.to_bytes(4, "little") * 2 + header[26:]
    assert look(bomb, PX, 10**8).problem.startswith(f"{side} x {side} pixels; expected at most 100")
    assert time.monotonic() - started < 1


@pytest.fixture
def source(image_folder: MakeFolder) -> Source:
    return open_source(image_folder())


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    with closing(Cache(tmp_path / "cache", PX, LIMIT)) as made:
        yield made


def examined(source: Source, cache: Cache) -> pd.DataFrame:
    return examine(source, cache, image_px=PX, max_pixels=LIMIT)


def no_look(*_: Any) -> Look:
    raise AssertionError("the cache was not used")


def test_a_row_an_image(source: Source, cache: Cache) -> None:
    source.table.index += 5
    found = examined(source, cache)
    assert found.index.tolist() == source.table.index.tolist()
    assert (found["problem"] == "").all()
    for name, row in zip(source.table["file_name"], found.itertuples(), strict=True):
        alone = look(source.read(name), PX, LIMIT)
        assert row.bytes == len(source.read(name))
        assert (row.mean, row.contrast, row.phash) == (alone.mean, alone.contrast, alone.phash)
        assert cache.pixels(row.sha256) == alone.pixels


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
    found = examined(open_source(tmp_path / "shards"), cache)
    assert found["sha256"].nunique() == 6
    monkeypatch.setattr(Source, "read", no_read)
    pd.testing.assert_frame_equal(examined(open_source(tmp_path / "shards"), cache), found)


@pytest.mark.parametrize(("px", "limit"), [(64, LIMIT), (PX, 1599)])
def test_other_params_start_anew(source: Source, cache: Cache, px: int, limit: int) -> None:
    examined(source, cache)
    cache.close()
    with closing(Cache(cache.path.parent, px, limit)) as other:
        assert other.known() == {}
        found = examine(source, other, image_px=px, max_pixels=limit)
        if limit == LIMIT:
            assert len(other.pixels(found["sha256"][0])) == 64 * 64
        else:
            assert found["problem"].str.startswith("40 x 40 pixels").all()
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


KILLED = """
import os, sys, time
from pathlib import Path
from stages.core import images
from stages.core.sources import open_source

look = images.look

def slow(*arguments):
    time.sleep(0.002)
    found = look(*arguments)
    os.write(2, b"looked\\n")
    return found

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
    kept = []
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
            kept.append(len(cache.known()))
        table, out = result(folder)
        pd.testing.assert_frame_equal(table, expected_table)
        assert np.array_equal(out, expected_pixels)
    assert max(kept) < 48
    assert max(kept) > 0
