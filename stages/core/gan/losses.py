"""Losses of two players: relativistic pairing, and penalties on the discriminator's gradients.

Source: R3GAN, Huang et al. 2024 (arXiv 2501.05441).
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def pairing_loss(better: Tensor, worse: Tensor) -> Tensor:
    """Relativistic pairing loss of scores (B,): softplus(-(better - worse)), averaged.

    The discriminator wants `better` = real; the generator wants `better` = fake.
    """
    return F.softplus(worse - better).mean()


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of d scores / d images: R1 on real images, R2 on fakes."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.square().sum((1, 2, 3)).mean()
