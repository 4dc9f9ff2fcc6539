"""Looking at image files: what each one is, whether it can be used, and its pixels, once.

What a file's content says is kept by content hash in a cache, so that a folder that has grown by a
few images costs a few images. A file that the file system has not seen changed since it was hashed
is not read again, as in git's index and with the same care: what changed just before is read again,
since a clock may not tell two changes apart.
"""

import hashlib
import io
import logging
import os
import sqlite3
import struct
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd
import PIL
from PIL import Image, UnidentifiedImageError
from scipy.fft import dctn

from stages.core.intake.sources import Source, Unreadable
from stages.core.release.predict import decode
from stages.core.runner.code import digest_of
from stages.core.runner.errors import Unavailable
from stages.core.runner.progress import Progress

# Pillow's names of the formats that are read, and the extensions that fit them.
FORMATS = {
    "BMP": (".bmp",), "JPEG": (".jpg", ".jpeg"), "MPO": (".jpg", ".jpeg"), "PNG": (".png",),
    "TIFF": (".tif", ".tiff"), "WEBP": (".webp",),
}  # fmt: skip
# MPO, a camera's JPEG with a preview behind it, is opened as JPEG.
OPENED = [name for name in FORMATS if name != "MPO"]
# Side of the hash in DCT coefficients: 8 (the usual 64 bits) takes cells of two solar modules for
# each other; 16 tells them apart.
HASH_SIDE = 16
HASH_BYTES = HASH_SIDE**2 // 8
# Images in flight: enough for all cores, and little memory.
CHUNK = 256
# Images that a core takes at once: fewer would cost more in handing them over.
PIECE = 16
# Seconds for which a file must have been left alone for its stamp to count.
SETTLED = 2.0
# What Pillow raises for damaged files.
DAMAGED = (
    OSError, ValueError, SyntaxError, ArithmeticError, LookupError, EOFError, TypeError,
    struct.error,
)  # fmt: skip
# `max_pixels` is the limit that counts; and what Pillow logs would stand beside our own error.
Image.MAX_IMAGE_PIXELS = None
logging.getLogger("PIL").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True)
class Look:
    """What a file's content says; everything but `problem` is empty where there is one.

    Attributes:
        width, height: in pixels, as stored.
        mode, format: Pillow's names.
        channels: 1 or 3, of `pixels`.
        mean, contrast, sharpness: mean and deviation of the packed image's grey values (0 to 255),
            and the variance of its Laplacian.
        phash: perceptual hash, HASH_BYTES bytes.
        problem: why the content cannot be used, or "".
        pixels: uint8 (P, P, channels) as bytes.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    channels: int = 0
    mean: float = 0.0
    contrast: float = 0.0
    sharpness: float = 0.0
    phash: bytes = bytes(HASH_BYTES)
    problem: str = ""
    pixels: bytes = b""


# All of a look but its pixels.
FACTS = tuple(f.name for f in fields(Look) if f.name != "pixels")
facts_of = attrgetter(*FACTS)
# Bytes, sha256 and look of a file, and its stamp where that will tell whether it has changed.
Seen = tuple[int, str, Look, str]


def perceptual_hash(grey: Image.Image) -> bytes:
    """DCT hash: which low frequencies lie above their median (Zauner 2010, pHash).

    As `imagehash.phash(image, hash_size=16)`.
    """
    side = 4 * HASH_SIDE
    small = np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(small)[:HASH_SIDE, :HASH_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def look(content: bytes, image_px: int, max_pixels: int) -> Look:
    """Examine and decode one file's content."""
    if not content:
        return Look(problem="an empty file (0 bytes); copy it again")
    try:
        with Image.open(io.BytesIO(content), formats=OPENED) as image:
            if image.width * image.height > max_pixels:
                return Look(
                    problem=f"{image.width} x {image.height} pixels; expected at most "
                    f"{max_pixels / 1e6:g} million; make it smaller, or raise "
                    "validate.max_megapixels"
                )
            frames = getattr(image, "n_frames", 1)
            if frames > 1 and image.format != "MPO":
                return Look(problem=f"{frames} pictures in one file; expected one: split it")
            width, height, mode, kind = image.width, image.height, image.mode, image.format
            pixels = decode(image, image_px)
    except UnidentifiedImageError:  # its text names an address in memory
        return Look(problem=f"not an image of {', '.join(OPENED)}; save or copy it again")
    except DAMAGED as error:
        reason = " ".join(str(error).split())
        return Look(problem=f"not a whole image ({reason[:120]}); save or copy it again")
    packed = Image.fromarray(pixels.squeeze()).convert("L")
    grey = np.asarray(packed, dtype=np.float32)
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return Look(
        width=width,
        height=height,
        mode=mode,
        format=str(kind),
        channels=pixels.shape[2],
        mean=round(float(grey.mean()), 3),
        contrast=round(float(grey.std()), 3),
        sharpness=round(float(laplacian.var()), 3),
        phash=perceptual_hash(packed),
        pixels=pixels.tobytes(),
    )


class Cache:
    """Looks by sha256 of the content, for one way of looking, in one SQLite file.

    The file's name holds a hash of all that a look depends on beside the content (this code,
    Pillow's version, the params), so an old entry is never taken for a new one. Entries are
    written in transactions: a kill loses at most the last ones.

    The pixels have a table of their own, which keeps them in the order in which they came, in large
    pages: in one row with the rest, ordered by hash, they took ten times as long to read.
    """

    def __init__(self, folder: Path, image_px: int, max_pixels: int) -> None:
        key = [digest_of(__name__), PIL.__version__, str(image_px), str(max_pixels)]
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{hashlib.md5(' '.join(key).encode()).hexdigest()}.sqlite"
        for old in folder.glob("*.sqlite*"):  # a killed run leaves a journal beside it
            if not old.name.startswith(self.path.name):
                old.unlink()
        facts = ", ".join(FACTS)
        with self._sound():
            self._database = sqlite3.connect(self.path)
            for statement in (
                "PRAGMA page_size = 16384",
                "PRAGMA mmap_size = 1099511627776",
                f"CREATE TABLE IF NOT EXISTS looks (sha256 PRIMARY KEY, {facts}) WITHOUT ROWID",
                "CREATE TABLE IF NOT EXISTS pixels (sha256 PRIMARY KEY, content)",
                "CREATE TABLE IF NOT EXISTS stamps (stamp PRIMARY KEY, sha256) WITHOUT ROWID",
            ):
                self._database.execute(statement)

    @contextmanager
    def _sound(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise Unavailable(f"{self.path}: {error}; delete this file, it is a cache") from None

    def known(self) -> dict[str, Look]:
        """All entries, without their pixels."""
        with self._sound():
            rows = self._database.execute(f"SELECT sha256, {', '.join(FACTS)} FROM looks")
            return {sha256: Look(*facts) for sha256, *facts in rows}

    def add(self, looks: dict[str, Look]) -> None:
        """Write entries, all or none."""
        holders = ", ".join("?" * len(FACTS))
        with self._sound(), self._database:
            self._database.executemany(
                f"INSERT OR REPLACE INTO looks VALUES (?, {holders})",
                [(sha256, *facts_of(found)) for sha256, found in looks.items()],
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO pixels VALUES (?, ?)",
                [(sha256, found.pixels) for sha256, found in looks.items()],
            )

    def stamps(self) -> dict[str, str]:
        """The hashes of the files that were last examined, by their stamps."""
        with self._sound():
            return dict(self._database.execute("SELECT stamp, sha256 FROM stamps").fetchall())

    def set_stamps(self, found: dict[str, str]) -> None:
        """Write what `stamps` gives, in place of what there was."""
        with self._sound(), self._database:
            self._database.execute("DELETE FROM stamps")
            self._database.executemany("INSERT INTO stamps VALUES (?, ?)", found.items())

    def pixels(self, sha256: str) -> bytes:
        """The pixels of one entry. Raises: KeyError."""
        with self._sound():
            row = self._database.execute("SELECT content FROM pixels WHERE sha256 = ?", (sha256,))
            found = row.fetchone()
        if found is None:
            raise KeyError(sha256)
        return bytes(found[0])

    def keep_only(self, used: set[str]) -> None:
        """Drop entries that nothing has used, when they are more than those in use."""
        with self._sound():
            stored = {row[0] for row in self._database.execute("SELECT sha256 FROM looks")}
            if len(stored - used) > len(used):
                dead = [(sha256,) for sha256 in stored - used]
                with self._database:
                    for table in ("looks", "pixels"):
                        self._database.executemany(f"DELETE FROM {table} WHERE sha256 = ?", dead)
                self._database.execute("VACUUM")

    def close(self) -> None:
        """Release the file."""
        self._database.close()


def _pieces(names: list[str], size: int) -> Iterator[list[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


def _in_parallel(one: Callable[[str], Seen], names: list[str]) -> Iterator[list[Seen]]:
    """What `one` makes of the names, in order and in chunks; the next one is begun beforehand."""

    def some(piece: list[str]) -> list[Seen]:
        return [one(name) for name in piece]

    begun: deque[Iterable[list[Seen]]] = deque()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for chunk in _pieces(names, CHUNK):
            begun.append(pool.map(some, _pieces(chunk, PIECE)))
            if len(begun) > 1:
                yield list(chain.from_iterable(begun.popleft()))
        for rest in begun:
            yield list(chain.from_iterable(rest))


def examine(source: Source, cache: Cache, *, image_px: int, max_pixels: int) -> pd.DataFrame:
    """One row for each image of `source`, in its order; pixels go to `cache`.

    Columns: those of `Look` but pixels, bytes, sha256.
    """
    known, hashed = cache.known(), cache.stamps()

    def one(name: str) -> Seen:
        try:
            stamp = source.stamp(name)
            if (seen := hashed.get(stamp.identity)) in known:
                return stamp.size, seen, known[seen], stamp.identity
            settled = time.time() - stamp.changed > SETTLED
            content = source.read(name)
        except Unreadable as error:
            return 0, "", Look(problem=str(error)), ""
        sha256 = hashlib.sha256(content).hexdigest()
        found = known.get(sha256) or look(content, image_px, max_pixels)
        return len(content), sha256, found, stamp.identity if settled else ""

    names = source.table["file_name"].tolist()
    progress = Progress("images", len(names))
    rows: list[tuple[object, ...]] = []
    stamps: dict[str, str] = {}
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF, say
        for chunk in _in_parallel(one, names):
            new = {sha256: found for _, sha256, found, _ in chunk if sha256 and sha256 not in known}
            if new:
                cache.add(new)
                known |= {sha256: replace(found, pixels=b"") for sha256, found in new.items()}
            for size, sha256, found, stamp in chunk:
                *facts, problem = facts_of(found)
                problem = problem or _wrong_extension(names[len(rows)], found.format)
                rows.append((*facts, problem, size, sha256))
                stamps |= {stamp: sha256} if stamp else {}
            progress.step(len(chunk))
    cache.set_stamps(stamps)
    columns = [*FACTS, "bytes", "sha256"]
    return pd.DataFrame(rows, index=source.table.index, columns=columns)


def _wrong_extension(name: str, kind: str) -> str:
    suffix = PurePosixPath(name).suffix.lower()
    if not kind or suffix in FORMATS[kind]:
        return ""
    return f"its content is {kind}, its name says {suffix or 'nothing'}; rename it"


def packed(
    hashes: Iterable[str], channels: Iterable[int], wanted: int, cache: Cache
) -> Iterator[bytes]:
    """The pixels (P, P, `wanted`) of the given contents, which have so many `channels`: 1 or 3.

    Grey becomes colour where that is wanted.
    """
    for sha256, found in zip(hashes, channels, strict=True):
        pixels = cache.pixels(sha256)
        yield pixels if found == wanted else np.repeat(np.frombuffer(pixels, np.uint8), 3).tobytes()
