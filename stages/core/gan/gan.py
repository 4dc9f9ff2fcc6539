"""A small class-conditional GAN: networks, augmentation and losses.

Relativistic pairing loss with penalties on both gradients (R3GAN, Huang et al. 2024, arXiv
2501.05441), projection discriminator (Miyato & Koyama 2018, arXiv 1802.05637), differentiable
augmentation of what the discriminator sees (DiffAugment, Zhao et al. 2020, arXiv 2006.10738).
Images are float (B, C, S, S) in -1 to 1; labels int64 (B,).
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


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """DiffAugment: random brightness, contrast, translation (1/8) and cutout (1/4 of the side).

    Draws from a CPU `generator`; gradients pass through.
    """
    b, _, _, side = images.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(images.device)

    x = images + 0.4 * (draw(b, 1, 1, 1) - 0.5)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * (0.75 + 0.5 * draw(b, 1, 1, 1)) + mean

    reach = side // 8
    grid = torch.arange(side, device=images.device)
    padded = F.pad(x, [reach] * 4)
    shift = (draw(2, b) * (2 * reach + 1)).long()
    rows = (grid[None] + shift[0, :, None])[:, None, :, None]
    columns = (grid[None] + shift[1, :, None])[:, None, None, :]
    batch = torch.arange(b, device=images.device)[:, None, None, None]
    channel = torch.arange(x.shape[1], device=images.device)[None, :, None, None]
    x = padded[batch, channel, rows, columns]

    hole = side // 4
    corner = (draw(2, b) * (side - hole + 1)).long()
    inside_rows = (grid >= corner[0, :, None]) & (grid < corner[0, :, None] + hole)
    inside_columns = (grid >= corner[1, :, None]) & (grid < corner[1, :, None] + hole)
    hidden = (inside_rows[:, :, None] & inside_columns[:, None, :])[:, None]
    return x * ~hidden


def pairing_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Relativistic pairing loss of scores (B,): softplus(-(better - worse)), averaged.

    The discriminator wants `better` = real; the generator wants `better` = fake.
    """
    return F.softplus(worse - better).mean()


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of d scores / d images: R1 on real images, R2 on fakes."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Exponential moving average of weights, in place."""
    for a, c in zip(average.parameters(), current.parameters(), strict=True):
        a.lerp_(c, 1 - decay)
