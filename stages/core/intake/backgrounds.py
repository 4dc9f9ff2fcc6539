"""What the images of a group have in common, and each image without it.

The background of a group is the pixelwise median of its images (flat-field correction): what a
fixed camera sees behind all things, or the light and the material of one solar module. It needs no
labels. The groups are the user's own, since two that are joined later, for near duplicates that
they share, still lie before two backgrounds. The release makes the median by the same rule, which
is in its script, and divides in its network.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core.dataset.background import FLAT, divided
from stages.core.dataset.data import BackgroundKind
from stages.core.intake.contract import Contract
from stages.core.intake.images import Cache, hash_of, packed
from stages.core.intake.quarantine import refuse
from stages.core.intake.suites import background_suite
from stages.core.release import predict
from stages.core.runner.disk import allocated
from stages.core.runner.errors import DataError
from stages.core.runner.progress import Progress
from stages.core.runner.text import counted, listed, say

Images = NDArray[np.uint8]


def _unpacked(table: pd.DataFrame, shape: tuple[int, ...], cache: Cache) -> Iterator[Images]:
    """The images of the rows, (P, P, C) of this shape, as their files have them."""
    for content in packed(table["sha256"], table["channels"], shape[2], cache):
        yield np.frombuffer(content, np.uint8).reshape(shape)


def divide(image: Images, background: Images) -> Images:
    """An image without its background, uint8 (P, P, C) all three; see `divided`."""
    quotient = divided(image.astype(np.float32), background.astype(np.float32))
    return np.asarray(quotient.astype(np.uint8))


def make(table: pd.DataFrame, path: Path, cache: Cache, *, image_px: int, least: int) -> Images:
    """Write the groups' backgrounds; tell each image its own, and what its hash is without it.

    Of one group at a time, up to `predict.MEDIAN_OF` images are in memory: see `predict.spread`.

    Args:
        table: the manifest; gets a column `background`, the image's row in the result, and other
            values of `phash`, in place. What else was measured stays that of the file.
        path: of the new `.npy` file.
        least: smaller groups have no background, and their images the first one.

    Returns: uint8 (1 + groups, P, P, C), memory-mapped; the first one is flat and changes nothing.
    """
    sizes = table["group"].value_counts()
    names = sorted(sizes.index[sizes >= least])
    shape = (image_px, image_px, int(table["channels"].max()))
    backgrounds = allocated(path, np.uint8, (1 + len(names), *shape))
    backgrounds[0] = FLAT
    table["background"] = 0
    hashes = table["phash"].copy()
    progress = Progress("backgrounds", len(names))
    groups = table.groupby("group").groups
    for number, name in enumerate(names, 1):
        rows = table.loc[groups[name]].sort_values("file_name")
        some = table.loc[predict.spread(rows.index.tolist())]
        backgrounds[number] = predict.median(list(_unpacked(some, shape, cache)))
        table.loc[rows.index, "background"] = number
        for row, image in zip(rows.index, _unpacked(rows, shape, cache), strict=True):
            hashes.at[row] = hash_of(divide(image, backgrounds[number]))
        progress.step()
    table["phash"] = hashes
    backgrounds.flush()
    return backgrounds


def without(
    table: pd.DataFrame, contents: Iterable[bytes], backgrounds: Images, kind: BackgroundKind
) -> Iterator[bytes]:
    """What networks see of the rows, which `packed` gave these contents: (P, P, C) each."""
    for content, number in zip(contents, table["background"], strict=True):
        background = backgrounds[number]
        image = np.frombuffer(content, np.uint8).reshape(background.shape)
        quotient = divide(image, background)
        if kind == "both":
            quotient = np.concatenate([image, quotient, background], 2)
        yield quotient.tobytes()


def check_groups(
    table: pd.DataFrame,
    folder: Path,
    contract: Contract,
    *,
    kind: BackgroundKind,
    least: int,
    may_keep: bool,
) -> None:
    """Say which groups have no background. Raises: DataError, where none may lack one."""
    coloured = table.loc[table["channels"] > 1, "file_name"].tolist()
    if kind == "both" and coloured:
        raise DataError(
            f"{folder}: {counted(len(coloured), 'colour image')} ({listed(coloured, 3)}); expected "
            "grey ones, since validate.background is both, which puts image, quotient and "
            "background into three channels: set it to group"
        )
    sizes = table["group"].value_counts()
    small = sizes[sizes < least]
    if not may_keep or len(small) == len(sizes):
        suite = background_suite(table, least)
        refuse(contract.verify({"backgrounds": suite}), folder)
    elif len(small):
        say(
            f"groups with fewer than {least} images, images without a group "
            f"among them: {len(small)}; their images ({small.sum()}) are not divided"
        )
