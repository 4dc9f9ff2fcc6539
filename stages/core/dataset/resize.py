"""Changing the size of packed images."""

import torch
from torch import Tensor
from torch.nn import functional as F


def resize(images: Tensor, image_px: int) -> Tensor:
    """uint8 (N, P, P, C) to uint8 (N, image_px, image_px, C): bilinear, antialiased downwards."""
    if images.shape[1] == image_px:
        return images

    def one(piece: Tensor) -> Tensor:
        x = piece.permute(0, 3, 1, 2).float()
        x = F.interpolate(x, (image_px, image_px), mode="bilinear", antialias=True)
        return x.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)

    return torch.cat([one(piece) for piece in torch.split(images, 256)]).contiguous()
