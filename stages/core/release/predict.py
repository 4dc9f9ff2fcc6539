"""Classify images with a released model: `python predict.py IMAGE_OR_FOLDER ...`.

Needs onnxruntime, numpy and Pillow, and nothing else; the model file holds the rest. This file also
holds the only rules for image files that there are: the validation of training images imports them,
so that a released model refuses what training refused, in the same words, and sees the same pixels.
So it does with the backgrounds that some models divide images by.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import io
import itertools
import json
import logging
import math
import os
import re
import stat
import struct
import sys
import unicodedata
import warnings
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

T = TypeVar("T")

# Pillow's names of the formats that are read, and the extensions that fit them.
FORMATS = {
    "BMP": (".bmp",), "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"), "PNG": (".png",),
    "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
}  # fmt: skip
READABLE = tuple(extension for extensions in FORMATS.values() for extension in extensions)
# Of all image formats: a file that is not read is refused, not overlooked.
EXTENSIONS = (
    *READABLE,
    # The same formats under other names.
    ".apng", ".dib", ".jfi", ".jif", ".btf", ".tf8",
    # Others.
    ".avif", ".avifs", ".cur", ".dds", ".emf", ".eps", ".exr", ".gif", ".hdr", ".heic", ".heics",
    ".heif", ".heifs", ".hif", ".icns", ".ico", ".j2c", ".j2k", ".jng", ".jp2", ".jpf", ".jph",
    ".jpm", ".jpx", ".jxl", ".jxr", ".mng", ".mpo", ".pbm", ".pcx", ".pfm", ".pgm", ".pict",
    ".pnm", ".ppm", ".psb", ".psd", ".qoi", ".ras", ".sgi", ".svg", ".svgz", ".tga", ".wdp",
    ".wmf", ".xbm", ".xcf", ".xpm",
    # Medicine, science.
    ".czi", ".dcm", ".dicom", ".fit", ".fits", ".fts", ".lsm", ".mha", ".mrc", ".nd2", ".nii",
    ".nrrd", ".svs",
    # Raw data of cameras.
    ".3fr", ".ari", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".iiq",
    ".k25", ".kdc", ".mef", ".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw",
    ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f",
)  # fmt: skip
# So end the names of the pictures that `--evidence` draws, which are no images to look at again.
EVIDENCE_ENDING = ".evidence.png"
# Bits per value that cameras have. A 16-bit file may hold any of them.
BIT_DEPTHS = (8, 9, 10, 12, 14, 16)
# Of a 16-bit image's values, this share may be hot pixels, which do not count as its brightest.
HOT_SHARE = 1e-4
# Images that the model sees at once: enough for all cores, and little memory.
BATCH = 32
# Of so many images of a group, evenly spaced, its background is the median: more would hardly be
# less noisy (1.25 / sqrt(255) of one image's noise is left), and they are in memory together.
MEDIAN_OF = 255
# A pixel takes at most so many bytes in a file: four values of 16 bits each, uncompressed.
PIXEL_BYTES = 8
# Bytes that a file may have beside its pixels: previews, profiles, texts.
BESIDE_BYTES = 64 * 2**20
# A TIFF's directories may overlap, so a small file can hold a vast number of entries. One picture
# has some dozens of them, with its previews and masks a few hundred.
MAX_DIRECTORIES = 1000
MAX_ENTRIES = 100_000
# Strips of a TIFF that hold the same place in the picture: one per channel, at most. A small file
# may list one strip a million times, and each is decoded.
MAX_LAYERS = 4
# What Pillow raises for damaged files.
DAMAGED = (
    OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError,
    struct.error,
)  # fmt: skip
# `max_pixels` is the limit that counts; and what Pillow logs would stand beside our own error.
Image.MAX_IMAGE_PIXELS = None
logging.getLogger("PIL").addHandler(logging.NullHandler())

_EXPORT = "export it as PNG or JPEG"
_DEVELOP = "develop it, and export it as TIFF or JPEG"
# Formats that are often met and not read: where their mark stands, what they are, what helps.
_FOREIGN = (
    (0, rb"GIF8", "a GIF", _EXPORT),
    (4, rb"ftyp(hei|hev|mif1|msf1)", "a HEIC photo", _EXPORT),
    (4, rb"ftypavi[fs]", "an AVIF image", _EXPORT),
    (4, rb"ftypcrx", "a camera's raw file (CR3)", _DEVELOP),
    (4, rb"ftyp", "a video", "export its frames as PNG or JPEG"),
    (0, rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 image", _EXPORT),
    (0, rb"\0\0\0\x0cJXL |\xff\x0a", "a JPEG XL image", _EXPORT),
    (0, rb"FUJIFILMCCD-RAW|II(U\0|R[OS])|MMOR|FOVb", "a camera's raw file", _DEVELOP),
    (0, rb"%!PS|\xc5\xd0\xd3\xc6", "a PostScript drawing (EPS)", _EXPORT),
    (0, rb"%PDF", "a PDF document", "export its pages as PNG"),
    (0, rb"8BPS", "a Photoshop file", _EXPORT),
    (0, rb"RIFF....AVI |\x1aE\xdf\xa3", "a video", "export its frames as PNG or JPEG"),
    (128, rb"DICM", "a DICOM file", "export its pictures as 16-bit PNG"),
    (0, rb"SIMPLE  =", "a FITS file", "export its picture as 16-bit PNG"),
    (0, rb"\x93NUMPY", "a NumPy array", "save it as PNG"),
    (0, rb"P[1-7]\s", "a PNM image", "save it as PNG"),
    (0, rb"\0\0\x01\0", "a Windows icon", "save it as PNG"),
    (0, rb"PK\x03\x04|\x1f\x8b|7z\xbc\xaf|Rar!", "an archive", "unpack it"),
    (0, rb"version https://git-lfs", "a pointer of Git LFS", "run git lfs pull"),
    (0, rb"(?i)(\xef\xbb\xbf)?\s*(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype svg[^>]*>\s*)?<svg",
     "an SVG drawing", "export it as PNG"),
    (0, rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)", "a web page", "download the image again"),
    (0, rb"\0{64}", "a run of zero bytes", "copy it again: copying it broke off"),
)  # fmt: skip
# Raw modes of 16-bit colours. Pillow has no image mode for them: by the first raw mode it reads the
# high byte of every value, by the second the low byte.
_LOW_BYTES = {
    f"{colours};16{high}": f"{colours};16{low}"
    for colours in ("RGB", "RGBX", "RGBA")
    for high, low in (("B", "L"), ("L", "B"), ("N", "B" if sys.byteorder == "little" else "L"))
}  # fmt: skip
_LOW_BYTES["LA;16B"] = "RGBA"
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
# How an image that is not square becomes one: see `read`.
Fit = Literal["stretch", "pad", "crop"]
# Any entropy-coded data: where a JPEG's own data end too early, these become part of its picture.
_MORE_DATA = bytes(1 + (37 * i * i + 11 * i) % 251 for i in range(64))
_END_OF_IMAGE = b"\xff\xd9"


class Refused(Exception):
    """An image file that cannot be used; the text says why, and what helps."""


class BadModel(Exception):
    """A model file, or its labels, that cannot be used; the text says why, and what helps."""


class Picture(NamedTuple):
    """An image file's content, decoded.

    Attributes:
        pixels: (P, P, C), C = 1 or 3: uint8, or uint16 as stored where `bits` is not 0.
        width, height: in pixels, as stored.
        mode, format: Pillow's names.
        bits: of a 16-bit file, how many its values need: one of `BIT_DEPTHS`, as the file declares
            or as its brightest values demand, whichever is more. 0: an 8-bit file.
    """

    pixels: NDArray[Any]
    width: int
    height: int
    mode: str
    format: str
    bits: int


class _Header(NamedTuple):
    """What a file says about its pixels.

    Attributes:
        content: the file, or what of it the pixels need.
        orientation: EXIF's, 1 to 8.
        pictures: how many it holds.
        bits: as many as its values have by its own word; 0 where it has none.
        unsure: whether its data may end before its picture does.
    """

    content: bytes
    orientation: int = 1
    pictures: int = 1
    bits: int = 0
    unsure: bool = False


def _directories(data: bytes) -> Iterator[dict[int, int]]:
    """The directories of a TIFF file or an EXIF block, in order: numbers by tag.

    Of several numbers the first; of a text, where it begins. A tag whose value lies outside `data`
    is left out, and the chain of directories ends where it is broken, or leads back to itself.

    Raises: Refused for more than `MAX_DIRECTORIES` of them, or `MAX_ENTRIES` in all together.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 8:
        return
    big = struct.unpack_from(order + "H", data, 2)[0] == 43  # BigTIFF
    width, count_form, offset_form = (8, "Q", "Q") if big else (4, "H", "I")
    entry = 4 + 2 * width
    forms = {1: "B", 3: "H", 4: "I", 11: "f", 12: "d", 13: "I", 16: "Q"}
    seen: set[int] = set()
    entries = 0
    try:
        place = struct.unpack_from(order + offset_form, data, 8 if big else 4)[0]
        while place and place not in seen:
            seen.add(place)
            if len(seen) > MAX_DIRECTORIES:
                raise Refused(
                    f"more than {MAX_DIRECTORIES} pictures in one file, by its TIFF directories; "
                    "expected one: split it"
                )
            number = struct.unpack_from(order + count_form, data, place)[0]
            start = place + struct.calcsize(order + count_form)
            whole = min(number, max(0, len(data) - start) // entry)
            entries += whole
            if entries > MAX_ENTRIES:
                raise Refused(
                    f"more than {MAX_ENTRIES} entries in its TIFF directories, which one picture "
                    "never has; save it again, as PNG or TIFF"
                )
            tags: dict[int, int] = {}
            for i in range(whole):
                tag, kind, count = struct.unpack_from(
                    order + "HH" + offset_form, data, start + i * entry
                )
                at = start + i * entry + 4 + width
                form = order + forms.get(kind, "B")
                size = struct.calcsize(form) * count
                if size > width:
                    at = struct.unpack_from(order + offset_form, data, at)[0]
                if not count or at + size > len(data):
                    continue
                if kind == 2:
                    tags[tag] = at
                elif kind in forms:
                    value = struct.unpack_from(form, data, at)[0]
                    if math.isfinite(value):
                        tags[tag] = int(value)
            yield tags
            place = struct.unpack_from(order + offset_form, data, start + number * entry)[0]
    except (struct.error, OverflowError):  # a place beyond all files is no index
        return


def _orientation(exif: bytes) -> int:
    """EXIF's orientation, whatever else the block holds; 1 where it says none."""
    block = exif[6:] if exif[:6] == b"Exif\0\0" else exif
    try:
        value = next(_directories(block), {}).get(0x0112, 1)
    except Refused:  # of what stands beside the pixels
        return 1
    return value if value in _UPRIGHT else 1


def _png(content: bytes) -> _Header:
    """Leaves out all chunks but those of the pixels: Pillow refuses a file for a text's fault."""
    if content[12:16] == b"CgBI":
        raise Refused("a PNG for iOS apps only (CgBI); save it as an ordinary PNG")
    parts, place, orientation, pictures, bits = [content[:8]], 8, 1, 1, 0
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        chunk = content[place : place + 12 + length]
        data = chunk[8:-4]
        place += 12 + length
        if kind == b"eXIf":
            orientation = _orientation(data)
        elif kind == b"acTL" and len(data) >= 4:
            pictures = max(1, struct.unpack_from(">I", data)[0])
        elif kind == b"sBIT" and data:
            bits = max(data)
        elif kind == b"tRNS" or kind[:1].isupper():
            if place <= len(content) and zlib.crc32(chunk[4:-4]) != int.from_bytes(
                chunk[-4:], "big"
            ):
                raise ValueError(f"the checksum of its {kind.decode('latin-1')} chunk is wrong")
            parts.append(chunk)
        if kind == b"IEND":
            break
    return _Header(b"".join(parts), orientation, pictures, bits)


def _jpeg(content: bytes) -> _Header:
    """Leaves out what cameras and editors write beside the pixels: EXIF, profiles, previews."""
    parts, place, orientation, unsure = [content[:2]], 2, 1, False
    while place + 4 <= len(content) and content[place] == 0xFF:
        marker = content[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # these have no length
            place += 2
            continue
        if marker in (0xD9, 0xDA):
            break
        length = struct.unpack_from(">H", content, place + 2)[0]
        segment = content[place : place + 2 + length]
        data = segment[4:]
        place += 2 + length
        if marker == 0xE1 and data[:6] == b"Exif\0\0":
            orientation = _orientation(data)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and data:
            unsure = marker in (0xC2, 0xC6, 0xCA, 0xCE)  # progressive: cut, it is only blurred
            if data[0] != 8:
                raise Refused(f"a JPEG of {data[0]} bits; expected 8: save it as 16-bit PNG")
            if marker in (0xC3, 0xC7, 0xCB, 0xCF):
                raise Refused("a lossless JPEG, which is not read; save it as PNG")
        # JFIF's and Adobe's say how colours are stored.
        if marker == 0xE0 and data[:5] == b"JFIF\0":
            parts.append(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0")
        elif (
            marker == 0xEE and data[:5] == b"Adobe" and len(data) >= 12
        ) or not 0xE0 <= marker <= 0xFE:
            parts.append(segment)
    rest = content[place:]
    if _END_OF_IMAGE not in rest:
        return _Header(b"".join([*parts, rest, _END_OF_IMAGE]), orientation, unsure=True)
    return _Header(b"".join([*parts, rest]), orientation, unsure=unsure)


def _tiff(content: bytes) -> _Header:
    first, *others = list(_directories(content)) or [{}]
    if content[8:10] == b"CR" or 50706 in first or first.get(254, 0) & 1:
        raise Refused(f"a camera's raw file, which shows a preview only; {_DEVELOP}")
    depth = first.get(258, 0)
    # Pillow inverts such files of up to 8 bits, and no others. We could not tell what to subtract
    # from: 12-bit values in a 16-bit file may have their black at 4095 or at 65535.
    if first.get(262) == 0 and 8 < depth <= 16:
        raise Refused(
            f"{depth} bits with 0 as white (PhotometricInterpretation 0, WhiteIsZero), which is "
            "read with up to 8 bits only; invert its values, and save it with 0 as black"
        )

    def is_page(tags: dict[int, int]) -> bool:
        """A second picture: no preview, no mask, no smaller version of the first one."""
        if tags.get(254, 0) & 5 or tags.get(255) == 2:
            return False
        width, height, w, h = (t.get(key, 0) for t in (first, tags) for key in (256, 257))
        smaller = 2 * w <= width and 2 * h <= height
        return not (smaller and abs(w * height - h * width) <= max(width, height))

    # MaxSampleValue and SMaxSampleValue, which stand at 65535 where nobody has thought about them.
    highest = [first.get(key, 0) for key in (281, 341)]
    bits = [value.bit_length() for value in highest if 0 < value < 65535]
    if 8 < depth < 16:
        bits.append(depth)
    if 270 in first:  # a description, which microscopes write as OME-XML
        match = re.compile(rb'[^\0]*?SignificantBits="(\d\d?)"').match(content, first[270])
        bits += [int(match[1])] if match else []
    return _Header(content, pictures=1 + sum(map(is_page, others)), bits=max(bits, default=0))


def _webp(content: bytes) -> _Header:
    place = 12
    while place + 8 <= len(content):
        kind, size = struct.unpack_from("<4sI", content, place)
        if kind == b"EXIF":
            return _Header(content, _orientation(content[place + 8 : place + 8 + size]))
        place += 8 + size + size % 2
    return _Header(content)


def _header(content: bytes) -> _Header:
    """Raises: Refused for formats that are not read, and ValueError for damaged files."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        return _png(content)
    if content[:3] == b"\xff\xd8\xff":
        return _jpeg(content)
    if content[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return _tiff(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp(content)
    for place, mark, name, advice in _FOREIGN:
        if re.compile(mark, re.DOTALL).match(content, place):
            raise Refused(f"{name}, not an image of {', '.join(FORMATS)}; {advice}")
    return _Header(content)


def _check_end(image: Image.Image, header: _Header, draft: tuple[int, int]) -> None:
    """Refuse a JPEG whose data end before its picture does, where an end marker hides that.

    libjpeg fills the rest with grey (128), or leaves a progressive one blurred, and says nothing.
    Whether data are missing shows when some are added: they change the picture then, and only then.
    That is tried where the last corner is grey: data that end within the last block pass.

    Args:
        image: decoded.
        header: of the same file.
        draft: the size that was asked for in decoding it.

    Raises: Refused.
    """
    width, height = image.size
    corner = image.crop((max(0, width - 8), height - 1, width, height))
    grey = {value for band in corner.split() for value in band.getextrema()} <= {127, 128}
    if not grey and not header.unsure:
        return
    content = header.content
    end = content.find(b"\xff\xda")
    while end >= 0 and content[end : end + 2] != _END_OF_IMAGE:
        end = content.find(b"\xff", end + 1)
        if content[end + 1 : end + 2] in (b"\xc4", b"\xdb", b"\xda", b"\xdd"):  # tables, a scan
            end += 1 + int.from_bytes(content[end + 2 : end + 4], "big")
    if end < 0:
        return
    longer = content[:end].rstrip(b"\xff") + _MORE_DATA + _END_OF_IMAGE
    with Image.open(io.BytesIO(longer), formats=["JPEG"]) as other:
        other.draft(other.mode, draft)
        if other.tobytes() != image.tobytes():
            raise Refused(
                "not a whole image (truncated: its data end before the picture does); save or copy "
                "it again"
            )


def _over_white(image: Image.Image) -> Image.Image:
    """What a viewer shows of a transparent image: it lies on white paper. Raises: Refused."""
    if image.mode not in ("LA", "La", "PA", "RGBA", "RGBa") and "transparency" not in image.info:
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    layered = image.convert("RGBA")
    low, high = np.asarray(layered.getchannel("A").getextrema()).tolist()
    if low == 255:
        return layered.convert("L" if grey else "RGB")
    if high == 0:
        raise Refused("transparent everywhere; save it without its alpha channel")
    flat = Image.alpha_composite(Image.new("RGBA", image.size, "white"), layered).convert("RGB")
    if low < high and flat.convert("L").getextrema() == (255, 255):
        raise Refused("white on a transparent ground, so blank on paper; save it on a dark ground")
    return flat.convert("L") if grey else flat


def _raw_modes(image: Any) -> set[str]:
    """How Pillow will read the file's values."""
    arguments = [tile[3] for tile in image.tile]
    return {a if isinstance(a, str) else a[0] for a in arguments if a}


def _with_raw_mode(tile: Any, raw_mode: str) -> Any:
    """One of Pillow's tiles (a named tuple in newer versions), to be read by another raw mode."""
    arguments = raw_mode if isinstance(tile[3], str) else (raw_mode, *tile[3][1:])
    return tile._replace(args=arguments) if hasattr(tile, "_replace") else (*tile[:3], arguments)


def _deep_values(image: Any, content: bytes) -> NDArray[np.uint16] | None:
    """The values (H, W, C) of a file with more than 8 bits each; None for other files.

    Raises: Refused.
    """
    if image.mode == "F":
        raise Refused(
            "pixels are floats; expected 8 or 16 bits: scale them to 0 to 65535, and save them as "
            "whole numbers"
        )
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.dtype.kind == "i" and (values.min() < 0 or values.max() > 65535):
            raise Refused(
                f"pixels from {values.min()} to {values.max()}; expected 8 or 16 bits: scale them "
                "to 0 to 65535, and save them as unsigned numbers"
            )
        return values.astype(np.uint16)[..., None]
    raw_modes = _raw_modes(image)
    if len(raw_modes) != 1 or not raw_modes <= set(_LOW_BYTES):
        return None
    raw_mode = raw_modes.pop()
    with Image.open(io.BytesIO(content), formats=list(FORMATS)) as opened:
        low: Any = opened
        low.tile = [_with_raw_mode(tile, _LOW_BYTES[raw_mode]) for tile in low.tile]
        low.load()
        low_bytes = np.asarray(low)
    if raw_mode == "LA;16B":  # read as four bytes: of grey high and low, of alpha high and low
        values = low_bytes[..., :1].astype(np.uint16) * 256 + low_bytes[..., 1:2]
        alpha = low_bytes[..., 2]
    else:
        high_bytes = np.asarray(image)
        values = high_bytes[..., :3].astype(np.uint16) * 256 + low_bytes[..., :3]
        alpha = high_bytes[..., 3:]
    if alpha.size and alpha.min() < 255:
        raise Refused("transparent with 16 bits; save it on a ground, or with 8 bits")
    return np.asarray(values, np.uint16)


def _bits_needed(values: NDArray[np.uint16], declared: int) -> int:
    """The smallest of `BIT_DEPTHS` that holds all values but a few hot ones, and what is declared.

    A declaration alone says little: PNG's sBIT is also written where the values were scaled to all
    16 bits, as its specification asks for.
    """
    hot = max(1, int(values.size * HOT_SHARE)) if values.size > 1 else 0
    brightest = int(np.partition(values.ravel(), -1 - hot)[-1 - hot])
    needed = max(brightest.bit_length(), min(declared, 16))
    return next(depth for depth in BIT_DEPTHS if depth >= needed)


def eight_bits(pixels: NDArray[np.uint16], bit_depth: int) -> NDArray[np.uint8]:
    """Values of `bit_depth` bits as 8 bits: the highest becomes 255, what is above it too."""
    highest = 2**bit_depth - 1
    scaled: NDArray[np.uint32] = (
        np.minimum(pixels, highest).astype(np.uint32) * 255 + highest // 2
    ) // highest
    return scaled.astype(np.uint8)


def read(
    content: bytes,
    *,
    image_px: int,
    max_pixels: int,
    channels: int | None = None,
    fit: Fit = "stretch",
) -> Picture:
    """An image file as the models see it: upright as EXIF says, on white, resized bicubically.

    JPEGs are decoded at a reduced size, never below 2 P: several times faster.

    Args:
        content: of one file.
        image_px: the side P of the square that is made.
        max_pixels: width times height, at most.
        channels: 1 or 3, of an 8-bit file; None keeps grey images grey. (A deep one keeps its own.)
        fit: what becomes of an upright image that is not square. `stretch`: each side is resized to
            P. `pad`: the longer side is, and the rest filled on both sides with the mean colour of
            the two edges that meet it, so that a plain background goes on without a seam. `crop`:
            the square in the middle is, and the rest cut off.

    Raises: Refused.
    """
    if not content:
        raise Refused("an empty file (0 bytes); copy it again")
    try:
        header = _header(content)
        with Image.open(io.BytesIO(header.content), formats=list(FORMATS)) as image:
            return _decoded(image, header, image_px, max_pixels, channels, fit)
    except UnidentifiedImageError:  # its text names an address in memory
        raise Refused(_unidentified(content)) from None
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        raise Refused(f"not a whole image ({reason[:120]}); save or copy it again") from None


def _unidentified(content: bytes) -> str:
    tags = next(_directories(content), {})
    if 256 in tags and 257 in tags:
        return (
            f"a TIFF of a kind that is not read ({tags.get(277, 1)} channels of "
            f"{tags.get(258, 1)} bits); expected grey or RGB with 8 or 16 bits: save it so"
        )
    if content[:3] == b"\xff\xd8\xff" or content[:4] in (b"\x89PNG", b"RIFF", b"II*\0", b"MM\0*"):
        return "not a whole image (its header is damaged); save or copy it again"
    return f"not an image of {', '.join(FORMATS)}; save or copy it again"


def _square(image: Image.Image, side: int, fit: Fit) -> NDArray[Any]:
    """An upright image's pixels, (side, side) or (side, side, C), by the rules of `read`."""
    width, height = image.size
    shorter, longer = sorted(image.size)
    size = (side, side)
    if fit == "crop" and shorter < longer:
        left, top = (width - shorter) // 2, (height - shorter) // 2
        image = image.crop((left, top, left + shorter, top + shorter))
    elif fit == "pad":
        size = (max(1, round(width * side / longer)), max(1, round(height * side / longer)))
    pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
    length = min(size)
    if length == side:
        return pixels
    axis = pixels.shape.index(length)
    colour = pixels.take((0, -1), axis).mean((0, 1), dtype=np.float64)
    square = np.empty((side, side, *pixels.shape[2:]), pixels.dtype)
    square[...] = colour.round() if pixels.dtype == np.uint8 else colour
    start = (side - length) // 2
    np.moveaxis(square, axis, 0)[start : start + length] = np.moveaxis(pixels, axis, 0)
    return square


def _decoded(
    image: Image.Image,
    header: _Header,
    image_px: int,
    max_pixels: int,
    channels: int | None,
    fit: Fit,
) -> Picture:
    if image.width * image.height > max_pixels:
        raise Refused(
            f"{image.width} x {image.height} pixels; expected at most {max_pixels / 1e6:g} million "
            "(validate.max_megapixels): make it smaller"
        )
    tiles: list[Any] = getattr(image, "tile", [])
    if len(tiles) > MAX_LAYERS * len({tile[1] for tile in tiles}):
        raise Refused(
            f"damaged: its list of strips names the same pixels over and over ({len(tiles)} "
            "strips); save it again"
        )
    pictures = max(header.pictures, getattr(image, "n_frames", 1) if image.format == "WEBP" else 1)
    if pictures > 1:
        raise Refused(f"{pictures} pictures in one file; expected one: split it")
    width, height, mode, kind = image.width, image.height, image.mode, str(image.format)
    if kind == "JPEG":
        image.draft(image.mode, (2 * image_px, 2 * image_px))
        image.load()
        _check_end(image, header, (2 * image_px, 2 * image_px))
    values = _deep_values(image, header.content)
    turn = _UPRIGHT.get(header.orientation)

    def resized(plane: Image.Image) -> NDArray[Any]:
        upright = plane if turn is None else plane.transpose(turn)
        return _square(upright, image_px, fit)

    if values is None:
        flat = _over_white(image)
        channels = channels or (1 if flat.mode in ("1", "L") else 3)
        pixels = resized(flat.convert("L" if channels == 1 else "RGB"))
        pixels = pixels.reshape(image_px, image_px, channels)
        return Picture(pixels, width, height, mode, kind, 0)
    bits = _bits_needed(values, header.bits)
    values = np.minimum(values, 2**bits - 1)  # a hot pixel would shine on those around it
    planes = [
        resized(Image.fromarray(values[..., c].astype(np.float32))) for c in range(values.shape[2])
    ]
    deep = np.stack(planes, 2).round().clip(0, 65535).astype(np.uint16)
    return Picture(deep, width, height, mode, kind, bits)


def as_input(picture: Picture, channels: int, bit_depth: int) -> NDArray[np.uint8]:
    """A picture's pixels, as a model wants them that learned from images of `bit_depth` bits.

    Raises: Refused for a picture of more bits: its bright parts would all be white.
    """
    if picture.bits > bit_depth:
        raise Refused(
            f"its values need {picture.bits} bits; expected at most {bit_depth}, as in training: "
            "scale them as the training images were"
        )
    pixels = eight_bits(picture.pixels, bit_depth) if picture.bits else picture.pixels
    if pixels.shape[2] < channels:
        return np.repeat(pixels, channels, 2)
    if pixels.shape[2] > channels:
        return np.asarray(grey(pixels))[..., None]
    return pixels


def _as_image(pixels: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)


def grey(pixels: NDArray[np.uint8]) -> Image.Image:
    """The grey values of an image (P, P, C)."""
    return _as_image(pixels).convert("L")


def contrast(image: Image.Image) -> float:
    """Standard deviation of a grey image's values (0 to 255)."""
    return round(float(np.asarray(image, np.float32).std()), 3)


def least(min_source_px: int, min_contrast: float) -> dict[str, tuple[float, str, str]]:
    """By measure: what an image has at least; that in words, and what to do about less.

    Width and height are in pixels, as stored; the contrast is that of the image that models see.
    """
    side = (min_source_px, f"at least {min_source_px} px", "leave it out, or lower min_source_px")
    deviation = f"a deviation of at least {min_contrast:g} grey levels"
    blank = "it is blank: leave it out, or lower min_contrast"
    return {"width": side, "height": side, "contrast": (min_contrast, deviation, blank)}


def spread(items: Sequence[T]) -> list[T]:
    """At most `MEDIAN_OF` of the items, evenly spaced from the first to the last, in order."""
    last, count = len(items) - 1, min(len(items), MEDIAN_OF)
    return [items[i * last // max(count - 1, 1)] for i in range(count)]


def median(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The pixelwise median (P, P, C) of one or more images (P, P, C); halves are rounded up."""
    low, high = (len(images) - 1) // 2, len(images) // 2
    ordered = np.partition(np.stack(images), (low, high), axis=0)
    middle = ordered[low].astype(np.uint16) + ordered[high]
    return np.asarray((middle + 1) // 2, np.uint8)


def too_large(size: int, max_pixels: int) -> str:
    """Why a file of so many bytes is not even read, or "".

    Args:
        size: in bytes.
        max_pixels: width times height of an image, at most.
    """
    limit = max_pixels * PIXEL_BYTES + BESIDE_BYTES
    if size <= limit:
        return ""
    return (
        f"a file of {size / 1e6:.0f} MB; expected at most {limit / 1e6:.0f} MB, enough for "
        f"{max_pixels / 1e6:g} million pixels (validate.max_megapixels): make it smaller"
    )


def wrong_extension(name: str, kind: str) -> str:
    """Why a file's name does not fit its format (Pillow's name of it), or ""."""
    suffix = Path(name).suffix.lower()
    if not kind or suffix in FORMATS[kind]:
        return ""
    return f"its content is {kind}, its name says {suffix or 'nothing'}; rename it"


def printable(text: str) -> str:
    """`text` in one line that no terminal obeys: control characters and the like are escaped."""
    unsafe = ("Cc", "Cf", "Cs", "Zl", "Zp")
    return "".join(
        c.encode("unicode_escape").decode() if unicodedata.category(c) in unsafe else c
        for c in text
    )


def _cell(text: str) -> str:
    """`text` as a CSV cell that no spreadsheet takes for a formula."""
    safe = printable(text)
    return "'" + safe if text[:1] in ("=", "+", "-", "@", "\t", "\r") else safe


def _listed(values: Iterable[tuple[str, str, list[Any]]]) -> str:
    """A network's inputs or outputs, in words."""
    return " and ".join(
        f"{name}, {kind} of (batch, {', '.join(map(str, shape))})" for name, kind, shape in values
    )


def hashes_in(manifest: Path) -> dict[str, str]:
    """The SHA-256 of a release's files by name, from its manifest.json. Raises: BadModel."""
    problem = _not_a_file(manifest)
    try:
        if not problem:
            hashes = json.loads(manifest.read_text(encoding="utf-8"))["sha256"]
            if all(isinstance(value, str) for value in hashes.values()):
                return dict(hashes)
            problem = "a hash in it is no text"
    except OSError as error:
        problem = str(error.strerror)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        problem = 'expected JSON such as {"sha256": {"model.onnx": "5e88..."}}'
    raise BadModel(f"{manifest}: not readable ({problem}); fetch the whole release again")


def _as_released(path: Path) -> bytes:
    """A file of a release, as the manifest.json beside it says, if there is one.

    Raises: OSError, BadModel.
    """
    content = path.read_bytes()
    manifest = path.with_name("manifest.json")
    if os.path.lexists(manifest):
        expected = hashes_in(manifest).get(path.name)
        if expected is None:
            raise BadModel(
                f"{path}: not listed in the manifest.json beside it; fetch the whole release "
                "again, or put a model of your own into another folder"
            )
        if expected != hashlib.sha256(content).hexdigest():
            raise BadModel(
                f"{path}: not the file that was released (its SHA-256 differs from that in "
                "manifest.json); fetch the whole release again"
            )
    return content


class Model:
    """A released ONNX model.

    Attributes:
        classes: names, in the order of the probabilities.
        image_px, channels: what images are converted to.
        bit_depth: how many bits the brightest training images had; a deeper one is refused.
        max_pixels: width times height of an image, at most.
        fit: what becomes of an image that is not square; models from before that was a choice do
            not say, and stretch it.
        min_source_px, min_contrast: what an image has at least, see `least`; older models do not
            say, and ask for nothing.
        background_images: of how many images of its group, at least, the background is made that an
            image is divided by; 0: the model takes no background.
        explains: whether it gives a map of evidence per class, too.
        thresholds: number of a class, and the probabilities of it between which a person decides;
            None where the most probable class is the answer.
    """

    def __init__(self, path: Path) -> None:
        """Load it; compare it with manifest.json and labels.json beside it. Raises: BadModel."""
        import onnxruntime  # the pipeline uses this file's rules without it

        if not os.path.isfile(path):  # noqa: PTH113, Path.is_file raises where access is denied
            raise BadModel(f"{path}: no such file; copy the whole release folder again")
        onnxruntime.set_default_logger_severity(4)
        try:
            content = _as_released(path)
            # In protobuf, this key of external data follows its length: 8, padded or not. Old
            # versions of onnxruntime would look for the data in the current folder.
            if re.search(rb"[\x00\x08]location", content):
                raise BadModel(
                    f"{path}: keeps data in another file, and a released model is one file; fetch "
                    "the whole release again"
                )
            self._session: Any = onnxruntime.InferenceSession(
                content, providers=["CPUExecutionProvider"]
            )
        except BadModel:
            raise
        except Exception as error:  # onnxruntime's classes have no base of their own
            reason = " ".join(str(error).split())[:200]
            raise BadModel(
                f"{path}: onnxruntime {onnxruntime.__version__} cannot load it ({reason}); copy "
                "the release folder again, or install the onnxruntime that its MODEL_CARD.md names"
            ) from None
        try:
            self._read_metadata(self._session.get_modelmeta().custom_metadata_map)
            self._check_network()
        except (KeyError, ValueError) as error:
            problem = f"its metadata lack {error}" if isinstance(error, KeyError) else str(error)
            raise BadModel(
                f"{path}: no model of this project's ({problem}); copy the whole release folder "
                "again"
            ) from None
        self._check_labels(path.with_name("labels.json"))

    def _read_metadata(self, metadata: Mapping[str, str]) -> None:
        """Raises: KeyError for what is not there, ValueError for what cannot be."""

        def number(key: str, allowed: range, words: str) -> int:
            text = metadata[key]
            if not re.fullmatch("[0-9]{1,15}", text) or int(text) not in allowed:
                raise ValueError(f"its metadata say {key} = {text[:50]!r}; expected {words}")
            return int(text)

        text = metadata["classes"]
        try:
            classes = json.loads(text)
        except (ValueError, RecursionError):
            classes = None
        are_names = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
        if not are_names or not len(set(classes)) == len(classes) > 1:
            raise ValueError(
                f"its metadata say classes = {text[:50]!r}; expected a list of two or more names"
            )
        self.classes: list[str] = classes
        self.image_px = number("image_px", range(1, 10**5), "a number of pixels")
        self.channels = number("channels", range(1, 4, 2), "1 or 3")
        self.bit_depth = number("bit_depth", range(8, 17), "8 to 16")
        self.max_pixels = number("max_pixels", range(1, 10**15), "a number of pixels")
        fits: dict[str, Fit] = {name: name for name in get_args(Fit)}
        fit = metadata.get("fit", "stretch")
        if fit not in fits:
            raise ValueError(f"its metadata say fit = {fit[:50]!r}; expected {', '.join(fits)}")
        self.fit = fits[fit]
        self.min_source_px, self.min_contrast = 1, 0.0
        if "min_source_px" in metadata:
            self.min_source_px = number("min_source_px", range(1, 10**15), "a number of pixels")
        if "min_contrast" in metadata:
            self.min_contrast = _contrast(metadata["min_contrast"])
        self.background_images = 0
        if "background_images" in metadata:
            allowed = range(1, MEDIAN_OF + 1)
            self.background_images = number("background_images", allowed, f"1 to {MEDIAN_OF}")
        self.thresholds = None
        if "thresholds" in metadata:
            self.thresholds = _thresholds(metadata["thresholds"], len(classes))

    def _check_network(self) -> None:
        """Raises: ValueError for a network of another shape than the metadata say."""
        inputs, outputs = (
            [(value.name, value.type, value.shape[1:]) for value in values]
            for values in (self._session.get_inputs(), self._session.get_outputs())
        )
        image = [self.image_px, self.image_px, self.channels]
        names = ["images", "backgrounds"] if self.background_images else ["images"]
        self.explains = len(outputs) == 2
        answers = [("probabilities", "tensor(float)", [len(self.classes)])]
        if self.explains:  # one map per class, of any side
            side = outputs[1][2][-1] if outputs[1][2] else 0
            if side not in range(1, self.image_px + 1):
                raise ValueError(f"its evidence has a side of {side}; expected pixels, or fewer")
            answers.append(("evidence", "tensor(float)", [len(self.classes), side, side]))
            self._side = side
        for actual, expected in (
            (inputs, [(name, "tensor(uint8)", image) for name in names]),
            (outputs, answers),
        ):
            if actual != expected:
                raise ValueError(
                    f"its network has {_listed(actual)}; expected, by its metadata, "
                    f"{_listed(expected)}"
                )

    def _check_labels(self, path: Path) -> None:
        if not path.exists():
            return
        try:
            labels = json.loads(_as_released(path).decode())
        except (OSError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise BadModel(f"{path}: not readable ({reason}); copy the release again") from None
        if labels != self.classes:
            raise BadModel(
                f"{path}: other classes than the model's ({', '.join(self.classes)}); copy the "
                "whole release folder again"
            )

    def pixels(self, content: bytes, name: str | None = None) -> NDArray[np.uint8]:
        """An image file's content as uint8 (P, P, C), as training saw it. Raises: Refused.

        Args:
            content: of the file.
            name: of the file: its extension has to fit.
        """
        picture, pixels = self._opened(content, name)
        measures = {
            "width": picture.width,
            "height": picture.height,
            "contrast": contrast(grey(pixels)),
        }
        limits = least(self.min_source_px, self.min_contrast)
        problems = [
            f"{measure} = {measures[measure]} (expected {words}: {advice})"
            for measure, (limit, words, advice) in limits.items()
            if measures[measure] < limit
        ]
        if problems:
            raise Refused("; ".join(problems))
        return pixels

    def background(self, content: bytes, name: str) -> NDArray[np.uint8]:
        """The same of a background's file, which may be small, or of one grey."""
        return self._opened(content, name)[1]

    def _opened(self, content: bytes, name: str | None) -> tuple[Picture, NDArray[np.uint8]]:
        picture = read(
            content,
            image_px=self.image_px,
            max_pixels=self.max_pixels,
            channels=self.channels,
            fit=self.fit,
        )
        if name is not None and (problem := wrong_extension(name, picture.format)):
            raise Refused(problem)
        return picture, as_input(picture, self.channels, self.bit_depth)

    def probabilities(
        self, images: Sequence[NDArray[np.uint8]], backgrounds: Sequence[NDArray[np.uint8]] = ()
    ) -> NDArray[np.float32]:
        """Probabilities (number of images, K) of what `pixels` gives: see `run`."""
        return self.run(images, backgrounds)[0]

    def run(
        self, images: Sequence[NDArray[np.uint8]], backgrounds: Sequence[NDArray[np.uint8]] = ()
    ) -> list[NDArray[np.float32]]:
        """Probabilities (number of images, K), and evidence (.., K, S, S) if the model explains.

        Args:
            images: (P, P, C) each.
            backgrounds: one for each image, if the model takes any.
        """
        inputs = {"images": np.stack(images)}
        if backgrounds:
            inputs["backgrounds"] = np.stack(backgrounds)
        try:
            outputs: list[NDArray[np.float32]] = self._session.run(None, inputs)
        except Exception as error:  # onnxruntime's classes have no base of their own
            reason = " ".join(str(error).split())[:200]
            raise BadModel(f"the model cannot be run ({reason}); copy its release again") from None
        probabilities = (len(images), len(self.classes))
        shapes: list[tuple[int, ...]] = [probabilities]
        if self.explains:
            shapes.append((*probabilities, self._side, self._side))
        actual = [output.shape for output in outputs]
        if actual != shapes:
            raise BadModel(f"the model's answers are of shape {actual}; expected {shapes}")
        return outputs


def _contrast(text: str) -> float:
    """A least contrast, from a model's metadata. Raises: ValueError."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 128:  # no grey values deviate more
        raise ValueError(f"its metadata say min_contrast = {text[:50]!r}; expected 0 to 128")
    return value


def _thresholds(text: str, classes: int) -> tuple[int, float, float]:
    """A class's number, low and high, from a model's metadata. Raises: ValueError."""
    try:
        number, low, high = json.loads(text)
        if number in range(classes) and 0 <= float(low) <= float(high):
            return int(number), float(low), float(high)
    except (ValueError, TypeError, RecursionError, OverflowError):
        pass
    raise ValueError(
        f"its metadata say thresholds = {text[:50]!r}; expected a class's number and two numbers"
    )


class Seen(NamedTuple):
    """What a model that explains itself has seen.

    Attributes:
        pixels: (P, P, C), the image.
        evidence: (K, S, S), which adds up to the logits.
    """

    pixels: NDArray[np.uint8]
    evidence: NDArray[np.float32]


class Answer(NamedTuple):
    """What the model says of a file, or why it says nothing.

    Attributes:
        file: as it was named, or as it lies in a folder that was named.
        probabilities: (K,); None where there is a problem.
        problem: why there are none, or "".
        seen: None where the model does not explain itself.
    """

    file: str
    probabilities: NDArray[np.float32] | None
    problem: str
    seen: Seen | None = None


class File(NamedTuple):
    """A file to look at.

    Attributes:
        path: as it was named, or as it lies in a folder that was named.
        problem: why it cannot be read, or "".
        folder: the folder in which it was found; None if the file was named itself.
    """

    path: Path
    problem: str
    folder: Path | None


def files_in(paths: Iterable[Path]) -> Iterator[File]:
    """The files to look at, in order.

    Of a folder, all images in it and below: what has an extension of an image, is not hidden, and
    was not drawn by `--evidence`. Links to folders are named, and not followed.
    """
    for path in paths:
        if not os.path.isdir(path):  # noqa: PTH112, Path.is_dir raises where access is denied
            yield File(path, _not_a_file(path), None)
            continue
        problems: list[OSError] = []
        empty = True
        for root, folders, names in os.walk(path, onerror=problems.append):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in (Path(root, name) for name in folders):
                if os.path.islink(file):  # noqa: PTH114, as above
                    empty = False
                    problem = "a link to a folder, which is not followed; name it as well"
                    yield File(file, problem, Path(root))
            for name in sorted(names):
                low = name.lower()
                if low.startswith(".") or low.endswith(EVIDENCE_ENDING):
                    continue
                if low.endswith(EXTENSIONS):
                    empty = False
                    yield File(Path(root, name), _not_a_file(Path(root, name)), Path(root))
        for error in problems:
            yield File(Path(error.filename), f"cannot be read ({error.strerror})", None)
        if empty and not problems:
            yield File(path, f"a folder without an image ({', '.join(READABLE)})", None)


def _not_a_file(path: Path) -> str:
    """Why a path is no file to read, or ""; reading a pipe or a device may never end."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return "a link to nothing" if path.is_symlink() else "no such file or folder"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if stat.S_ISREG(mode) else "not a plain file"


ALONE = (
    "no background, which this model divides images by: name the folder of the images that share "
    "one, or give it with --background FOLDER_OR_IMAGE"
)
# An image's pixels (P, P, C), or else the problem with it.
Decoded = tuple[Any, str]


def _read_by(model: Model, file: File, *, is_background: bool = False) -> Decoded:
    if file.problem:
        return None, file.problem
    try:
        if problem := too_large(file.path.stat().st_size, model.max_pixels):
            return None, problem
        decode = model.background if is_background else model.pixels
        return decode(file.path.read_bytes(), file.path.name), ""
    except OSError as error:
        return None, f"cannot be read ({error.strerror})"
    except MemoryError:
        return None, "more than this machine's memory holds; make it smaller"
    except Refused as error:
        return None, str(error)


class Background(NamedTuple):
    """What the images of a folder have in common.

    Attributes:
        image: (P, P, C); None if the folder has too few images that can be used.
        problem: why there is none, or "".
        decoded: the files that it was made of, or would have been.
    """

    image: NDArray[np.uint8] | None
    problem: str
    decoded: dict[Path, Decoded]


def background_of(model: Model, folder: Path, files: Sequence[File]) -> Background:
    """The median of a folder's images, as validation makes it of a group's: see `spread`."""
    decoded = {file.path: _read_by(model, file) for file in spread(files)}
    images = [pixels for pixels, _ in decoded.values() if pixels is not None]
    if len(images) >= model.background_images:
        return Background(median(images), "", decoded)
    problem = (
        f"no background: it is the median of {model.background_images} images or more of one "
        f"folder, and {folder} has {len(images)} that can be used; add some, or give a background "
        "with --background FOLDER_OR_IMAGE"
    )
    return Background(None, problem, decoded)


def given_background(model: Model, path: Path) -> Background:
    """The background that a user names: an image, or the folder whose images' median it is.

    Folders in that folder do not count. Raises: Refused.
    """
    if not model.background_images:
        raise Refused("--background: this model takes no background; leave the option out")
    files = list(itertools.takewhile(lambda file: file.folder in (None, path), files_in([path])))
    if os.path.isdir(path):  # noqa: PTH112, as above
        ground = background_of(model, path, [file for file in files if file.folder == path])
    else:
        ground = Background(*_read_by(model, files[0], is_background=True), {})
    if ground.image is None:
        raise Refused(f"--background {path}: {ground.problem}")
    return ground


def answers(
    model: Model, paths: Iterable[Path], background: NDArray[np.uint8] | None = None
) -> Iterator[Answer]:
    """What `model` says of each file, in order; `BATCH` images are in memory at a time.

    A model that divides images by their background takes `background` for all of them, or else
    makes one of each folder's images, without those of folders in it; `MEDIAN_OF` of them are in
    memory then.
    """
    waiting: list[tuple[str, NDArray[np.uint8] | None, NDArray[np.uint8] | None, str]] = []

    def flush() -> Iterator[Answer]:
        images = [pixels for _, pixels, _, _ in waiting if pixels is not None]
        grounds = [
            ground for _, pixels, ground, _ in waiting if pixels is not None and ground is not None
        ]
        rows = iter(zip(*model.run(images, grounds))) if images else iter(())  # noqa: B905, from 3.10 on
        for file, pixels, _, problem in waiting:
            row: NDArray[np.float32] | None = None
            seen = None
            if pixels is not None:
                row, *maps = next(rows)
                seen = Seen(pixels, maps[0]) if maps else None
            parts = [] if row is None else [row] if seen is None else [row, seen.evidence]
            if not all(np.isfinite(part).all() for part in parts):
                row, seen, problem = None, None, "the model's answer is no number"
            yield Answer(file, row, problem, seen)
        waiting.clear()

    for folder, found in itertools.groupby(files_in(paths), key=lambda file: file.folder):
        files = list(found)
        ground = Background(background, "", {})
        if model.background_images and background is None:
            ground = Background(None, ALONE, {})
            if folder is not None:
                ground = background_of(model, folder, files)
        for file in files:
            pixels, problem = ground.decoded.get(file.path) or _read_by(model, file)
            if ground.problem and not problem:
                pixels, problem = None, ground.problem
            waiting.append((str(file.path), pixels, ground.image, problem))
            if len(waiting) == BATCH:
                yield from flush()
    yield from flush()


ASK = "ask a person"


def decision(model: Model, row: NDArray[np.float32]) -> str | None:
    """The class that an image of these probabilities (K,) is answered with.

    The most probable one; with thresholds, their class if it is probable enough, another one if it
    is improbable enough, and None in between: a person should look.
    """
    if model.thresholds is None:
        return model.classes[int(row.argmax())]
    number, low, high = model.thresholds
    score = float(row[number])  # float32 would round the thresholds
    if score >= high:
        return model.classes[number]
    if score >= low:
        return None
    others = row.copy()
    others[number] = -1
    return model.classes[int(others.argmax())]


def explained(seen: Seen, row: NDArray[np.float32], first: int) -> Image.Image:
    """An image beside what of it speaks for the answer (red) and against it (blue).

    That is the evidence for the class of the answer less that for the most probable other one, in
    cells of about a sixteenth of the side.

    Args:
        row: its probabilities (K,).
        first: number of the class of the answer.
    """
    second = next(k for k in np.argsort(row, kind="stable")[::-1] if k != first)
    values = seen.evidence[first] - seen.evidence[second]
    count = min(len(values), 16)
    cells = np.asarray(Image.fromarray(values).resize((count, count), Image.Resampling.BOX))
    strength = cells / max(float(np.abs(cells).max()), 1e-12)
    channels = (255 * strength.clip(0, 1), 255 * (-strength).clip(0, 1), 255 * np.abs(strength))
    side = seen.pixels.shape[:2]
    red, blue, opaque = (
        Image.fromarray(values.astype(np.uint8)).resize(side, Image.Resampling.BILINEAR)
        for values in channels
    )
    none = Image.new("L", side)
    over = Image.composite(
        Image.merge("RGB", (red, none, blue)),
        grey(seen.pixels).convert("RGB"),
        opaque.point(lambda v: v // 2),
    )
    both = Image.new("RGB", (2 * side[0], side[1]))
    both.paste(_as_image(seen.pixels).convert("RGB"), (0, 0))
    both.paste(over, (side[0], 0))
    return both


def new_folder(folder: Path, inputs: Iterable[Path]) -> None:
    """Make the folder that evidence goes to.

    Raises: Refused unless it is new, or empty, and apart from the images.
    """
    try:
        for path in inputs:
            if path.is_dir() and folder.resolve().is_relative_to(path.resolve()):
                raise Refused(f"--evidence {folder}: inside {path}, whose images are looked at")
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise Refused(f"--evidence {folder}: cannot be written ({error.strerror})") from None
    if not is_empty:
        raise Refused(f"--evidence {folder}: not empty; name a new folder")


def drawn(model: Model, rows: Iterable[Answer], folder: Path) -> Iterator[Answer]:
    """The same answers; a PNG of each image and its evidence is written on the way.

    Where a person should look, the evidence is that for the most probable class.
    In `folder` their names are numbered as the images come, then hold the end of theirs, then
    `EVIDENCE_ENDING`.

    Raises: Refused for a folder that cannot be written.
    """
    for number, answer in enumerate(rows, 1):
        if answer.seen is not None and answer.probabilities is not None:
            stem = re.sub(r"[^A-Za-z0-9_-]", "_", Path(answer.file).stem)[-60:]
            said = decision(model, answer.probabilities)
            best = int(answer.probabilities.argmax())
            first = best if said is None else model.classes.index(said)
            picture = explained(answer.seen, answer.probabilities, first)
            try:
                # New files alone: nothing that is there, or that a link names, is overwritten.
                with (folder / f"{number:05d}_{stem}{EVIDENCE_ENDING}").open("xb") as file:
                    picture.save(file, "PNG")
            except OSError as error:
                raise Refused(
                    f"--evidence {folder}: cannot be written ({error.strerror})"
                ) from None
        yield answer


def _write(form: str, model: Model, rows: Iterable[Answer]) -> int:
    """Print answers on stdout and problems on stderr, as they come; returns how many problems.

    A table has the answer and its probability, or the most probable class's where a person should
    look; the other forms have the most probable class, its probability, and the answer.
    """
    out = csv.writer(sys.stdout, lineterminator="\n")
    classes, decides = model.classes, model.thresholds is not None
    if form == "csv":
        out.writerow(["file", "class", "probability", *(["decision"] if decides else [])])
    problems = lines = 0
    for file, row, problem, _ in rows:
        if row is None:
            problems += 1
            sys.stdout.flush()
            print(f"error: {printable(file)}: {printable(problem)}", file=sys.stderr)
            continue
        best, answer = int(row.argmax()), decision(model, row)
        if form == "csv":
            decided = [_cell(answer or ASK)] if decides else []
            out.writerow([_cell(file), _cell(classes[best]), f"{row[best]:.6f}", *decided])
        elif form == "json":
            named = {name: float(p) for name, p in zip(classes, row)}  # noqa: B905, from 3.10 on
            entry = {"file": file, "class": classes[best], "probabilities": named}
            print("[" if lines == 0 else ",")
            print(json.dumps({**entry, "decision": answer} if decides else entry), end="")
        else:
            said = answer or f"{ASK} ({classes[best]}?)"
            p = row[classes.index(answer or classes[best])]
            print(f"{printable(said)}\t{p:.3f}\t{printable(file)}")
        lines += 1
    if form == "json":
        print("\n]" if lines else "[]")
    return problems


def _path(name: str) -> Path:
    if not name:  # which pathlib takes for the current folder
        raise Refused("an empty name among the arguments; name a file or a folder")
    return Path(name)


def main() -> int:
    """Print a line per image: its class, the probability, the file. Returns the exit status."""
    for name in ("stdout", "stderr"):  # closed ones, as `2>&-` has them, are None
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115, for as long as it runs
    parser = argparse.ArgumentParser(
        description="Classify images. A file that cannot be used is named on stderr, and the "
        "others go on: the exit status is 1 then."
    )
    parser.add_argument("paths", nargs="+", type=_path, metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.add_argument(
        "--background",
        type=_path,
        metavar="FOLDER_OR_IMAGE",
        help="for a model that divides images by their background: an image of it, or the folder "
        "whose images' median it is; without this, each folder's images have their own median",
    )
    parser.add_argument(
        "--model",
        type=_path,
        metavar="FILE",
        help="another file of the release, as MODEL_CARD.md names them; default: model.onnx",
    )
    parser.add_argument(
        "--evidence",
        type=_path,
        metavar="FOLDER",
        help="write each image into this folder, beside what of it speaks for the answer (red) and "
        "against it (blue); takes evidence.onnx in place of model.onnx. Later calls pass over "
        f"these pictures, whose names end in {EVIDENCE_ENDING}",
    )
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal cannot show is escaped
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of what stands beside the pixels
        try:
            arguments = parser.parse_args()
            usual = "model.onnx" if arguments.evidence is None else "evidence.onnx"
            model = Model(arguments.model or Path(__file__).with_name(usual))
            if arguments.evidence is not None and not model.explains:
                named = arguments.model or usual
                raise BadModel(f"{named}: it gives no evidence; take the release's evidence.onnx")
            if arguments.evidence is not None:
                new_folder(arguments.evidence, arguments.paths)
            ground = Background(None, "", {})
            if arguments.background is not None:
                ground = given_background(model, arguments.background)
        except (BadModel, Refused) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        bad = (Answer(str(path), None, p) for path, (_, p) in ground.decoded.items() if p)
        rows: Iterator[Answer] = itertools.chain(bad, answers(model, arguments.paths, ground.image))
        if arguments.evidence is not None:
            rows = drawn(model, rows, arguments.evidence)
        try:
            problems = _write(arguments.format, model, rows)
            sys.stdout.flush()
        except (BadModel, Refused) as error:
            print(f"error: {printable(str(error))}", file=sys.stderr)
            return 2
        except OSError as error:
            # What is left to write goes nowhere, or else it would fail again at the end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # who reads has seen enough, as `head` has
                return 1
            print(
                f"error: the output cannot be written ({error.strerror}); make room, or write it "
                "elsewhere",
                file=sys.stderr,
            )
            return 2
    if problems:
        noun = "file" if problems == 1 else "files"
        print(f"{problems} {noun} could not be used", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
