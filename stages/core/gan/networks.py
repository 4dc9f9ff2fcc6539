"""The players: generators that start from noise or from an image, and the discriminator.

The discriminator projects on the class (Miyato & Koyama 2018, arXiv 1802.05637). Images are float
(B, C, S, S) in -1 to 1; labels int64 (B,).
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# All players work at half the resolution; 2 x 2 pixels are channels to their outermost layers,
# which are the expensive ones.
PACK = 2
# The discriminator halves its maps until their side is at most this, or odd.
LARGEST_SCORED = 7
# Side of the map from which a generator that starts from noise grows its image.
SEED_PX = 4
# A translator halves its maps this often on the way down.
DEPTH = 4
# Channels, and side of the maps, of the noise that a translator adds to an image.
NOISE_CHANNELS, NOISE_PX = 4, 10


def _convolution(inner: int, outer: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1),
        nn.GroupNorm(8, outer),
        nn.LeakyReLU(0.2),
    )


def _enlarged(x: Tensor, side: int) -> Tensor:
    return F.interpolate(x, (side, side), mode="nearest")


class Generator(nn.Module):
    """Noise (B, Z) and labels (B,) to images (B, C, S, S); S is a power of two, 16 at least."""

    def __init__(self, classes: int, channels: int, image_px: int, width: int, noise: int) -> None:
        super().__init__()
        self.noise = noise
        steps = (image_px // PACK // SEED_PX).bit_length() - 1
        widths = [width * 2 ** min(steps - i, 2) for i in range(steps + 1)]
        self.embed = nn.Embedding(classes, noise)
        self.start = nn.Linear(2 * noise, widths[0] * SEED_PX**2)
        self.blocks = nn.ModuleList(_convolution(*pair) for pair in pairwise(widths))
        self.end = nn.Conv2d(widths[-1], channels * PACK**2, 3, padding=1)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        x = self.start(torch.cat([noise, self.embed(labels)], 1))
        x = x.view(len(noise), -1, SEED_PX, SEED_PX)
        for block in self.blocks:
            x = block(_enlarged(x, 2 * x.shape[-1]))
        return torch.tanh(F.pixel_shuffle(self.end(x), PACK))


class Translator(nn.Module):
    """What to add to images (B, C, S, S) to move them to another class or domain: the same shape.

    A U-shaped network (Ronneberger et al. 2015, arXiv 1505.04597); S is a multiple of 32. Its last
    layer starts near zero, and so the translation near the identity.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        packed = channels * PACK**2
        widths = [width * 2 ** min(i, 2) for i in range(DEPTH + 1)]
        self.start = _convolution(packed + NOISE_CHANNELS, width)
        self.down = nn.ModuleList(_convolution(*pair, stride=2) for pair in pairwise(widths))
        self.bottom = _convolution(widths[-1], widths[-1])
        self.up = nn.ModuleList(
            _convolution(inner + outer, outer) for outer, inner in reversed([*pairwise(widths)])
        )
        self.end = nn.Conv2d(width, packed, 3, padding=1)
        nn.init.normal_(self.end.weight, std=1e-3)
        assert self.end.bias is not None
        nn.init.zeros_(self.end.bias)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """Noise: (B, NOISE_CHANNELS, NOISE_PX, NOISE_PX)."""
        packed = F.pixel_unshuffle(images, PACK)
        spread = F.interpolate(noise, packed.shape[-2:], mode="bilinear")
        kept = [self.start(torch.cat([packed, spread], 1))]
        for layer in self.down:
            kept.append(layer(kept[-1]))
        x = self.bottom(kept.pop())
        for layer in self.up:
            beside = kept.pop()
            x = layer(torch.cat([_enlarged(x, beside.shape[-1]), beside], 1))
        added: Tensor = F.pixel_shuffle(self.end(x), PACK)
        return added


class Discriminator(nn.Module):
    """Images (B, C, S, S) and labels (B,) to scores (B,); higher is more real."""

    def __init__(self, classes: int, channels: int, image_px: int, width: int) -> None:
        super().__init__()
        side, steps = image_px // PACK, 0
        while side > LARGEST_SCORED and side % 2 == 0:
            side, steps = side // 2, steps + 1
        widths = [width * 2 ** min(i, 2) for i in range(steps + 1)]
        self.start = nn.Conv2d(channels * PACK**2, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Conv2d(inner, outer, 4, stride=2, padding=1) for inner, outer in pairwise(widths)
        )
        self.score = nn.Linear(widths[-1] * side**2, 1)
        self.project = nn.Embedding(classes, widths[-1] * side**2)

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        x = F.leaky_relu(self.start(F.pixel_unshuffle(images, PACK)), 0.2)
        for block in self.blocks:
            x = F.leaky_relu(block(x), 0.2)
        x = x.flatten(1) / x[0].numel() ** 0.5
        scores: Tensor = self.score(x)[:, 0] + (self.project(labels) * x).sum(1)
        return scores
