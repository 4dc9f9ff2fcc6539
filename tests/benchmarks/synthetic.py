"""Synthetic JPEGs, made fast: smooth colour noise under film grain, different for every number.

The grain makes the files as large as photographs' (about 0.2 bytes a pixel at quality 90): without
it there is hardly anything to decode.
"""

import io
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("birch", "maple", "oak", "pine")
GRAIN = 0.1
# Cells of the smooth noise along a side.
CELLS = 16
# Made and held at once.
CHUNK = 512


@cache
def _grain(px: int) -> Image.Image:
    draws = np.random.default_rng(px).integers(0, 256, (px, px, 3), dtype=np.uint8)
    return Image.fromarray(draws).resize((2 * px, 2 * px), Image.Resampling.BILINEAR)


def jpeg(number: int, px: int) -> bytes:
    """The image of that number, `px` pixels square, as a colour JPEG of quality 90."""
    draws = np.random.default_rng([number, px])
    coarse = draws.integers(0, 256, (CELLS, CELLS, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((px, px), Image.Resampling.BILINEAR)
    left, top = draws.integers(0, px, 2).tolist()
    image = Image.blend(smooth, _grain(px).crop((left, top, left + px, top + px)), GRAIN)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def jpegs(numbers: range, px: int) -> Iterator[tuple[int, bytes]]:
    """Images by number, made on all cores, a few hundred in memory at a time."""
    _grain(px)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(numbers), CHUNK):
            chunk = numbers[start : start + CHUNK]
            yield from zip(chunk, pool.map(lambda n: jpeg(n, px), chunk), strict=True)


def label(number: int) -> str:
    """The class that an image of that number is said to have."""
    return CLASSES[number % len(CLASSES)]


def place(number: int) -> str:
    """Its file among class folders."""
    return f"{label(number)}/{number:06d}.jpg"


def class_folders(folder: Path, numbers: range, px: int) -> None:
    """Write CLASS/NUMBER.jpg for every number."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number, content in jpegs(numbers, px):
        (folder / place(number)).write_bytes(content)


def shards(folder: Path, numbers: range, px: int, per_shard: int = 10_000) -> None:
    """Write the same images as WebDataset shards: NUMBER.jpg and NUMBER.cls."""
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(numbers), per_shard):
        with tarfile.open(folder / f"{start // per_shard:04d}.tar", "w") as tar:
            for number, content in jpegs(numbers[start : start + per_shard], px):
                _add(tar, f"{number:06d}.jpg", content)
                _add(tar, f"{number:06d}.cls", label(number).encode())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
