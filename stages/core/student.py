"""How a student learns and is measured; shared by distillation, its control and refinement."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core import metrics
from stages.core.data import Dataset, Split
from stages.core.fit import Evaluate, Loss
from stages.core.inference import logits_of
from stages.core.losses import distillation
from stages.core.nets import Net
from stages.core.targets import Targets

Rows = NDArray[np.int64]


def distillation_loss(
    data: Dataset, targets: Targets, device: torch.device, *, temperature: float, alpha: float
) -> Loss:
    """Learn from the teacher's logits on the teacher's views; alpha = 0 is the control's loss.

    Epoch e shows view e modulo the number of views.
    """
    labels = torch.from_numpy(data.labels)

    def loss(net: Net, rows: Rows, epoch: int) -> Tensor:
        view = epoch % targets.count
        return distillation(
            net(targets.views.batch(rows, view).to(device)),
            targets.logits(rows, view).to(device),
            labels[rows].to(device),
            temperature=temperature,
            alpha=alpha,
        )

    return loss


def plain_logits(net: Net, data: Dataset, targets: Targets, split: Split) -> metrics.Logits:
    """Logits of a split's images as they are."""
    return logits_of(net, targets.views.plain, data.rows(split))


def validation(data: Dataset, targets: Targets) -> Evaluate:
    """Figures of a network on the validation split."""

    def evaluate(net: Net) -> dict[str, float]:
        logits = plain_logits(net, data, targets, "val")
        return {"val_auroc": metrics.auroc(logits, data.labels[data.rows("val")])}

    return evaluate
