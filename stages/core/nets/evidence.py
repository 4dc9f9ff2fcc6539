"""Which parts of an image speak for each class: a map that adds up to the logit.

The head is linear in mean, deviation and maximum of feature maps, and each of these is a sum over
positions, so a logit is one, too: nothing is estimated or trained. Zhou et al. 2016 (arXiv
1512.04150) have this for the mean alone (class activation maps).

Fine feature maps are pooled first, and the statistics computed from what is left, so that a map
costs little more than the logits alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.nets.net import VARIANCE_FLOOR, Net

# Of a map's side, as far as the network has them: more cells cost time and tell a person no more.
FEWEST_CELLS = 16


def cells(sides: Sequence[int]) -> int:
    """Side of the map, for feature maps of these sides, the finest first.

    That of the coarsest one that has `FEWEST_CELLS` or more, and that all finer ones can be pooled
    to; else of the finest one.
    """
    fit = [
        side
        for side in sides
        if side >= FEWEST_CELLS
        and all((side - 1) * -(-finer // side) < finer for finer in sides if finer > side)
    ]
    return min(fit, default=max(sides))


def _pooled(
    x: Tensor, side: int, pool: Callable[[Tensor, int], Tensor], *, outside: float
) -> Tensor:
    """(B, C, H, W) to (B, C, side, side); cells at the edge may reach outside the image."""
    window = -(-x.shape[2] // side)
    if missing := window * side - x.shape[2]:
        x = F.pad(x, (0, missing, 0, missing), value=outside)
    return x if window == 1 else pool(x, window)


@dataclass(frozen=True)
class Summary:
    """What some feature maps, of C channels together, hold in each of S x S cells.

    Attributes:
        means: (B, 2 C, S * S), of the values and of their squares in each cell. A cell that
            reaches outside the image has zeros there.
        share: (2 C,), of a cell in the image; the means times this add up to those of the image.
        maxima: (B, C, S * S).
    """

    means: Tensor
    share: Tensor
    maxima: Tensor

    @classmethod
    def of(cls, maps: Sequence[Tensor], side: int) -> "Summary":
        """Of feature maps (B, C, H, W) that are no coarser."""
        means = [_pooled(x, side, F.avg_pool2d, outside=0.0) for x in maps]
        squares = [_pooled(x * x, side, F.avg_pool2d, outside=0.0) for x in maps]
        maxima = [_pooled(x, side, F.max_pool2d, outside=-torch.inf) for x in maps]
        share = torch.cat([
            x.new_full((x.shape[1],), (-(-x.shape[2] // side)) ** 2 / (x.shape[2] * x.shape[3]))
            for x in maps
        ])  # fmt: skip
        return cls(
            torch.cat([*means, *squares], 1).flatten(2),
            torch.cat([share, share]),
            torch.cat(maxima, 1).flatten(2),
        )

    def statistics(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, deviation and maximum of each channel, (B, C) each; see `net.statistics`."""
        both, channels = self.means.sum(2) * self.share, self.maxima.shape[1]
        mean, square = both[:, :channels], both[:, channels:]
        variance = (square - mean * mean).clamp(min=0)
        return mean, (variance + VARIANCE_FLOOR).sqrt(), self.maxima.amax(2)

    def contributions(self, weight: Tensor) -> Tensor:
        """What each cell adds to `weight @ cat(statistics())`: (B, K, S, S).

        With mean m, deviation s and N positions, a value x adds x / N to the mean and
        ((x - m)^2 + floor) / (N s) to the deviation; the first cell with the maximum adds it.

        Args:
            weight: (K, 3 C), of means, deviations and maxima.
        """
        mean, deviation, maximum = self.statistics()
        channels, count = self.maxima.shape[1:]
        of_mean, of_deviation, of_maximum = (
            weight[:, kind * channels : (kind + 1) * channels] for kind in range(3)
        )
        share = self.share[:channels]
        # (x - m)^2 + floor = x^2 - 2 m x + (m^2 + floor). Whatever is the same for all images
        # stands alone, so that an exporter can compute it.
        inverse = 1 / deviation
        of_square = (of_deviation * share) * inverse[:, None, :]
        of_value = of_mean * share - (2 * of_deviation * share) * (mean * inverse)[:, None, :]
        total = torch.matmul(torch.cat([of_value, of_square], 2), self.means)
        even = torch.matmul((mean * mean + VARIANCE_FLOOR) * inverse, of_deviation.T / count)
        total = total + even[:, :, None]
        first = self.maxima.argmax(2)[:, None, :].repeat(1, len(weight), 1)
        total = total.scatter_add(2, first, of_maximum * maximum[:, None, :])
        side = math.isqrt(count)
        return total.reshape(-1, len(weight), side, side)


def enlarged(values: Tensor, side: torch.Size) -> Tensor:
    """(B, K, h, w) to (B, K, H, W) with the same sum: each value is shared among its pixels."""
    (height, width), (more_rows, more_columns) = values.shape[2:], side
    if (height, width) == (more_rows, more_columns):
        return values
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

    S is as `cells` has it. What coarser feature maps give is shared among the cells that lie in one
    of their positions. What no position has given (the head's bias, and the means that it
    subtracts) is spread evenly.
    """

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> Tensor:
        return self.logits_and_evidence(images)[1]

    def logits_and_evidence(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K) and the evidence that they are the sums of."""
        maps, head = self.net.backbone(self.net.prepare(images)), self.net.head
        side = cells([x.shape[2] for x in maps])
        fine = [number for number, x in enumerate(maps) if x.shape[2] >= side]
        alike = [fine, *([number] for number in range(len(fine), len(maps)))]
        # The head has means, deviations and maxima of one map after the other.
        ends = np.cumsum([3 * x.shape[1] for x in maps])
        of_map = [part.reshape(3, -1) for part in np.split(np.arange(ends[-1]), ends[:-1])]
        columns = [np.concatenate([of_map[number] for number in each], 1).ravel() for each in alike]
        summaries = [
            Summary.of([maps[number] for number in each], min(side, maps[each[0]].shape[2]))
            for each in alike
        ]
        found = torch.cat([part for each in summaries for part in each.statistics()], 1)
        # The head's own order, as it is applied to features that stand in another one.
        order = torch.from_numpy(np.concatenate(columns))
        features = (found - head.mean[order]) / head.std[order]
        logits = F.linear(features, head.linear.weight[:, order], head.linear.bias)
        weight = head.linear.weight / head.std
        constant = head.linear.bias - weight @ head.mean
        evidence = constant[None, :, None, None] / side**2
        for each, own in zip(summaries, columns, strict=True):
            part = each.contributions(weight[:, torch.from_numpy(own)])
            evidence = evidence + enlarged(part, torch.Size((side, side)))
        return logits, evidence
