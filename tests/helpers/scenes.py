"""Pictures in every mode and format, and what is to become of them."""

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from stages.core.intake.images import Look
from stages.core.release import predict

PX = 32
LIMIT = 10**6


def scene(mode: str = "RGB", width: int = 60, height: int = 44) -> Image.Image:
    """A smooth picture without symmetries, in any of the modes."""
    y, x = np.mgrid[:height, :width]
    red = 255 * x / width
    green = 255 * y / height
    blue = 127 + 100 * np.sin(x / 9 + y / 5)
    rgb = Image.fromarray(np.stack([red, green, blue], 2).astype(np.uint8))
    if mode == "I;16":
        return Image.fromarray((np.asarray(rgb.convert("L")).astype(np.uint16)) * 257)
    if mode == "I;16B":
        deep = np.asarray(rgb.convert("L")).astype(">u2") * 257
        return Image.frombytes("I;16B", (width, height), deep.tobytes())
    if mode == "PA":
        return rgb.convert("P").convert("PA")
    picture = rgb.convert(mode)
    if mode in ("LA", "RGBA"):
        picture.putalpha(Image.fromarray((80 + red * 0.6).astype(np.uint8)))
    return picture


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(entry: Look, bit_depth: int = 16) -> NDArray[np.uint8]:
    assert entry.problem == ""
    shape = (PX, PX, entry.channels)
    if entry.bits:
        deep = np.frombuffer(entry.pixels, np.uint16).reshape(shape)
        return predict.eight_bits(deep, bit_depth)
    return np.frombuffer(entry.pixels, np.uint8).reshape(shape)


def naive(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    """What `read` promises, in four lines."""
    if image.mode in ("LA", "RGBA"):
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    plain = image.convert("L" if channels == 1 else "RGB")
    small = plain.resize((PX, PX), Image.Resampling.BICUBIC)
    return np.asarray(small).reshape(PX, PX, channels)
