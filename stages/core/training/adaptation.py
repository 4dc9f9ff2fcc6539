"""A network's adaptation to images without their labels: the user's own, or another domain's."""

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from stages.core.nets.inference import BATCH, batched, features_of
from stages.core.nets.net import Net
from stages.core.runner.progress import Progress
from stages.core.training import losses
from stages.core.training.fit import Loss
from stages.core.training.prefix import Prefix

Rows = NDArray[np.int64]

# Of the class confusion loss: the authors' value on Office-31.
MCC_TEMPERATURE = 2.5
# Of the domain classifier's hidden layer, and how soon it is heeded (DANN's gamma).
DOMAIN_WIDTH, DANN_GAMMA = 256, 10.0


def adapt_statistics(
    net: Net, images: Callable[[Rows], Tensor], rows: Rows, share: float = 1.0
) -> NDArray[np.float32]:
    """Move every BatchNorm's statistics to these images', and fit the head's standardisation.

    Sources: AdaBN, Li et al. 2016 (arXiv 1603.04779); with a share below 1, the mixture of
    Schneider et al. 2020 (arXiv 2006.16971).

    Args:
        images: rows to uint8 (B, P, P, C).
        share: of these images' statistics, 0 to 1; the rest is what the network has. One without
            pretrained statistics takes these images' all the same.

    Returns: what the network's features of the images now are, (len(rows), F).
    """
    frozen = net.frozen_statistics
    share = share if frozen else 1.0
    if share > 0:
        before = {name: tensor.clone() for name, tensor in net.backbone.named_buffers()}
        _measure_statistics(net, images, rows)
        for name, tensor in net.backbone.named_buffers():
            if tensor.is_floating_point():
                tensor.copy_(torch.lerp(before[name], tensor, share))
    features = features_of(net, images, rows, progress=Progress("frozen features", len(rows)))
    net.head.fit_statistics(torch.from_numpy(features).to(net.mean.device))
    return features


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


def confusion_of(prefix: Prefix, rows: Rows, views: int, seed: int) -> Loss:
    """MCC of as many target images as the batch has; drawn by (seed, epoch, first row)."""

    def loss(net: Net, batch: Rows, epoch: int) -> Tensor:
        logits = prefix.logits(net, _drawn(rows, batch, epoch, seed), epoch % views)
        return losses.class_confusion(logits, temperature=MCC_TEMPERATURE)

    return loss


def _drawn(rows: Rows, batch: Rows, epoch: int, seed: int) -> Rows:
    """As many target images as the batch has."""
    draws = np.random.default_rng([seed, epoch, int(batch[0])])
    return draws.choice(rows, len(batch), replace=len(batch) > len(rows))


def adversary_of(net: Net, prefix: Prefix, rows: Rows, views: int, seed: int, epochs: int) -> Loss:
    """DANN: a classifier learns to tell the batch from as many target images, the net to foil it.

    The classifier is made here, as `net.head.domain`, for `fit` to train it with the net; take it
    away afterwards. The net heeds it the more, the further training has come: 2 / (1 + exp(-10 p))
    - 1. Here p grows by epochs, being the share that has passed by the middle of this one; with
    few of them the net heeds it from the start (0.55 in the first of four).

    Source: Ganin et al. 2016 (arXiv 1505.07818).
    """
    torch.manual_seed(seed)
    layers = (nn.Linear(len(net.head.mean), DOMAIN_WIDTH), nn.ReLU(), nn.Linear(DOMAIN_WIDTH, 1))
    net.head.domain = nn.Sequential(*layers).to(net.mean.device)

    def loss(net: Net, batch: Rows, epoch: int) -> Tensor:
        assert net.head.domain is not None
        both = batch, _drawn(rows, batch, epoch, seed)
        shown = torch.cat([prefix.features(net, each, epoch % views) for each in both])
        heed = 2 / (1 + math.exp(-DANN_GAMMA * (epoch + 0.5) / epochs)) - 1
        shown = losses.reverse_gradient(net.head.standardize(shown), heed)
        is_target = torch.arange(len(shown), device=shown.device) >= len(batch)
        return nn.functional.binary_cross_entropy_with_logits(
            net.head.domain(shown)[:, 0], is_target.float()
        )

    return loss
