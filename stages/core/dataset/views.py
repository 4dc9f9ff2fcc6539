"""Seeded views: view v of image i is always the same, so that it can be indexed and cached."""

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.dataset.data import Rows
from stages.core.dataset.symmetries import NUMBERS, Symmetries

Mix = Literal["none", "mixup", "cutmix"]


@dataclass(frozen=True)
class Views:
    """Random views of packed images.

    View v of image i is the image after one of the `symmetries`, drawn at random, with contrast and
    brightness changed by up to `jitter` (a share of one). With `mix`, every second view, from
    number 1, mixes each image with another one: their mean with random weights (mixup, Zhang et al.
    2018, arXiv 1710.09412), or a box of the other one (cutmix, Yun et al. 2019, arXiv 1905.04899).

    Attributes:
        pixels: uint8 (N, P, P, C).
        seed: views of different seeds are independent.
        jitter: 0 leaves the grey values alone.
        symmetries: of the dataset.
        partners: what images are mixed with; labelled ones, for students.
    """

    pixels: NDArray[np.uint8]
    seed: int
    jitter: float
    symmetries: Symmetries
    mix: Mix = "none"
    partners: Rows = field(default_factory=lambda: np.empty(0, np.int64))

    def plain(self, rows: Rows) -> Tensor:
        """The images as they are: uint8 (B, P, P, C)."""
        return torch.from_numpy(self.pixels[rows])

    def batch(self, rows: Rows, view: int) -> Tensor:
        """View number `view` of the given images: uint8 (B, P, P, C)."""
        images = self._alone(rows, view)
        mixture = self.mixture(rows, view)
        if mixture is None:
            return images
        others = self._alone(mixture.partners, view)
        if self.mix == "mixup":
            share = mixture.shares.reshape(-1, 1, 1, 1)
            return others.float().lerp(images.float(), share).round().to(torch.uint8)
        return torch.where(mixture.boxes[..., None], others, images)

    def mixture(self, rows: Rows, view: int) -> "Mixture | None":
        """With what, and how, view number `view` mixes the given images; None where it does not."""
        if self.mix == "none" or view % 2 == 0:
            return None
        draws = _draws(self.seed, view, len(self.pixels), "mix")[rows]
        partners = self.partners[(draws[:, 0] * len(self.partners)).astype(int)]
        shares = torch.from_numpy(draws[:, 1]).float()
        if self.mix == "mixup":
            return Mixture(partners, shares, torch.empty(0))
        boxes = _boxes(self.pixels.shape[1], 1 - draws[:, 1], draws[:, 2:])
        return Mixture(partners, 1 - boxes.float().mean((1, 2)), boxes)

    def _alone(self, rows: Rows, view: int) -> Tensor:
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


@dataclass(frozen=True)
class Mixture:
    """How B images of a view are mixed with others.

    Attributes:
        partners: (B,), the others.
        shares: float32 (B,), what is left of each image itself, 0 to 1.
        boxes: bool (B, P, P), where cutmix shows the other one.
    """

    partners: Rows
    shares: Tensor
    boxes: Tensor


def _boxes(side: int, areas: NDArray[np.float64], centres: NDArray[np.float64]) -> Tensor:
    """Squares of the given areas (B,) around centres (B, 2), cut at the edges: bool (B, S, S)."""
    half = np.sqrt(areas)[:, None] / 2
    pixels = (np.arange(side) + 0.5) / side
    inside = np.abs(pixels - centres[..., None]) < half[..., None]
    return torch.from_numpy(inside[:, 0, :, None] & inside[:, 1, None, :])


@lru_cache(maxsize=4)
def _draws(seed: int, view: int, count: int, what: str = "view") -> NDArray[np.float64]:
    """What is random about one view of all images: (N, 4), 0 to 1. Asked for in every batch."""
    purpose = {"view": (), "mix": (1,)}[what]
    return np.random.default_rng([seed, view, *purpose]).random((count, 4 if purpose else 3))


def turn(images: Tensor, symmetry: Tensor) -> Tensor:
    """(B, P, P, C) images, each by its symmetry, as symmetries.py numbers them."""
    turned = torch.empty_like(images)
    for s in range(8):
        chosen = (symmetry == s).nonzero()[:, 0]
        if len(chosen):
            x = torch.rot90(images[chosen], s % 4, (1, 2))
            turned[chosen] = x.flip(2) if s >= 4 else x
    return turned
