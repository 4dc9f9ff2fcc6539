"""Which mirror images and turns of an image show the same class as it does."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Symmetries = Literal["none", "mirror", "rotations", "all"]
# The square's symmetries that each choice holds, by number: number s stands for s % 4 quarter turns
# to the left, and then, from 4 on, a reflection that exchanges left and right.
NUMBERS: dict[Symmetries, tuple[int, ...]] = {
    "none": (0,),
    "mirror": (0, 4),
    "rotations": (0, 1, 2, 3),
    "all": (0, 1, 2, 3, 4, 5, 6, 7),
}
# What each of them does to an image, in words.
NAMES = (
    "as it is", "a quarter turn", "a half turn", "a quarter turn", "mirrored left to right",
    "mirrored along a diagonal", "mirrored top to bottom", "mirrored along a diagonal",
)  # fmt: skip


def inverse(number: int) -> int:
    """The symmetry that undoes another; a reflection undoes itself."""
    return number if number >= 4 else -number % 4


def turned(images: NDArray[np.generic], number: int) -> NDArray[np.generic]:
    """All of (N, P, P, C) images, by one symmetry: a view of the same memory."""
    x = np.rot90(images, number % 4, (1, 2))
    return x[:, :, ::-1] if number >= 4 else x
