"""A network's adaptation to images without their labels: the user's own, or another domain's."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stages.core.dataset.data import Rows
from stages.core.nets.inference import BATCH, batched, features_of
from stages.core.nets.net import Net
from stages.core.runner.progress import Progress
from stages.core.training import losses
from stages.core.training.fit import Loss
from stages.core.training.inputs import Inputs

# Of the class confusion loss: the authors' value on Office-31.
MCC_TEMPERATURE = 2.5
# Numbers of the features that are held in memory at once: a quarter of a gigabyte of float32, of
# which the probe makes a few copies.
MAX_FEATURES = 2**26
# Width of the domain classifier's hidden layer, and how fast its weight grows (DANN's gamma).
DOMAIN_WIDTH, DANN_GAMMA = 256, 10.0


def adapt_statistics(
    net: Net, images: Callable[[Rows], Tensor], rows: Rows, share: float = 1.0
) -> tuple[Rows, NDArray[np.float32]]:
    """Move every BatchNorm's statistics to these images', and fit the head's standardisation.

    Sources: AdaBN, Li et al. 2016 (arXiv 1603.04779); with a share below 1, the mixture of
    Schneider et al. 2020 (arXiv 2006.16971).

    Args:
        images: rows to uint8 (B, P, P, C).
        share: of these images' statistics, 0 to 1; the rest is what the network has. One without
            pretrained statistics takes these images' all the same.

    Returns: rows, (n,), and what the network's features of these images now are, (n, F). That is
        all of them, or as many drawn ones as `MAX_FEATURES` allows; the head is fitted to these.
    """
    frozen = net.frozen_statistics
    share = share if frozen else 1.0
    if share > 0:
        before = {name: tensor.clone() for name, tensor in net.backbone.named_buffers()}
        _measure_statistics(net, images, rows)
        for name, tensor in net.backbone.named_buffers():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(before[name], tensor, share))
    most = MAX_FEATURES // len(net.head.mean)
    if len(rows) > most:
        print(f"features of {most:,} of {len(rows):,} images, drawn at random", flush=True)
        rows = np.sort(np.random.default_rng(0).choice(rows, most, replace=False))
    features = features_of(net, images, rows, progress=Progress("frozen features", len(rows)))
    net.head.fit_statistics(torch.from_numpy(features).to(net.mean.device))
    return rows, features


def _measure_statistics(net: Net, images: Callable[[Rows], Tensor], rows: Rows) -> None:
    """Give every BatchNorm the statistics of these images alone.

    Neighbours are alike, and the variance is the mean of those within batches: so each batch is
    drawn from all images, and none is small, for it would count as much as the others.
    """
    order = np.random.default_rng(0).permutation(rows)
    whole = order[: max(len(order) // BATCH, 1) * BATCH]
    frozen = net.frozen_statistics
    needed = [p.requires_grad for p in net.parameters()]
    # A frozen BatchNorm would keep its statistics; nothing is learned here.
    net.frozen_statistics = False
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    update_bn((images(batch) for batch in batched(whole, BATCH)), net, net.mean.device)
    net.frozen_statistics = frozen
    for parameter, need in zip(net.parameters(), needed, strict=True):
        parameter.requires_grad_(need)
    net.eval()


class Confusion:
    """MCC of as many target images as the batch has; drawn by (seed, epoch, first row)."""

    def __init__(self, inputs: Inputs, rows: Rows, view_count: int, seed: int) -> None:
        self._inputs, self._rows, self._view_count, self._seed = inputs, rows, view_count, seed

    def __call__(self, net: Net, batch: Rows, epoch: int) -> Tensor:
        target = _drawn(self._rows, batch, epoch, self._seed)
        logits = net(self._inputs.batch(target, epoch % self._view_count))
        return losses.class_confusion(logits, temperature=MCC_TEMPERATURE)


def _drawn(rows: Rows, batch: Rows, epoch: int, seed: int) -> Rows:
    """As many target images as the batch has."""
    draws = np.random.default_rng([seed, epoch, int(batch[0])])
    return draws.choice(rows, len(batch), replace=len(batch) > len(rows))


class Adversary(nn.Module):
    """DANN: a classifier learns to tell the batch from as many target images, the net to foil it.

    The classifier is this loss's own, and `fit` trains it with the net. The net heeds it the more,
    the further training has come: 2 / (1 + exp(-10 p)) - 1. Here p grows by epochs, being the share
    that has passed by the middle of this one; with few of them the net heeds it from the start
    (0.55 in the first of four).

    Source: Ganin et al. 2016 (arXiv 1505.07818).
    """

    def __init__(
        self, net: Net, inputs: Inputs, rows: Rows, view_count: int, seed: int, epochs: int
    ) -> None:
        super().__init__()
        self._inputs, self._rows, self._view_count = inputs, rows, view_count
        self._seed, self._epochs = seed, epochs
        torch.manual_seed(seed)
        first = nn.Linear(len(net.head.mean), DOMAIN_WIDTH)
        self.domain = nn.Sequential(first, nn.ReLU(), nn.Linear(DOMAIN_WIDTH, 1))
        self.domain.to(net.mean.device)

    def forward(self, net: Net, batch: Rows, epoch: int) -> Tensor:
        target = _drawn(self._rows, batch, epoch, self._seed)
        view = epoch % self._view_count
        features = torch.cat(
            [net.features(self._inputs.batch(rows, view)) for rows in (batch, target)]
        )
        heed = 2 / (1 + math.exp(-DANN_GAMMA * (epoch + 0.5) / self._epochs)) - 1
        features = losses.reverse_gradient(net.head.standardize(features), heed)
        is_target = torch.arange(len(features), device=features.device) >= len(batch)
        return nn.functional.binary_cross_entropy_with_logits(
            self.domain(features)[:, 0], is_target.float()
        )


class WithTarget(nn.Module):
    """A loss on labelled images, and one on the target's with a weight; both may learn."""

    def __init__(self, labelled: Loss, unlabelled: Loss, weight: float) -> None:
        super().__init__()
        self.labelled, self.unlabelled, self.weight = labelled, unlabelled, weight

    def forward(self, net: Net, batch: Rows, epoch: int) -> Tensor:
        labelled = self.labelled(net, batch, epoch)
        return labelled + self.weight * self.unlabelled(net, batch, epoch)
