"""The validated images as stages read them, and those that people look at."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core.dataset.data import UNLABELLED, FileRules, save_dataset
from stages.core.dataset.symmetries import Symmetries
from stages.core.intake import backgrounds, drift
from stages.core.intake.duplicates import Pairs
from stages.core.intake.images import Cache, packed


def save(
    folder: Path,
    table: pd.DataFrame,
    classes: list[str],
    rules: FileRules,
    symmetries: Symmetries,
    cache: Cache,
    grounds: backgrounds.Images | None,
) -> NDArray[np.uint8]:
    """Write the rest of the validated dataset; gives its pixels, memory-mapped.

    Args:
        table: the manifest.
        grounds: the groups' backgrounds, where `rules` say that images are divided by them.
    """
    channels = int(table["channels"].max()) if grounds is None else grounds.shape[3]
    contents = packed(table["sha256"], table["channels"], channels, cache)
    if grounds is not None and rules.background:
        test = table[table["split"] == "test"]
        raw = packed(test["sha256"], test["channels"], channels, cache)
        _write_images(folder / "raw.npy", raw, len(test), cache.image_px, channels)
        contents = backgrounds.without(table, contents, grounds, rules.background)
        channels = 3 if rules.background == "both" else channels
    path = folder / "pixels.npy"
    pixels = _write_images(path, contents, len(table), cache.image_px, channels)
    manifest = table.drop(columns=["problem", "channels"])
    manifest["label"] = manifest["label"].where(manifest["split"] != UNLABELLED, "")
    manifest["phash"] = [phash.hex() for phash in manifest["phash"]]
    save_dataset(folder, manifest, classes, rules, symmetries)
    profile = json.dumps(drift.profile(table), indent=1) + "\n"
    (folder / "profile.json").write_text(profile)
    return pixels


def _write_images(
    path: Path, contents: Iterable[bytes], count: int, image_px: int, channels: int
) -> NDArray[np.uint8]:
    """Write packed images as one array (count, P, P, C), image by image; gives it memory-mapped."""
    shape = (count, image_px, image_px, channels)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for content in contents:
            file.write(content)
    images: NDArray[np.uint8] = np.load(path, mmap_mode="r")
    return images


def as_pixels(row: Any, cache: Cache) -> NDArray[np.uint8]:
    """A manifest row's packed image (P, P, C)."""
    pixels = np.frombuffer(cache.pixels(row.sha256), np.uint8)
    side = round((len(pixels) / row.channels) ** 0.5)
    return pixels.reshape(side, side, row.channels)


def beside_each_other(
    table: pd.DataFrame, pairs: Pairs, cache: Cache, count: int = 8
) -> dict[str, list[NDArray[np.uint8]]]:
    """Some pairs of near duplicates for a picture, those of two groups or labels first."""
    harmless = np.ones(len(pairs), dtype=bool)
    for column in ("group", "label"):
        values = table[column].to_numpy()[pairs].reshape(-1, 2)
        harmless &= (values[:, 0] == values[:, 1]) | (values == "").any(1)
    worst = pairs[np.argsort(harmless, kind="stable")[:count]]
    rows = {"image": worst[:, 0], "its near duplicate": worst[:, 1]}
    return {
        name: [as_pixels(row, cache) for row in table.iloc[places].itertuples()]
        for name, places in rows.items()
    }
