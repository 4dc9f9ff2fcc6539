"""Looking at an image: every mode and format, and what is broken."""

from typing import Any

import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.core.intake.images import HASH_SIDE, look
from stages.core.release import predict
from tests.helpers.scenes import LIMIT, PX, naive, pixels, saved, scene

EXTENSIONS = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif"}


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
    entry = look(content, PX, LIMIT)
    assert (entry.format, entry.width, entry.height) == (kind, 60, 44)
    assert entry.mode == mode
    assert entry.channels == channels
    grey = scene("L") if mode.startswith("I;16") else scene(mode)
    apart = np.abs(pixels(entry).astype(int) - naive(grey, channels))
    assert apart.max() <= (12 if kind == "JPEG" else 1)
    assert entry.mean == pytest.approx(naive(grey, 1).mean(), abs=2)
    assert entry.contrast == pytest.approx(naive(grey, 1).std(), abs=2)
    # As a released model decodes: grey for a grey one, and for one of colours.
    for wanted in {channels, 3}:
        picture = predict.read(content, image_px=PX, max_pixels=LIMIT, channels=wanted)
        seen = predict.as_input(picture, wanted, 16)
        assert np.array_equal(seen, np.repeat(pixels(entry), wanted // channels, 2))


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
    entry = look(saved(stored, kind, exif=exif, **best.get(kind, {})), PX, LIMIT)
    # Pillow turns TIFFs by itself.
    assert (entry.width, entry.height) == (upright.size if kind == "TIFF" else stored.size)
    upright_pixels = pixels(entry).astype(int)
    assert np.abs(upright_pixels - naive(upright, 3)).mean() < 1.5
    assert orientation == 1 or np.abs(upright_pixels - naive(stored, 3)).mean() > 10


def test_sixteen_bits_keep_their_brightness() -> None:
    values = np.linspace(0, 65535, 256).round().astype(np.uint16)
    deep = Image.fromarray(np.tile(values, (256, 1)))
    entry = look(saved(deep, "PNG"), 256, LIMIT)
    assert entry.bits == 16
    row = np.frombuffer(entry.pixels, np.uint16).reshape(256, 256)[0]
    assert predict.eight_bits(row, 16).tolist() == list(range(256))


def test_sixteen_bits_are_rounded_to_the_nearest() -> None:
    deep = Image.fromarray(np.full((40, 40), 257 * 3 + 129, np.uint16))
    assert set(pixels(look(saved(deep, "PNG"), PX, LIMIT)).flat) == {4}


def test_dark_sixteen_bits_are_not_stretched() -> None:
    deep = Image.fromarray(np.full((40, 40), 257 * 3, np.uint16))
    assert set(pixels(look(saved(deep, "TIFF"), PX, LIMIT)).flat) == {3}


def test_large_jpegs_are_close_to_the_whole_decoding() -> None:
    big = scene(width=900, height=700)
    entry = look(saved(big, "JPEG", quality=95), PX, LIMIT)
    assert (entry.width, entry.height) == (900, 700)
    apart = np.abs(pixels(entry).astype(int) - naive(big, 3))
    assert apart.mean() < 2


def test_jpegs_are_never_decoded_too_small() -> None:
    draws = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    detailed = Image.fromarray(draws).resize((512, 512), Image.Resampling.BICUBIC)
    entry = look(saved(detailed, "JPEG", quality=95), 128, LIMIT)
    picture = np.frombuffer(entry.pixels, np.uint8).reshape(128, 128, 3).astype(int)
    whole = np.asarray(detailed.resize((128, 128), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(picture - whole).mean() < 3


def test_a_camera_jpeg_with_a_preview_is_a_jpeg() -> None:
    content = saved(scene(), "MPO", save_all=True, append_images=[scene()])
    entry = look(content, PX, LIMIT)
    assert entry.problem == ""
    assert entry.format == "JPEG"


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
    picture = Image.fromarray(draws.integers(0, 256, (side, side, 3), dtype=np.uint8))
    entry = look(saved(picture.resize((90, 70)), "PNG"), PX, LIMIT)
    expected = imagehash.phash(Image.fromarray(pixels(entry)), hash_size=HASH_SIDE).hash
    assert entry.phash == np.packbits(expected).tobytes()


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
    entry = look(bytes(broken[:whole]), PX, LIMIT)
    assert "\n" not in entry.problem
    assert bool(entry.problem) != bool(entry.pixels)


@pytest.mark.parametrize("content", SMALL, ids=range(len(SMALL)))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_no_byte_of_a_header_raises(content: bytes) -> None:
    places = [*range(min(len(content), 130)), *range(max(0, len(content) - 130), len(content))]
    for place in dict.fromkeys(places):
        for value in (0, 1, 2, 12, 255):
            broken = bytearray(content)
            broken[place] = value
            entry = look(bytes(broken), PX, LIMIT)
            assert bool(entry.problem) != bool(entry.pixels)


@settings(max_examples=60, deadline=None)
@given(content=st.binary(max_size=200))
def test_random_bytes_are_no_image(content: bytes) -> None:
    assert look(content, PX, LIMIT).problem


@pytest.mark.parametrize("side", [20_000, 60_000])
def test_a_bomb_is_not_unpacked(side: int) -> None:
    header = saved(Image.new("1", (8, 8)), "BMP")
    bomb = header[:18] + side.to_bytes(4, "little") * 2 + header[26:]
    assert look(bomb, PX, 10**8).problem.startswith(f"{side} x {side} pixels; expected at most 100")
