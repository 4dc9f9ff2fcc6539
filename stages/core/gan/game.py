"""What the two players play for: one class per way of making images, each in a file of its own."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.core.dataset.background import divided
from stages.core.dataset.data import FileRules, Rows
from stages.core.dataset.symmetries import NUMBERS, Symmetries
from stages.core.dataset.views import turn

# Symmetries, by number, that keep horizontal lines horizontal.
UPRIGHT = (0, 2, 4, 6)
# Images that are looked at for collapse.
WATCHED = 32


@dataclass(frozen=True)
class Round:
    """What one move of a player is about.

    Attributes:
        real: float (B, C, S, S) in -1 to 1.
        labels: int64 (B,), of the real images, and what the fakes are to be.
        noise: float, what the generator may draw on.
        sources: images (B, C, S, S) that the fakes start from; None where they start from noise.
    """

    real: Tensor
    labels: Tensor
    noise: Tensor
    sources: Tensor | None = None

    def to(self, device: torch.device) -> "Round":
        """The same on another device."""
        sources = None if self.sources is None else self.sources.to(device)
        return Round(self.real.to(device), self.labels.to(device), self.noise.to(device), sources)


class Game(Protocol):
    """A way of making images with two players."""

    def generator(self) -> nn.Module:
        """A new one, its weights drawn by PyTorch's global random numbers."""

    def discriminator(self) -> nn.Module:
        """As `generator`."""

    def draw(self, size: int, draws: torch.Generator) -> Round:
        """A random round of `size` images, on the CPU."""

    def fake(self, generator: nn.Module, round_: Round) -> tuple[Tensor, Tensor]:
        """The generator's images (B, C, S, S), and what they cost it besides, a scalar."""

    def diversity(
        self, generator: nn.Module, draws: torch.Generator, device: torch.device
    ) -> float:
        """How much what the generator adds differs between images; near 0 once it has collapsed."""


class RealImages:
    """Random batches of some of the real images, read from the disk as they are drawn."""

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        rows: Rows,
        labels: NDArray[np.int64],
        symmetries: Symmetries,
    ) -> None:
        """Take pixels (N, S, S, C), which of them (M,), those images' labels (M,).

        `symmetries` are the dataset's.
        """
        self._pixels, self._rows, self._labels = pixels, rows, labels
        self._symmetries = np.array([s for s in NUMBERS[symmetries] if s in UPRIGHT])
        self._members = [np.flatnonzero(labels == k) for k in np.unique(labels)]
        self.image_px, self.channels = pixels.shape[1], pixels.shape[3]

    def batch(self, size: int, draws: torch.Generator) -> tuple[Tensor, Tensor, Rows]:
        """Images (B, C, S, S) in -1 to 1, turned at random, their labels and their rows (B,).

        All labels are drawn alike, whatever their shares.
        """
        label, member = torch.rand(2, size, generator=draws, dtype=torch.float64).numpy()
        members = [self._members[k] for k in (label * len(self._members)).astype(int)]
        chosen = np.array([m[int(u * len(m))] for m, u in zip(members, member, strict=True)])
        rows = self._rows[chosen]
        return self.images(rows, draws), torch.from_numpy(self._labels[chosen]), rows

    def images(self, rows: Rows, draws: torch.Generator) -> Tensor:
        """Images (B, C, S, S) in -1 to 1, turned at random: any of the real ones."""
        symmetry = torch.rand(len(rows), generator=draws, dtype=torch.float64).numpy()
        numbers = self._symmetries[(symmetry * len(self._symmetries)).astype(int)]
        return scaled(turn(torch.from_numpy(self._pixels[rows]), torch.from_numpy(numbers)))


def consistent(images: Tensor, sources: Tensor, rules: FileRules) -> Tensor:
    """Images (B, C, S, S) in -1 to 1 of which one channel may follow from two others.

    That is so where an image's background stands beside it: then the background is that of the
    sources (B, C, S, S), and their quotient is divided again.
    """
    if rules.background != "both":
        return images
    image, background = images[:, :1], sources[:, 2:]
    # A real quotient is rounded down to a pixel, from half a grey level more.
    quotient = divided((image + 1) * 127.5, (background + 1) * 127.5) - 0.5
    return torch.cat([image, quotient / 127.5 - 1, background], 1)


def scaled(images: Tensor) -> Tensor:
    """uint8 (B, S, S, C) to float (B, C, S, S) in -1 to 1."""
    return images.permute(0, 3, 1, 2).float() / 127.5 - 1


def as_pixels(images: Tensor) -> Tensor:
    """Float (B, C, S, S) in -1 to 1, or beyond, to uint8 (B, S, S, C)."""
    pixels = ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).contiguous()
