"""Decode, resize and hash JPEGs: the project's `examine` against a plain loop.

2,000 colour JPEGs of 1,000 px become 160 px, with a SHA-256 of the file and a perceptual hash of
256 bits for each. Three contenders take turns, all on the same files, which lie in the page cache:

- plain: one loop on one core, as anybody would write it: Pillow's open, convert and bicubic
  resize, hashlib, imagehash;
- draft: the same loop, but for one call that has libjpeg decode at a reduced size (as `examine`
  does, never below twice the size wanted). Plain over draft is what that call alone is worth;
- examine: on all cores, with an empty cache. It does more than the others (brightness, contrast
  and sharpness, EXIF, checks, everything written to its cache), and all of that counts.

What the reduced size costs is how far the 160 px images of draft and plain are apart, in grey
levels of 0 to 255. It depends on the images: those here have grain, as photographs do.
"""

import hashlib
import io
import tempfile
from contextlib import closing
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.core.intake.images import Cache, examine
from stages.core.intake.sources import open_source
from tests.benchmarks import synthetic
from tests.benchmarks.record import Result, interleaved, quiet, ratios, seconds

IMAGES, SOURCE_PX, IMAGE_PX = 2000, 1000, 160
ROUNDS = 5
MAX_PIXELS = 10**8


def resized(content: bytes, *, draft: bool) -> Image.Image:
    """A file's image, 160 px square."""
    with Image.open(io.BytesIO(content)) as image:
        if draft:
            image.draft(image.mode, (2 * IMAGE_PX, 2 * IMAGE_PX))
        return image.convert("RGB").resize((IMAGE_PX, IMAGE_PX), Image.Resampling.BICUBIC)


def loop(files: list[Path], *, draft: bool) -> None:
    """What a script would do."""
    for file in files:
        content = file.read_bytes()
        hashlib.sha256(content).hexdigest()
        imagehash.phash(resized(content, draft=draft), hash_size=16)


def whole_examine(folder: Path, work: Path) -> None:
    """What the validate stage does, from opening the folder on."""
    with (
        quiet(),
        tempfile.TemporaryDirectory(dir=work) as empty,
        closing(Cache(Path(empty), IMAGE_PX, MAX_PIXELS)) as cache,
    ):
        examine(open_source(folder), cache, image_px=IMAGE_PX, max_pixels=MAX_PIXELS)


def difference(file: Path) -> NDArray[np.float64]:
    """Mean and largest absolute difference that draft makes to a file, in grey levels."""
    content = file.read_bytes()
    plain, draft = (np.asarray(resized(content, draft=d), np.int64) for d in (False, True))
    apart = np.abs(plain - draft)
    return np.array([apart.mean(), apart.max()])


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    folder = work / "images"
    synthetic.class_folders(folder, range(round(IMAGES * scale)), SOURCE_PX)
    files = sorted(folder.rglob("*.jpg"))
    loop(files[:20], draft=False)
    whole_examine(folder, work)
    plain, draft, ours = interleaved(
        ROUNDS,
        lambda: seconds(lambda: loop(files, draft=False)),
        lambda: seconds(lambda: loop(files, draft=True)),
        lambda: seconds(lambda: whole_examine(folder, work)),
    )
    apart = np.stack([difference(file) for file in files])
    size = f"{len(files):,} JPEGs of {SOURCE_PX:,} px to {IMAGE_PX} px"
    levels = f"draft against full decoding, {size}"
    return [
        Result("decode", f"{size}, with hashes: a loop over `examine`", ratios(plain, ours), 1.8),
        Result("draft", "the same loop: without draft over with it", ratios(plain, draft)),
        Result("draft_mean", f"{levels}: mean difference of an image", apart[:, 0].tolist(),
               unit="grey levels"),
        Result("draft_largest", f"{levels}: largest difference of an image", apart[:, 1].tolist(),
               unit="grey levels", summary="largest"),
    ]  # fmt: skip
