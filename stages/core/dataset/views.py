"""Seeded views: view v of image i is always the same, so that it can be indexed and cached."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.dataset.data import Rows
from stages.core.dataset.symmetries import NUMBERS, Symmetries


@dataclass(frozen=True)
class Views:
    """Random views of packed images.

    View v of image i is the image after one of the `symmetries`, drawn at random, with contrast and
    brightness changed by up to `jitter` (a share of one).

    Attributes:
        pixels: uint8 (N, P, P, C).
        seed: views of different seeds are independent.
        jitter: 0 leaves the grey values alone.
        symmetries: of the dataset.
    """

    pixels: NDArray[np.uint8]
    seed: int
    jitter: float
    symmetries: Symmetries

    def plain(self, rows: Rows) -> Tensor:
        """The images as they are: uint8 (B, P, P, C)."""
        return torch.from_numpy(self.pixels[rows])

    def batch(self, rows: Rows, view: int) -> Tensor:
        """View number `view` of the given images: uint8 (B, P, P, C)."""
        draws = _draws(self.seed, view, len(self.pixels))[rows]
        numbers = np.array(NUMBERS[self.symmetries])
        symmetry = numbers[(draws[:, 0] * len(numbers)).astype(int)]
        images = self.plain(rows)
        if self.jitter:
            strength = torch.from_numpy(1 + self.jitter * (2 * draws[:, 1:] - 1)).float()
            contrast, brightness = strength.T.reshape(2, -1, 1, 1, 1)
            x = images.float()
            mean = x.mean((1, 2), keepdim=True)
            x = ((x - mean) * contrast + mean) * brightness
            images = x.round().clamp(0, 255).to(torch.uint8)
        return turn(images, torch.from_numpy(symmetry))


@lru_cache(maxsize=2)
def _draws(seed: int, view: int, count: int) -> NDArray[np.float64]:
    """What is random about one view of all images: (N, 3), 0 to 1. Asked for in every batch."""
    return np.random.default_rng([seed, view]).random((count, 3))


def turn(images: Tensor, symmetry: Tensor) -> Tensor:
    """(B, P, P, C) images, each by its symmetry, as symmetries.py numbers them."""
    turned = torch.empty_like(images)
    for s in range(8):
        chosen = (symmetry == s).nonzero()[:, 0]
        if len(chosen):
            x = torch.rot90(images[chosen], s % 4, (1, 2))
            turned[chosen] = x.flip(2) if s >= 4 else x
    return turned
