"""Which parts of an image speak for each class: a map that adds up to the logit.

The head is linear in mean, deviation and maximum of feature maps, and each of these is a sum over
positions, so a logit is one, too: nothing is estimated or trained. Zhou et al. 2016 (arXiv
1512.04150) have this for the mean alone (class activation maps).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.nets.net import VARIANCE_FLOOR, Net


def position_shares(feature_map: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What each position adds to `net.statistics`: three of (B, C, H, W), which sum to it.

    Of positions with the same maximum, each has an equal share of it.
    """
    positions = feature_map.shape[2] * feature_map.shape[3]
    mean = feature_map.mean((2, 3), keepdim=True)
    squares = (feature_map - mean).square() + VARIANCE_FLOOR
    deviation = squares.mean((2, 3), keepdim=True).sqrt()
    highest = feature_map.amax((2, 3), keepdim=True)
    at_highest = (feature_map == highest).to(feature_map.dtype)
    return (
        feature_map / positions,
        squares / (positions * deviation),
        highest * at_highest / at_highest.sum((2, 3), keepdim=True),
    )


def enlarged(values: Tensor, side: torch.Size) -> Tensor:
    """(B, K, h, w) to (B, K, H, W) with the same sum: each value is shared among its pixels."""
    for dim, size in ((2, side[0]), (3, side[1])):
        source = torch.arange(size) * values.shape[dim] // size
        pixels = torch.bincount(source).to(values).unsqueeze(1 if dim == 2 else 0)
        values = (values / pixels).index_select(dim, source.to(values.device))
    return values


class Evidence(nn.Module):
    """uint8 (B, P, P, C) images to evidence (B, K, S, S), which sums to the logits over S x S.

    S is the side of the first feature map that the head reads. Deeper maps are enlarged to it, each
    value shared among its pixels. What no position has given (the head's bias, and the means that
    it subtracts) is spread evenly.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        head = self.net.head
        weight = head.linear.weight / head.std
        constant = head.linear.bias - weight @ head.mean
        maps = self.net.backbone(self.net.prepare(images))
        side = maps[0].shape[2:]
        total: Tensor = constant[None, :, None, None] / side.numel()
        start = 0
        for feature_map in maps:
            channels = feature_map.shape[1]
            own = torch.zeros_like(feature_map[:, :1])
            for shares in position_shares(feature_map):
                kernel = weight[:, start : start + channels, None, None]
                own = own + F.conv2d(shares, kernel)
                start += channels
            total = total + enlarged(own, side)
        return total
