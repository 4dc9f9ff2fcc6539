"""The two players of a small class-conditional GAN.

The discriminator projects on the class (Miyato & Koyama 2018, arXiv 1802.05637). Images are float
(B, C, S, S) in -1 to 1; labels int64 (B,).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SMALLEST_PX = 4
# Both players work at half the resolution; 2 x 2 pixels are channels to their outermost layers,
# which are the expensive ones.
PACK = 2


def _halvings(image_px: int) -> int:
    return (image_px // PACK // SMALLEST_PX).bit_length() - 1


class Generator(nn.Module):
    """Noise (B, Z) and labels (B,) to images (B, C, S, S)."""

    def __init__(self, classes: int, channels: int, image_px: int, width: int, noise: int) -> None:
        super().__init__()
        self.noise = noise
        steps = _halvings(image_px)
        widths = [width * 2 ** min(steps - i, 2) for i in range(steps + 1)]
        self.embed = nn.Embedding(classes, noise)
        self.start = nn.Linear(2 * noise, widths[0] * SMALLEST_PX**2)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="nearest"),
                nn.Conv2d(inner, outer, 3, padding=1),
                nn.GroupNorm(8, outer),
                nn.LeakyReLU(0.2),
            )
            for inner, outer in pairwise(widths)
        )
        self.end = nn.Conv2d(widths[-1], channels * PACK**2, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.start(torch.cat([noise, self.embed(labels)], 1))
        x = x.view(len(noise), -1, SMALLEST_PX, SMALLEST_PX)
        for block in self.blocks:
            x = block(x)
        return torch.tanh(F.pixel_shuffle(self.end(x), PACK))


class Discriminator(nn.Module):
    """Images (B, C, S, S) and labels (B,) to scores (B,); higher is more real."""

    def __init__(self, classes: int, channels: int, image_px: int, width: int) -> None:
        super().__init__()
        steps = _halvings(image_px)
        widths = [width * 2 ** min(i, 2) for i in range(steps + 1)]
        self.start = nn.Conv2d(channels * PACK**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(inner, outer, 4, stride=2, padding=1) for inner, outer in pairwise(widths)
        )
        self.score = nn.Linear(widths[-1] * SMALLEST_PX**2, 1)
        self.project = nn.Embedding(classes, widths[-1] * SMALLEST_PX**2)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.leaky_relu(self.start(F.pixel_unshuffle(images, PACK)), 0.2)
        for block in self.blocks:
            x = F.leaky_relu(block(x), 0.2)
        x = x.flatten(1) / x[0].numel() ** 0.5
        scores: Tensor = self.score(x)[:, 0] + (self.project(labels) * x).sum(1)
        return scores
