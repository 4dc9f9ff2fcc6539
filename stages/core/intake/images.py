"""Looking at image files: what each one is, whether it can be used, and its pixels, once.

The facts and pixels of a file are cached by the hash of its content, so that a folder that has
grown by a few images costs a few images. A file that the file system has not seen changed since it
was hashed is not read again, as in git's index and with the same care: a file that changed just
before is read again, since a clock may not tell two changes apart.

Files of more than 8 bits become 8-bit images by one rule for the whole folder, so that brightness
stays comparable. How many bits their values need is known only when all files have been seen, so
the cache holds such images at 16 bits, in their final size.
"""

import errno
import hashlib
import os
import sqlite3
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import PIL
from numpy.typing import NDArray
from PIL import Image
from scipy.fft import dctn

from stages.core.intake.source import Source, Unreadable
from stages.core.release import predict
from stages.core.runner.code import digest_of
from stages.core.runner.errors import Unavailable
from stages.core.runner.progress import Progress

# Side of the hash in DCT coefficients: 8 (the usual 64 bits) takes cells of two solar modules for
# each other; 16 tells them apart.
HASH_SIDE = 16
HASH_BYTES = HASH_SIDE**2 // 8
# Images in flight: enough for all cores, and little memory.
CHUNK = 256
# Images that a core takes at once: fewer would cost more in handing them over.
PIECE = 16
# A share of the 16-bit files so small that their bit depth may be a mistake.
RARE = 0.05
# Seconds for which a file must have been left alone for its stamp to count.
SETTLED = 2.0


@dataclass(frozen=True, slots=True)
class Look:
    """What a file's content says; everything but `problem` is empty where there is one.

    Attributes:
        width, height: in pixels, as stored.
        mode, format: Pillow's names.
        channels: 1 or 3, of `pixels`.
        bits: as in `predict.Picture`: how many a 16-bit file's values need; 0 for an 8-bit file.
        mean, contrast, sharpness: mean and deviation of the packed image's grey values (0 to 255),
            and the variance of its Laplacian; of a 16-bit file, at its own `bits`.
        phash: perceptual hash, HASH_BYTES bytes.
        problem: why the content cannot be used, or "".
        pixels: (P, P, channels) as bytes: uint8, or uint16 of a 16-bit file.
    """

    width: int = 0
    height: int = 0
    mode: str = ""
    format: str = ""
    channels: int = 0
    bits: int = 0
    mean: float = 0.0
    contrast: float = 0.0
    sharpness: float = 0.0
    phash: bytes = bytes(HASH_BYTES)
    problem: str = ""
    pixels: bytes = b""


# All of a look but its pixels.
FACTS = tuple(f.name for f in fields(Look) if f.name != "pixels")
facts_of = attrgetter(*FACTS)
# Bytes, sha256 and look of a file, and its stamp where that tells whether the file has changed.
Seen = tuple[int, str, Look, str]


def perceptual_hash(grey: Image.Image) -> bytes:
    """DCT hash: which low frequencies lie above their median (Zauner 2010, pHash).

    As `imagehash.phash(image, hash_size=16)`.
    """
    side = 4 * HASH_SIDE
    small = np.asarray(grey.resize((side, side), Image.Resampling.LANCZOS), dtype=np.float64)
    low = dctn(small)[:HASH_SIDE, :HASH_SIDE]
    return np.packbits(low > np.median(low)).tobytes()


def hash_of(pixels: NDArray[np.uint8]) -> bytes:
    """The perceptual hash of a packed image (P, P, C)."""
    return perceptual_hash(predict.grey(pixels))


def _statistics(pixels: NDArray[np.uint8]) -> dict[str, Any]:
    """Those facts of a look that a packed image (P, P, C) gives."""
    packed = predict.grey(pixels)
    grey = np.asarray(packed, dtype=np.float32)
    laplacian = (
        grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    )
    return {
        "mean": round(float(grey.mean()), 3),
        "contrast": predict.contrast(packed),
        "sharpness": round(float(laplacian.var()), 3),
        "phash": perceptual_hash(packed),
    }


def look(content: bytes, image_px: int, max_pixels: int, fit: predict.Fit = "stretch") -> Look:
    """Examine and decode one file's content."""
    try:
        picture = predict.read(content, image_px=image_px, max_pixels=max_pixels, fit=fit)
    except predict.Refused as error:
        return Look(problem=str(error))
    pixels, bits = picture.pixels, picture.bits
    return Look(
        width=picture.width,
        height=picture.height,
        mode=picture.mode,
        format=picture.format,
        channels=pixels.shape[2],
        bits=bits,
        **_statistics(predict.eight_bits(pixels, bits) if bits else pixels),
        pixels=pixels.tobytes(),
    )


class Cache:
    """Looks by sha256 of the content, for one way of looking, in one SQLite file.

    The file's name holds a hash of all that a look depends on beside the content (this code,
    Pillow's version, the params), so an old entry is never taken for a new one. Entries are
    written in transactions: a kill loses at most the last ones.

    The pixels have a table of their own, which keeps them in the order in which they came, in large
    pages: in one row with the rest, ordered by hash, they took ten times as long to read.

    Attributes:
        image_px: side of the packed images, in pixels.
        bit_depth: which values of 16-bit files become white: those of so many bits. `examine` sets
            it; it is no part of any entry.
    """

    def __init__(
        self, folder: Path, image_px: int, max_pixels: int, fit: predict.Fit = "stretch"
    ) -> None:
        key = [digest_of(__name__), PIL.__version__, str(image_px), str(max_pixels), fit]
        folder.mkdir(parents=True, exist_ok=True)
        self.bit_depth, self.image_px = 16, image_px
        self.path = folder / f"{hashlib.md5(' '.join(key).encode()).hexdigest()}.sqlite"
        for old in folder.glob("*.sqlite*"):  # a killed run leaves a journal beside it
            if not old.name.startswith(self.path.name):
                old.unlink()
        facts = ", ".join(FACTS)
        with self._corruption_named():
            self._database = sqlite3.connect(self.path)
            for statement in (
                "PRAGMA page_size = 16384",
                "PRAGMA mmap_size = 1099511627776",
                f"CREATE TABLE IF NOT EXISTS looks (sha256 PRIMARY KEY, {facts}) WITHOUT ROWID",
                "CREATE TABLE IF NOT EXISTS pixels (sha256 PRIMARY KEY, bits, content)",
                "CREATE TABLE IF NOT EXISTS stamps (stamp PRIMARY KEY, sha256) WITHOUT ROWID",
            ):
                self._database.execute(statement)

    @contextmanager
    def _corruption_named(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            # The errors of Python's own module, of a value it cannot store say, have no code.
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path)) from None
            raise Unavailable(f"{self.path}: {error}; delete this file, it is a cache") from None

    def known(self) -> dict[str, Look]:
        """All entries, without their pixels."""
        with self._corruption_named():
            rows = self._database.execute(f"SELECT sha256, {', '.join(FACTS)} FROM looks")
            return {sha256: Look(*facts) for sha256, *facts in rows}

    def add(self, looks: dict[str, Look]) -> None:
        """Write entries, all or none."""
        holders = ", ".join("?" * len(FACTS))
        with self._corruption_named(), self._database:
            self._database.executemany(
                f"INSERT OR REPLACE INTO looks VALUES (?, {holders})",
                [(sha256, *facts_of(entry)) for sha256, entry in looks.items()],
            )
            self._database.executemany(
                "INSERT OR REPLACE INTO pixels VALUES (?, ?, ?)",
                [(sha256, entry.bits, entry.pixels) for sha256, entry in looks.items()],
            )

    def stamps(self) -> dict[str, str]:
        """The hashes of the files that were last examined, by their stamps."""
        with self._corruption_named():
            return dict(self._database.execute("SELECT stamp, sha256 FROM stamps").fetchall())

    def set_stamps(self, stamps: dict[str, str]) -> None:
        """Replace what `stamps` gives."""
        with self._corruption_named(), self._database:
            self._database.execute("DELETE FROM stamps")
            self._database.executemany("INSERT INTO stamps VALUES (?, ?)", stamps.items())

    def pixels(self, sha256: str) -> bytes:
        """The pixels of one entry, uint8 (P, P, channels), at `bit_depth`. Raises: KeyError."""
        with self._corruption_named():
            row = self._database.execute(
                "SELECT bits, content FROM pixels WHERE sha256 = ?", (sha256,)
            ).fetchone()
        if row is None:
            raise KeyError(sha256)
        bits, content = row
        if bits:
            content = predict.eight_bits(np.frombuffer(content, np.uint16), self.bit_depth)
        return bytes(content)

    def keep_only(self, used: set[str]) -> None:
        """Drop the entries that are not in `used`, when they are more than those that are."""
        with self._corruption_named():
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
    """`one` of each name, in order and in chunks; the next chunk is begun beforehand."""

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


def examine(
    source: Source,
    cache: Cache,
    *,
    image_px: int,
    max_pixels: int,
    bit_depth: int | None = None,
    fit: predict.Fit = "stretch",
) -> pd.DataFrame:
    """One row for each image of `source`, in its order; pixels go to `cache`.

    Sets `cache.bit_depth` to `bit_depth`; where that is None, to the most bits that any of the
    16-bit files needs, and to 8 where there are none.

    Returns: columns as those of `Look` but pixels and bits, then bytes, sha256.
    """
    known, hashed = cache.known(), cache.stamps()

    def one(name: str) -> Seen:
        try:
            stamp = source.stamp(name)
            if (sha256 := hashed.get(stamp.identity)) in known:
                return stamp.size, sha256, known[sha256], stamp.identity
            if problem := predict.too_large(stamp.size, max_pixels):
                return stamp.size, "", Look(problem=problem), ""
            settled = time.time() - stamp.changed > SETTLED
            content = source.read(name)
        except Unreadable as error:
            return 0, "", Look(problem=str(error)), ""
        sha256 = hashlib.sha256(content).hexdigest()
        entry = known.get(sha256) or look(content, image_px, max_pixels, fit)
        return len(content), sha256, entry, stamp.identity if settled else ""

    names = source.table["file_name"].tolist()
    progress = Progress("images", len(names))
    rows: list[tuple[object, ...]] = []
    stamps: dict[str, str] = {}
    with warnings.catch_warnings(action="ignore"):  # Pillow's, of damaged EXIF, say
        for chunk in _in_parallel(one, names):
            new = {sha256: entry for _, sha256, entry, _ in chunk if sha256 and sha256 not in known}
            if new:
                cache.add(new)
                known |= {sha256: replace(entry, pixels=b"") for sha256, entry in new.items()}
            for size, sha256, entry, stamp in chunk:
                *facts, problem = facts_of(entry)
                problem = problem or predict.wrong_extension(names[len(rows)], entry.format)
                rows.append((*facts, problem, size, sha256))
                stamps |= {stamp: sha256} if stamp else {}
            progress.step(len(chunk))
    cache.set_stamps(stamps)
    columns = [*FACTS, "bytes", "sha256"]
    table = pd.DataFrame(rows, index=source.table.index, columns=columns)
    _settle_bit_depth(table, names, cache, bit_depth)
    return table.drop(columns="bits")


def _settle_bit_depth(
    table: pd.DataFrame, names: list[str], cache: Cache, given: int | None
) -> None:
    """Set the cache's bit depth, say so, and correct the statistics of 16-bit files, in place."""
    bits = table["bits"].where(table["problem"] == "", 0)
    deep = bits > 0
    highest = int(bits.max()) if len(bits) else 0
    cache.bit_depth = given or highest or 8
    if not deep.any():
        return
    example = predict.printable(names[int(bits.to_numpy().argmax())])
    origin = "as validate.bit_depth says" if given else "found; validate.bit_depth changes it"
    print(
        f"16-bit files: {int(deep.sum())}; the value that becomes white: {2**cache.bit_depth - 1} "
        f"({cache.bit_depth} bits, {origin})",
        flush=True,
    )
    deepest = int((bits == highest).sum())
    rest = int(bits[bits < highest].max()) if (bits < highest).any() else 0
    if rest and not given and deepest < RARE * int(deep.sum()):
        print(
            f"warning: few 16-bit files ({deepest}, {example} for one) need {highest} bits, the "
            f"others {rest} at most, and these come out dark; set validate.bit_depth to {rest}, or "
            "leave those few out",
            flush=True,
        )
    for row in table.index[deep & (bits != cache.bit_depth)]:
        channels = int(table.loc[row, "channels"])
        flat = np.frombuffer(cache.pixels(str(table.loc[row, "sha256"])), np.uint8)
        side = round((len(flat) / channels) ** 0.5)
        for column, value in _statistics(flat.reshape(side, side, channels)).items():
            table.at[row, column] = value


def packed(
    hashes: Iterable[str], channels: Iterable[int], wanted: int, cache: Cache
) -> Iterator[bytes]:
    """The pixels (P, P, `wanted`) of the given contents, which have so many `channels`: 1 or 3.

    Grey becomes colour where that is wanted.
    """
    for sha256, own in zip(hashes, channels, strict=True):
        pixels = cache.pixels(sha256)
        yield pixels if own == wanted else np.repeat(np.frombuffer(pixels, np.uint8), 3).tobytes()
