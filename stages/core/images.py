"""Reading the user's image files: what is there, whether it can be used, and as which pixels."""

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

GREY_MODES = ("1", "L", "I;16", "I", "F", "LA")


def locate(folder: Path, name: str) -> Path | str:
    """The file that metadata calls `name`, or why it cannot be read."""
    parts = PurePosixPath(name)
    if not name or parts.is_absolute() or ".." in parts.parts:
        return "not a path inside the folder"
    path = folder / name
    if not path.is_file():
        return "no such file"
    if not path.resolve().is_relative_to(folder.resolve()):
        return "a link that leaves the folder"
    return path


def inspect(folder: Path, name: str) -> dict[str, Any]:
    """One manifest row from the file's bytes and header; pixels are not decoded yet.

    Returns: width and height in pixels, mode (Pillow's), sha256, and `problem`, None if readable.
    """
    row: dict[str, Any] = {"width": 0, "height": 0, "mode": "", "sha256": "", "problem": None}
    path = locate(folder, name)
    if isinstance(path, str):
        return row | {"problem": path}
    try:
        with path.open("rb") as file:
            row["sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                row |= {"width": image.width, "height": image.height, "mode": image.mode}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning) as error:
        row["problem"] = f"not a readable image ({error})".replace(str(folder) + "/", "")
    return row


def inspect_all(folder: Path, metadata: pd.DataFrame) -> pd.DataFrame:
    """`metadata` with the columns of `inspect` added."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        rows = list(pool.map(lambda name: inspect(folder, name), metadata["file_name"]))
    found = pd.DataFrame(rows, index=metadata.index)
    found["problem"] = found["problem"].astype(object).where(found["problem"].notna(), None)
    return pd.concat([metadata, found], axis=1)


def decode(path: Path, image_px: int, channels: int) -> NDArray[np.uint8]:
    """Pixels as the models see them: uint8 (P, P, C).

    `predict.py` of a release does the same to a new image; a test holds the two together.
    """
    with Image.open(path) as image:
        converted = image.convert("L" if channels == 1 else "RGB")
    resized = converted.resize((image_px, image_px), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.uint8).reshape(image_px, image_px, channels)


def decode_all(
    folder: Path, names: "pd.Series[str]", rows: list[int], out: NDArray[np.uint8]
) -> dict[int, str]:
    """Decode the files of `rows` into the same rows of `out` (N, P, P, C).

    Returns: reasons by row, where the pixels cannot be decoded (a truncated file, say).
    """
    image_px, channels = out.shape[1], out.shape[3]

    def one(row: int) -> tuple[int, str] | None:
        try:
            out[row] = decode(folder / names[row], image_px, channels)
        except (OSError, ValueError, SyntaxError) as error:
            return row, f"not a whole image ({error})"
        return None

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return dict(filter(None, pool.map(one, rows)))
