"""Which parts of an image speak for each class: a map that adds up to the logit.

The head is linear in mean, deviation and maximum of feature maps, and each of these is a sum over
positions, so a logit is one, too: nothing is estimated or trained. Zhou et al. 2016 (arXiv
1512.04150) have this for the mean alone (class activation maps).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.nets.net import VARIANCE_FLOOR, Net


def place_of_maximum(feature_map: Tensor) -> Tensor:
    """(B, C, H, W) to the first of the H x W positions with the maximum, (B, C).

    By rows and then in one row: ONNX Runtime finds maxima several times faster than their places.
    """
    row = feature_map.amax(3).argmax(2)
    index = row[:, :, None, None].expand(-1, -1, 1, feature_map.shape[3])
    return row * feature_map.shape[3] + feature_map.gather(2, index).squeeze(2).argmax(2)


def contributions(feature_map: Tensor, weight: Tensor) -> Tensor:
    """What each position adds to `weight @ statistics(feature_map)`: (B, K, H, W).

    With mean m, deviation s and N positions, a value x adds x / N to the mean and
    ((x - m)^2 + floor) / (N s) to the deviation; the first position with the maximum adds it.

    Args:
        feature_map: (B, C, H, W).
        weight: (K, 3 C), of mean, deviation and maximum.
    """
    channels, height, width = feature_map.shape[1:]
    of_mean, of_deviation, of_maximum = (
        weight[:, kind * channels : (kind + 1) * channels] for kind in range(3)
    )
    # Step for step what `statistics` does, so that ONNX Runtime computes it once for both.
    mean = feature_map.mean((2, 3))
    squares = (feature_map - mean[:, :, None, None]).square()
    deviation = (squares.mean((2, 3)) + VARIANCE_FLOOR).sqrt()
    by_deviation = of_deviation / (height * width * deviation[:, None, :])
    x = feature_map.flatten(2)
    total = torch.matmul(of_mean / (height * width), x)
    total = total + torch.matmul(by_deviation, squares.flatten(2))
    total = total + VARIANCE_FLOOR * by_deviation.sum(2, keepdim=True)
    added = of_maximum * feature_map.amax((2, 3))[:, None, :]
    total = total.scatter_add(2, place_of_maximum(feature_map)[:, None, :].expand_as(added), added)
    return total.reshape(-1, total.shape[1], height, width)


def enlarged(values: Tensor, side: torch.Size) -> Tensor:
    """(B, K, h, w) to (B, K, H, W) with the same sum: each value is shared among its pixels."""
    (height, width), (more_rows, more_columns) = values.shape[2:], side
    down, right = more_rows // height, more_columns // width
    if (down * height, right * width) == (more_rows, more_columns):
        channels = values.shape[1]
        share = values.new_full((channels, 1, down, right), 1 / (down * right))
        return F.conv_transpose2d(values, share, stride=(down, right), groups=channels)
    for dim, size in ((2, more_rows), (3, more_columns)):
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
        return self.of_maps(self.net.backbone(self.net.prepare(images)))

    def of_maps(self, maps: Sequence[Tensor]) -> Tensor:
        """The same, of the feature maps that the head reads."""
        head = self.net.head
        weight = head.linear.weight / head.std
        parts, start = [], 0
        for feature_map in maps:
            end = start + 3 * feature_map.shape[1]
            parts.append(contributions(feature_map, weight[:, start:end]))
            start = end
        # From the deepest upwards, so that most of the work is done on small maps.
        total = parts.pop()
        constant = head.linear.bias - weight @ head.mean
        total = total + constant[None, :, None, None] / (total.shape[2] * total.shape[3])
        while parts:
            finer = parts.pop()
            total = finer + enlarged(total, finer.shape[2:])
        return total
