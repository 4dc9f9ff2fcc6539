"""How a student learns and is measured; shared by distillation, its control and refinement."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stages.core import losses, metrics
from stages.core.data import Dataset
from stages.core.errors import ParamsError
from stages.core.fit import Evaluate, Loss
from stages.core.nets import Net
from stages.core.params import Section
from stages.core.prefix import Prefix
from stages.core.targets import Targets

Rows = NDArray[np.int64]


class Lesson(Section):
    """How a student learns from its teacher; part of the sections that distil.

    Losses: see losses.py. `feature` teaches the relations between the teacher's features.
    """

    method: Literal["kd", "dkd", "dist", "feature"]
    standardize_logits: bool
    temperature: float = Field(gt=0, le=100)
    alpha: float = Field(gt=0, le=1)

    def refuse_void(self, classes: int) -> None:
        """Raises: ParamsError for what teaches nothing when there are two classes."""
        void = {
            "dkd": "the non-target classes are one class, which has nothing to tell",
            "dist": "correlation over two classes is 1 or -1, whatever the teacher thinks",
        }
        reason = void.get(self.method)
        if self.standardize_logits:
            reason = "two logits, standardised, are 1 and -1, whatever the teacher thinks"
        if classes == 2 and reason:
            wrong = "standardize_logits" if self.standardize_logits else f"method {self.method!r}"
            raise ParamsError(
                f"{wrong}: with two classes {reason}; use method 'kd' or 'feature' without it"
            )

    def soft_loss(self, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The teacher's part of the loss, from logits (B, K) of both."""
        if self.standardize_logits:
            logits, teacher = losses.standardize(logits), losses.standardize(teacher)
        if self.method == "dkd":
            return losses.decoupled(logits, teacher, labels, temperature=self.temperature)
        if self.method == "dist":
            return losses.correlation(logits, teacher, temperature=self.temperature)
        return losses.soft_targets(logits, teacher, temperature=self.temperature)


def distillation_loss(
    data: Dataset, targets: Targets, prefix: Prefix, lesson: Lesson, *, alpha: float | None = None
) -> Loss:
    """Learn from labels and teacher on the teacher's views: epoch e shows view e modulo count.

    Args:
        alpha: the teacher's share, when not the lesson's; 0 is the control's.
    """
    labels = torch.from_numpy(data.labels)
    share = lesson.alpha if alpha is None else alpha

    def loss(net: Net, rows: Rows, epoch: int) -> Tensor:
        view = epoch % targets.count
        features = prefix.features(net, rows, view)
        logits = net.head(features)
        hard = F.cross_entropy(logits, labels[rows].to(logits.device))
        if not share:
            return hard
        if lesson.method == "feature":
            soft = losses.relational(
                net.head.standardize(features), targets.features(rows, view).to(logits.device)
            )
        else:
            teacher = targets.logits(rows, view).to(logits.device)
            soft = lesson.soft_loss(logits, teacher, labels[rows].to(logits.device))
        return (1 - share) * hard + share * soft

    return loss


def validation(data: Dataset, prefix: Prefix) -> Evaluate:
    """Figures of a network on the validation split."""
    rows = data.rows("val")

    def evaluate(net: Net) -> dict[str, float]:
        return {"val_auroc": metrics.auroc(prefix.evaluate(net, rows), data.labels[rows])}

    return evaluate
