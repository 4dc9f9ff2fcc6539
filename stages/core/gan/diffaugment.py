"""Differentiable augmentation of what a discriminator sees."""

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(images: Tensor, draws: torch.Generator) -> Tensor:
    """Random brightness, contrast, translation (1/8) and cutout (1/4 of the side).

    After DiffAugment, Zhao et al. 2020 (arXiv 2006.10738), but milder: about half of its brightness
    and contrast, cutout half as wide, and colours left alone.

    Args:
        images: float (B, C, S, S) in -1 to 1; gradients pass through.
        draws: a generator on the CPU, whatever the images are on.
    """
    b, _, _, side = images.shape

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=draws).to(images.device)

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
