"""The rules for image files, one by one: what is beside the pixels, transparency, pages, depth."""

import re
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from stages.core.dataset.data import load_dataset
from stages.core.intake.images import look
from stages.core.release import predict
from tests.conftest import MakeFolder
from tests.helpers.front_door import append, quarantined
from tests.helpers.front_door import run as validate
from tests.helpers.released import call, lines, with_metadata
from tests.helpers.scenes import LIMIT, PX, naive, saved, scene

# Pillow's, of what stands beside the pixels: those who call `read` leave them out.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SCENE = scene(width=120, height=90)
GREY = SCENE.convert("L")
PNG = saved(SCENE, "PNG")
JPEG = saved(SCENE, "JPEG", quality=92)


def read(content: bytes, px: int = PX) -> predict.Picture:
    return predict.read(content, image_px=px, max_pixels=LIMIT)


def refusal(content: bytes) -> str:
    """Why a file is refused; validation must say the same."""
    with pytest.raises(predict.Refused) as caught:
        read(content)
    assert look(content, PX, LIMIT).problem == str(caught.value)
    return str(caught.value)


def chunk(kind: bytes, data: bytes, *, wrong: int = 0) -> bytes:
    checksum = zlib.crc32(kind + data) ^ wrong
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


def png_with(*chunks: bytes, png: bytes = PNG) -> bytes:
    """A PNG with more chunks behind its header."""
    return png[:33] + b"".join(chunks) + png[33:]


def jpeg_with(marker: int, data: bytes, jpeg: bytes = JPEG) -> bytes:
    """A JPEG with one more segment behind its start."""
    segment = b"\xff" + bytes([marker]) + struct.pack(">H", len(data) + 2) + data
    return jpeg[:2] + segment + jpeg[2:]


def exif(orientation: int, order: str = ">", *, odd: bool = True) -> bytes:
    """An EXIF block; where it is odd, with a resolution of -1/0 as a signed number."""
    head = b"MM\0*" if order == ">" else b"II*\0"
    entries = [struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)]
    if odd:
        entries.append(struct.pack(order + "HHII", 0x011A, 10, 1, 8 + 2 + 24 + 4))
    block = head + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + bytes(4)
    return block + struct.pack(order + "ii", -1, 0)


TEXT = zlib.compress(bytes(3 * 10**6))
BESIDE_THE_PIXELS = {
    "long zTXt": png_with(chunk(b"zTXt", b"key\0\0" + TEXT)),
    "long iTXt": png_with(chunk(b"iTXt", b"key\0\1\0\0\0" + TEXT)),
    "many texts": png_with(*[chunk(b"tEXt", b"key\0" + b"x" * 900_000)] * 80),
    "damaged zTXt": png_with(chunk(b"zTXt", b"key\0\0no zlib")),
    "wrong checksum of a text": png_with(chunk(b"tEXt", b"key\0value", wrong=1)),
    "long iCCP": png_with(chunk(b"iCCP", b"icc\0\0" + TEXT)),
    "damaged iCCP": png_with(chunk(b"iCCP", b"icc\0\0no zlib")),
    "damaged eXIf": png_with(chunk(b"eXIf", b"MM\0*\xff")),
    "eXIf that points beyond all files": png_with(chunk(b"eXIf", b"MM\0+\0\x08\0\0" + b"\xff" * 8)),
    "eXIf of many entries": png_with(
        chunk(b"eXIf", b"MM\0+\0\x08\0\0" + struct.pack(">QQ", 16, 10**6) + bytes(20 * 10**6))
    ),
    "empty pHYs": png_with(chunk(b"pHYs", b"")),
    "empty gAMA": png_with(chunk(b"gAMA", b"")),
    "empty sRGB": png_with(chunk(b"sRGB", b"")),
    "no end": PNG[:-12],
    "odd rational": jpeg_with(0xE1, b"Exif\0\0" + exif(1)),
    "cut EXIF": jpeg_with(0xE1, b"Exif\0\0MM\0*\0"),
    "EXIF that points outside": jpeg_with(0xE1, b"Exif\0\0MM\0*\xff\xff\xff\xff"),
    "damaged ICC profile": jpeg_with(0xE2, b"ICC_PROFILE\0\1\5no profile"),
    "damaged index of pictures": jpeg_with(0xE2, b"MPF\0no index"),
    "damaged XMP": jpeg_with(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta <<<"),
    "short JFIF": jpeg_with(0xE0, b"JFIF\0"),
    "short Adobe": jpeg_with(0xEE, b"Adobe\0"),
    "trailing bytes": JPEG + b"more" * 100,
    "no end marker": JPEG[:-2],
}


@pytest.mark.parametrize("name", BESIDE_THE_PIXELS)
def test_only_pixels_decide(name: str) -> None:
    content = BESIDE_THE_PIXELS[name]
    plain = PNG if content[:4] == PNG[:4] else JPEG
    assert np.array_equal(read(content).pixels, read(plain).pixels)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_orientation_is_read_whatever_stands_beside_it(kind: str, order: str) -> None:
    turned = SCENE.transpose(Image.Transpose.ROTATE_90)
    if kind == "JPEG":
        plain = saved(turned, "JPEG", quality=100)
        content = jpeg_with(0xE1, b"Exif\0\0" + exif(6, order), plain)
    elif kind == "PNG":
        content = png_with(chunk(b"eXIf", exif(6, order)), png=saved(turned, "PNG"))
    elif kind == "WEBP":
        content = saved(turned, "WEBP", lossless=True, exif=exif(6, order))
    else:
        tags = ImageFileDirectory_v2()
        tags[0x0112], tags[0x8769] = 6, 10**9  # and an EXIF directory that is not there
        content = saved(turned, "TIFF", tiffinfo=tags)
    assert np.abs(read(content).pixels.astype(int) - naive(SCENE, 3)).mean() < 1.5


def test_damage_to_the_pixels_counts() -> None:
    place = PNG.index(b"IDAT")
    wrong = bytearray(PNG)
    wrong[place + 4 + struct.unpack(">I", PNG[place - 4 : place])[0]] ^= 1
    assert "the checksum of its IDAT chunk is wrong" in refusal(bytes(wrong))


FOREIGN = {
    "a GIF": saved(SCENE, "GIF"),
    "a JPEG 2000 image": saved(SCENE, "JPEG2000"),
    "an AVIF image": saved(SCENE, "AVIF"),
    "a HEIC photo": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100),
    "a camera's raw file (CR3)": b"\0\0\0\x18ftypcrx " + bytes(100),
    "a video": b"\0\0\0\x18ftypisom" + bytes(100),
    "a PostScript drawing (EPS)": saved(SCENE, "EPS"),
    "a PDF document": saved(SCENE, "PDF"),
    "a DICOM file": bytes(128) + b"DICM" + bytes(100),
    "a web page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "an SVG drawing": b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>',
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
    "an archive": b"PK\3\4" + bytes(100),
    "a run of zero bytes": bytes(100),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_formats_are_named_with_a_remedy(name: str) -> None:
    problem = refusal(FOREIGN[name])
    assert problem.startswith(f"{name}, not an image of BMP, JPEG, PNG, TIFF, WEBP; ")


def test_raw_files_in_a_tiff_are_named() -> None:
    preview = ImageFileDirectory_v2()
    preview[254] = 1
    digital_negative = ImageFileDirectory_v2()
    digital_negative[50706] = b"\1\4\0\0"
    for tags in (preview, digital_negative):
        problem = refusal(saved(SCENE, "TIFF", tiffinfo=tags))
        assert problem.startswith("a camera's raw file, which shows a preview only; develop it")


@pytest.mark.parametrize(("change", "words"), [
    ((b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"), "a JPEG of 12 bits; expected 8: save it as"),
    ((b"\xff\xc0", b"\xff\xc3"), "a lossless JPEG, which is not read; save it as PNG"),
])  # fmt: skip
def test_jpegs_of_other_kinds_are_named(change: tuple[bytes, bytes], words: str) -> None:
    assert JPEG.count(change[0]) == 1
    assert refusal(JPEG.replace(*change)).startswith(words)


# Data that end too early, behind an end marker.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "colour": ("RGB", {}),
    "full chroma": ("RGB", {"subsampling": 0}),
    "grey": ("L", {}),
    "ink": ("CMYK", {}),
    "restart markers": ("RGB", {"restart_marker_rows": 1}),
    "optimised": ("RGB", {"optimize": True}),
    "progressive": ("RGB", {"progressive": True}),
}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("px", [16, 256])
@pytest.mark.parametrize("name", VARIANTS)
def test_a_repaired_half_of_a_jpeg_is_damaged(name: str, px: int, share: float) -> None:
    mode, options = VARIANTS[name]
    # 301 pixels: a width that no reduced decoding divides.
    whole = saved(scene(width=301, height=203).convert(mode), "JPEG", quality=90, **options)
    assert read(whole, px).format == "JPEG"
    cut = whole[: int(len(whole) * share)]
    for content in (cut, cut + b"\xff\xd9"):
        with pytest.raises(predict.Refused, match=r"^not a whole image \(truncated: its data end"):
            read(content, px)


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("grey", [127, 128])
def test_a_grey_border_is_no_damage(grey: int, progressive: bool) -> None:
    values = np.asarray(SCENE).copy()
    values[45:] = grey
    for image in (Image.fromarray(values), Image.fromarray(values).convert("L")):
        content = saved(image, "JPEG", quality=95, progressive=progressive)
        assert read(content).format == "JPEG"
        assert read(content + b"trailing bytes").format == "JPEG"


def drawing(mode: str, value: int) -> Image.Image:
    """One colour everywhere; what is drawn is drawn in the alpha channel."""
    image = Image.new(mode, GREY.size, value if mode == "LA" else (value,) * 3)
    image.putalpha(GREY)
    return image


@pytest.mark.parametrize(("mode", "kind", "channels"), [
    ("RGBA", "PNG", 3), ("RGBA", "TIFF", 3), ("RGBA", "WEBP", 3), ("LA", "PNG", 1),
    ("LA", "TIFF", 1),
])  # fmt: skip
def test_a_drawing_in_the_alpha_channel_is_seen_on_white(
    mode: str, kind: str, channels: int
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = read(saved(drawing(mode, 0), kind, **options)).pixels
    assert pixels.shape[2] == channels
    negative = Image.fromarray(255 - np.asarray(GREY))
    assert np.abs(pixels.astype(int) - naive(negative, channels)).max() <= 2
    problem = refusal(saved(drawing(mode, 255), kind, **options))
    assert problem == "white on a transparent ground, so blank on paper; save it on a dark ground"


def test_transparent_colours_become_white() -> None:
    palette = Image.new("P", (40, 40), 0)
    palette.putpalette([200, 0, 0, 0, 0, 0])
    palette.paste(1, (0, 0, 40, 20))
    for transparency in (0, bytes([0, 255])):
        pixels = read(saved(palette, "PNG", transparency=transparency)).pixels
        assert pixels[0].max() == 0
        assert pixels[-1].min() == 255
    grey = Image.new("L", (40, 40), 90)
    grey.paste(0, (0, 0, 40, 20))
    pixels = read(saved(grey, "PNG", transparency=90)).pixels
    assert pixels.shape[2] == 1
    assert (pixels[0].max(), pixels[-1].min()) == (0, 255)


def test_an_opaque_alpha_channel_changes_nothing() -> None:
    opaque = SCENE.copy()
    opaque.putalpha(255)
    assert np.array_equal(read(saved(opaque, "PNG")).pixels, read(PNG).pixels)


def test_transparent_everywhere_is_refused() -> None:
    invisible = SCENE.copy()
    invisible.putalpha(0)
    problem = refusal(saved(invisible, "PNG"))
    assert problem == "transparent everywhere; save it without its alpha channel"


def tiff_with(second: Image.Image, **tags: int) -> bytes:
    """A TIFF of two directories; the second has these tags."""
    directory = ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[int(name[1:])] = value
    page = second.copy()
    page.encoderinfo = {"tiffinfo": directory}
    return saved(SCENE, "TIFF", save_all=True, append_images=[page])


@pytest.mark.parametrize("content", [
    tiff_with(SCENE.resize((50, 50)), _254=1),
    tiff_with(SCENE, _254=4),
    tiff_with(SCENE.resize((50, 50)), _255=2),
    tiff_with(SCENE.resize((30, 23))),
], ids=["reduced", "a mask", "reduced, as of old", "smaller, in the same shape"])  # fmt: skip
def test_a_preview_is_no_second_page(content: bytes) -> None:
    assert np.array_equal(read(content).pixels, read(PNG).pixels)


@pytest.mark.parametrize("second", [SCENE, SCENE.resize((50, 50)), SCENE.resize((100, 75))])
def test_a_page_is_a_second_picture(second: Image.Image) -> None:
    assert refusal(tiff_with(second)) == "2 pictures in one file; expected one: split it"


@pytest.mark.parametrize("compression", [
    "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "group3", "group4",
])  # fmt: skip
def test_compressed_tiffs(compression: str) -> None:
    image = SCENE.convert("1") if compression.startswith("group") else SCENE
    channels = 1 if image.mode == "1" else 3
    pixels = read(saved(image, "TIFF", compression=compression)).pixels
    assert np.abs(pixels.astype(int) - naive(image, channels)).mean() < 3


Entry = tuple[int, int, int, int]
GREY_TIFF: dict[int, Entry] = {
    tag: (tag, 4, 1, value)
    for tag, value in (
        (256, 8), (257, 8), (258, 8), (259, 1), (262, 1), (273, 8), (277, 1), (278, 8), (279, 64),
    )
}  # fmt: skip


def tiff_of(entries: list[Entry], after: int = 0) -> bytes:
    """A TIFF of one directory; `after` is where the next one is."""
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    head = b"II*\0" + struct.pack("<IH", 8, len(entries))
    return head + packed + struct.pack("<I", after)


def overlapping(kind: str) -> bytes:
    """A small TIFF with many directories, which share their bytes."""
    if kind == "BigTIFF":  # one begins every 8 bytes, with 30,000 entries
        content = bytearray(np.full(90_000, 30_000, "<u8").tobytes())
        content[:16] = b"II+\0\x08\0\0\0" + struct.pack("<Q", 16)
        for place in range(16, 12_000, 8):
            struct.pack_into("<Q", content, place + 8 + 20 * 30_000, place + 8)
        return bytes(content)
    # One begins every 4 bytes, with 60,000 entries, and the next follows behind those.
    content = bytearray(8 + 12 * 60_000 + 4 * 2000)
    content[:8] = b"II*\0" + struct.pack("<I", 8)
    for i in range(1500):
        struct.pack_into("<H", content, 8 + 4 * i, 60_000)
        struct.pack_into("<I", content, 8 + 4 * i + 2 + 12 * 60_000, 12 + 4 * i)
    return bytes(content)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["TIFF", "BigTIFF"])
def test_directories_that_overlap_take_no_time(kind: str) -> None:
    content = overlapping(kind)
    assert len(content) < 750_000
    assert refusal(content).startswith("more than 100000 entries in its TIFF directories, which")


def test_a_long_chain_of_directories_is_refused() -> None:
    chain = b"".join(struct.pack("<HI", 0, 8 + 6 * i) for i in range(1, 2000))
    problem = refusal(b"II*\0" + struct.pack("<I", 8) + chain)
    assert problem == (
        "more than 1000 pictures in one file, by its TIFF directories; expected one: split it"
    )


def test_directories_in_a_loop_are_read_once() -> None:
    assert list(predict._directories(tiff_of([*GREY_TIFF.values()], after=8))) == [
        {tag: value for tag, (_, _, _, value) in GREY_TIFF.items()}
    ]


def test_a_strip_that_is_listed_over_and_over_is_refused() -> None:
    side, times = 400, 20_000
    changes = {256: side, 257: side, 278: side // 2, 279: side * side // 2}
    entries = GREY_TIFF | {tag: (tag, 4, 1, value) for tag, value in changes.items()}
    end = len(tiff_of([*entries.values()]))
    entries[273] = (273, 4, times, end)
    problem = refusal(tiff_of([*entries.values()]) + struct.pack("<I", end) * times)
    assert problem.startswith("damaged: its list of strips names the same pixels over and over")


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_zero_as_white_is_read_up_to_8_bits(bits: int) -> None:
    entries = GREY_TIFF | {258: (258, 3, 1, bits), 262: (262, 3, 1, 0)}
    strip = np.full(64 * bits // 8, 5, np.uint8).tobytes()
    entries[279] = (279, 4, 1, len(strip))
    entries[273] = (273, 4, 1, len(tiff_of([*entries.values()])))
    content = tiff_of([*entries.values()]) + strip
    if bits == 8:
        assert read(content).pixels.min() == 250
    else:
        assert refusal(content) == (
            f"{bits} bits with 0 as white (PhotometricInterpretation 0, WhiteIsZero), which is "
            "read with up to 8 bits only; invert its values, and save it with 0 as black"
        )


def test_the_size_of_a_file_is_asked_before_it_is_read() -> None:
    assert predict.too_large(predict.BESIDE_BYTES + 8 * LIMIT, LIMIT) == ""
    assert predict.too_large(10**11, 10**8) == (
        "a file of 100000 MB; expected at most 867 MB, enough for 100 million pixels "
        "(validate.max_megapixels): make it smaller"
    )


def test_a_tiff_that_pillow_does_not_know_is_described() -> None:
    content = bytearray(saved(SCENE, "TIFF"))
    (entries,) = struct.unpack_from("<H", content, struct.unpack_from("<I", content, 4)[0])
    start = struct.unpack_from("<I", content, 4)[0] + 2
    for i in range(entries):
        tag = struct.unpack_from("<H", content, start + 12 * i)[0]
        if tag == 277:  # samples per pixel
            struct.pack_into("<H", content, start + 12 * i + 8, 7)
    problem = refusal(bytes(content))
    assert problem.startswith("a TIFF of a kind that is not read (7 channels of 8 bits); expected")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (20_000, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_odd_sizes(size: tuple[int, int], kind: str) -> None:
    if kind == "WEBP" and size[0] > 16383:
        size = (16383, 1)
    picture = read(saved(Image.new("RGB", size, (10, 200, 30)), kind))
    assert (picture.width, picture.height) == size
    assert np.abs(picture.pixels.astype(int) - [10, 200, 30]).max() <= 6


# Bit depths.
RAMP = np.arange(4096, dtype=np.uint16).reshape(64, 64)


def deep_png(values: NDArray[np.uint16], colour_type: int, *chunks: bytes) -> bytes:
    """A 16-bit PNG of any colour type, which Pillow does not write."""
    rows = values.astype(">u2").reshape(values.shape[0], -1)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour_type, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", data), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("highest", "bits"), [
    (200, 8), (300, 9), (1023, 10), (1024, 12), (4095, 12), (4096, 14), (16383, 14), (16384, 16),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_the_bits_that_values_need(kind: str, highest: int, bits: int) -> None:
    values = np.full((40, 40), 5, np.uint16)
    values[:4] = highest
    assert read(saved(Image.fromarray(values), kind)).bits == bits


def test_a_hot_pixel_does_not_count() -> None:
    values = np.full((80, 80), 1000, np.uint16)
    values[:40] = 4000
    values[60, 60] = 65535
    picture = read(saved(Image.fromarray(values), "PNG"))
    assert picture.bits == 12
    assert picture.pixels.max() <= 4095


@pytest.mark.parametrize("content", [
    deep_png(RAMP // 16, 0, chunk(b"sBIT", b"\x0c")),
    saved(Image.fromarray(RAMP // 16), "TIFF", tiffinfo={281: 4095}),
    saved(Image.fromarray(RAMP // 16), "TIFF", tiffinfo={341: 4000}),
    saved(Image.fromarray(RAMP // 16), "TIFF",
          tiffinfo={270: '<OME><Image><Pixels SignificantBits="12"/></Image></OME>'}),
], ids=["sBIT", "MaxSampleValue", "SMaxSampleValue", "SignificantBits"])  # fmt: skip
def test_declared_bits_count_for_dark_images(content: bytes) -> None:
    picture = read(content)
    assert picture.bits == 12
    assert picture.pixels.max() < 256


def test_scaled_values_are_not_taken_for_few_bits() -> None:
    """PNG's own rule: sBIT tells of bits, and the values still use all 16."""
    picture = read(deep_png(RAMP * 16, 0, chunk(b"sBIT", b"\x0c")))
    assert picture.bits == 16


def test_a_twelve_bit_tiff() -> None:
    pairs = RAMP.reshape(-1, 2).astype(np.uint32)
    packed = np.stack(
        [pairs[:, 0] >> 4, (pairs[:, 0] & 15) << 4 | pairs[:, 1] >> 8, pairs[:, 1]], 1
    )
    strip = (packed & 255).astype(np.uint8).tobytes()
    tags = [(256, 64), (257, 64), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 64),
            (279, len(strip))]  # fmt: skip
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    content = b"II*\0" + struct.pack("<I", 8 + len(strip)) + strip
    content += struct.pack("<H", len(tags)) + directory + bytes(4)
    picture = read(content, 64)
    assert picture.bits == 12
    assert np.array_equal(picture.pixels[..., 0], RAMP)


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bit_colours_keep_their_low_bytes(channels: int) -> None:
    """Pillow alone reads them as 16 levels of grey."""
    values = np.stack([RAMP, RAMP[::-1], RAMP.T, np.full_like(RAMP, 65535)], 2)
    values = values[..., :3] if channels == 3 else values[..., [0, 3]] if channels == 2 else values
    picture = read(deep_png(values, {2: 4, 3: 2, 4: 6}[channels]), 64)
    assert picture.bits == 12
    colours = 1 if channels == 2 else 3
    assert np.array_equal(picture.pixels, values[..., :colours])
    if channels != 3:
        values[0, 0, -1] = 0
        problem = refusal(deep_png(values, {2: 4, 4: 6}[channels]))
        assert problem == "transparent with 16 bits; save it on a ground, or with 8 bits"


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("compression", [1, 8])
def test_sixteen_bit_colours_of_a_tiff(order: str, compression: int) -> None:
    values = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)
    strip = values.astype(order + "u2").tobytes()
    strip = zlib.compress(strip) if compression == 8 else strip
    tags = [(256, 1, 64), (257, 1, 64), (258, 3, 8 + len(strip)), (259, 1, compression),
            (262, 1, 2), (273, 1, 14 + len(strip)), (277, 1, 3), (278, 1, 64),
            (279, 1, len(strip))]  # fmt: skip
    head = b"II*\0" if order == "<" else b"MM\0*"
    bits = struct.pack(order + "HHH", 16, 16, 16)
    content = head + struct.pack(order + "I", 14 + 2 * len(strip)) + strip + bits + strip
    content += struct.pack(order + "H", len(tags))
    for tag, count, value in tags:
        kind = 3 if tag == 258 else 4
        content += struct.pack(order + "HHII", tag, kind, count, value)
    picture = read(content + bytes(4), 64)
    assert picture.bits == 12
    assert np.array_equal(picture.pixels, values)


@pytest.mark.parametrize("bits", predict.BIT_DEPTHS)
def test_the_highest_value_becomes_white(bits: int) -> None:
    highest = 2**bits - 1
    values = np.array([0, highest // 2, highest, 65535], np.uint16)
    eight = predict.eight_bits(values, bits).tolist()
    assert eight[0] == 0
    assert eight[1] in (127, 128)
    assert eight[2:] == [255, 255]
    every = np.arange(highest + 1, dtype=np.uint16)
    assert np.array_equal(predict.eight_bits(every, bits), np.rint(every / highest * 255))


def test_more_bits_than_in_training_are_refused() -> None:
    picture = read(saved(Image.fromarray(RAMP), "PNG"))
    assert predict.as_input(picture, 1, 12).max() > 250
    assert predict.as_input(picture, 3, 14).shape == (PX, PX, 3)
    with pytest.raises(predict.Refused, match=r"^its values need 12 bits; expected at most 8, as"):
        predict.as_input(picture, 1, 8)


def wave(strength: float, bits: int = 8) -> Image.Image:
    """Grey values that deviate by `strength`, of 255 that eight bits have."""
    y, x = np.mgrid[:64, :64]
    values = 100 + strength * np.sqrt(2) * np.sin((x + 2 * y) / 3)
    scaled = values * (2**bits - 1) / 255
    return Image.fromarray(scaled.round().astype(np.uint8 if bits == 8 else np.uint16))


# Images of the measures that validation asks for, or not quite.
MEASURED = {
    "one_pixel.png": saved(Image.new("L", (1, 1)), "PNG"),
    "narrow.png": saved(wave(30).resize((15, 64)), "PNG"),
    "flat.jpg": saved(wave(30).resize((64, 15)), "JPEG", exif=b"Exif\0\0" + exif(6)),
    "just_large_enough.png": saved(wave(30).resize((16, 16)), "PNG"),
    "black.png": saved(Image.new("L", (64, 64)), "PNG"),
    "black_in_colour.png": saved(Image.new("RGB", (64, 64)), "PNG"),
    "small_and_white.png": saved(Image.new("L", (8, 70), 255), "PNG"),
    "nearly_blank.png": saved(wave(1.8), "PNG"),
    "not_quite_blank.png": saved(wave(2.2), "PNG"),
    "nearly_blank_deep.png": saved(wave(1.8, 12), "PNG"),
    "not_quite_blank_deep.png": saved(wave(2.2, 12), "PNG"),
}


@pytest.mark.usefixtures("quick")
def test_small_and_blank_images_are_refused_as_validation_does(
    release: Path, image_folder: MakeFolder, tmp_path: Path
) -> None:
    folder = image_folder()
    for name, content in MEASURED.items():
        (folder / name).write_bytes(content)
        append(name)(tmp_path)
    limits: dict[str, Any] = {"min_source_px": 16, "min_contrast": 2.0}
    out = validate(tmp_path, image_px=64, on_bad_image="quarantine", bit_depth=12, **limits)
    expected = {row["file_name"]: row["reason"] for row in quarantined(out)}
    assert MEASURED.keys() - expected.keys() == {
        "just_large_enough.png", "not_quite_blank.png", "not_quite_blank_deep.png",
    }  # fmt: skip
    rules = load_dataset(out / "validated").rules
    assert {name: getattr(rules, name) for name in limits} == limits
    told = {name: repr(limit) for name, limit in limits.items()}
    model = predict.Model(with_metadata(release, tmp_path, **told))
    given = {}
    for file in sorted(folder.glob("*.*g")):
        try:
            model.pixels(file.read_bytes(), file.name)
        except predict.Refused as error:
            given[file.name] = str(error)
    assert given == expected


def test_small_and_blank_images_do_not_end_the_batch(release: Path, tmp_path: Path) -> None:
    names = ["black.png", "not_quite_blank.png", "one_pixel.png"]
    for name in names:
        (tmp_path / name).write_bytes(MEASURED[name])
    ended = call(release, *names, at=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, b""), "a model of before asks for nothing"
    (tmp_path / "release").mkdir()
    with_metadata(release, tmp_path / "release", min_source_px="16", min_contrast="1.0")
    (tmp_path / "release" / "predict.py").write_bytes((release / "predict.py").read_bytes())
    ended = call(tmp_path / "release", *names, at=tmp_path)
    assert ended.returncode == 1
    assert [line.split("\t")[2] for line in lines(ended.stdout)] == ["not_quite_blank.png"]
    blank, small, count = lines(ended.stderr)
    assert blank == (
        "error: black.png: contrast = 0.0 (expected a deviation of at least 1 grey levels: it is "
        "blank: leave it out, or lower min_contrast)"
    )
    assert small.startswith("error: one_pixel.png: width = 1 (expected at least 16 px: leave it ")
    assert count == "2 files could not be used"


def test_refusals_are_one_line() -> None:
    for content in (b"", b"\n<html>\n", PNG[:30], JPEG[:20], b"II*\0\xff\xff\xff\xff"):
        assert re.fullmatch(r"[^\n]+", refusal(content))
