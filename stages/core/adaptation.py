"""Unsupervised domain adaptation: the target domain's images, without their labels."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.optim.swa_utils import update_bn

from stages.core import losses
from stages.core.fit import Loss
from stages.core.inference import BATCH, run_batched
from stages.core.nets import Net, batched
from stages.core.prefix import Prefix

Rows = NDArray[np.int64]

# Of the class confusion loss: the authors' value on Office-31.
MCC_TEMPERATURE = 2.5


def adapt_statistics(net: Net, images: Callable[[Rows], Tensor], rows: Rows) -> None:
    """Give every BatchNorm, and the head's standardisation, the statistics of these images.

    Source: AdaBN, Li et al. 2016 (arXiv 1603.04779).

    Args:
        images: rows to uint8 (B, P, P, C).
    """
    frozen = net.frozen_statistics
    needed = [p.requires_grad for p in net.parameters()]
    # A frozen BatchNorm would keep its statistics; nothing is learned here.
    net.frozen_statistics = False
    for parameter in net.parameters():
        parameter.requires_grad_(True)
    update_bn((images(batch) for batch in batched(rows, BATCH)), net, net.mean.device)
    net.frozen_statistics = frozen
    for parameter, need in zip(net.parameters(), needed, strict=True):
        parameter.requires_grad_(need)
    net.eval()
    features = run_batched(net.features, images, rows, net.mean.device)
    net.head.fit_statistics(torch.from_numpy(features).to(net.mean.device))


def confusion_of(prefix: Prefix, rows: Rows, views: int, seed: int) -> Loss:
    """MCC of as many target images as the batch has; drawn by (seed, epoch, first row)."""

    def loss(net: Net, batch: Rows, epoch: int) -> Tensor:
        draws = np.random.default_rng([seed, epoch, int(batch[0])])
        chosen = draws.choice(rows, len(batch), replace=len(batch) > len(rows))
        logits = prefix.logits(net, chosen, epoch % views)
        return losses.class_confusion(logits, temperature=MCC_TEMPERATURE)

    return loss
