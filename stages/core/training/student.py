"""How a student learns and is measured; shared by distillation, its control and refinement."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stages.core.dataset.data import Dataset, Rows
from stages.core.dataset.views import Mix
from stages.core.nets.net import Net
from stages.core.runner import processes
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import Section
from stages.core.training import losses
from stages.core.training.fit import Loss
from stages.core.training.inputs import Inputs
from stages.core.training.targets import Targets


class Lesson(Section):
    """How a student learns from its teacher; part of the sections that distil.

    Losses: see losses.py. `feature` teaches the relations between the teacher's features.
    """

    method: Literal["kd", "dkd", "dist", "feature"]
    standardize_logits: bool
    temperature: float = Field(gt=0, le=100)
    alpha: float = Field(gt=0, le=1)

    def check_method(self, classes: int, mix: Mix = "none") -> None:
        """Raises: ParamsError for what teaches nothing.

        That is: what lives on more than two classes when there are two; relations alone, which
        leave the head at zero; whole batches' relations when several processes share each; one
        class against the others for images that are mixed of two.
        """
        if self.method == "dkd" and mix != "none":
            raise ParamsError(
                f"method 'dkd': with targets.mix = {mix!r}, an image has no single class; use "
                "method 'kd', or set targets.mix to none"
            )
        if self.method == "feature" and self.alpha == 1:
            raise ParamsError(
                "method 'feature' with alpha = 1: features teach the head nothing; lower alpha"
            )
        if self.method == "feature" and self.standardize_logits:
            raise ParamsError(
                "standardize_logits: method 'feature' looks at no logits; set it to false"
            )
        if self.method in ("feature", "dist"):
            processes.require_single_process(f"method {self.method!r}")
        void = {
            "dkd": "there is one other class, so it is kd with other weights",
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

    def mixed(self, hard: Tensor, soft: Tensor) -> Tensor:
        """(1 - alpha) hard + alpha soft; Hinton et al. 2015 (arXiv 1503.02531), section 2.

        Args:
            hard: what the labels say, a scalar: see `label_loss`.
            soft: what the teacher says, a scalar: see `soft_loss`.
        """
        return (1 - self.alpha) * hard + self.alpha * soft

    def soft_loss(self, logits: Tensor, teacher: Tensor, labels: Tensor) -> Tensor:
        """The teacher's part of the loss, from logits (B, K) of both.

        For dkd, the class of an image without a label (-1) is the teacher's first choice.
        """
        labels = torch.where(labels < 0, teacher.argmax(1), labels)
        if self.standardize_logits:
            logits, teacher = losses.standardize(logits), losses.standardize(teacher)
        if self.method == "dkd":
            return losses.decoupled(logits, teacher, labels, temperature=self.temperature)
        if self.method == "dist":
            return losses.correlation(logits, teacher, temperature=self.temperature)
        return losses.soft_targets(logits, teacher, temperature=self.temperature)


def label_loss(logits: Tensor, labels: Tensor, shares: Tensor | None = None) -> Tensor:
    """Sum of the images' cross-entropies, each times its share; 0 for those without a label.

    Args:
        logits: (B, K).
        labels: int64 (B,), -1 where there is none.
        shares: (B,); None for 1.
    """
    if shares is None:
        return F.cross_entropy(logits, labels, ignore_index=-1, reduction="sum")
    return (shares * F.cross_entropy(logits, labels, ignore_index=-1, reduction="none")).sum()


def distillation_loss(
    data: Dataset, targets: Targets, inputs: Inputs, lesson: Lesson, *, control: bool = False
) -> Loss:
    """Learn from labels and teacher on the teacher's views: epoch e shows view e modulo V.

    The labels' part is a mean over labelled images: it weighs the same however few they are. They
    are mixed with labelled ones, so it weighs the same in mixed views; an unlabelled image that is
    mixed with one learns nothing from its label, since the control has no such images.

    Args:
        control: learn on the same views from the labels alone.
    """
    all_labels = torch.from_numpy(data.labels)
    labelled_share = float((data.labels[data.distillation_rows] >= 0).mean())

    def by_labels(logits: Tensor, rows: Rows, view: int) -> Tensor:
        labels, mixture = all_labels[rows].to(logits.device), targets.views.mixture(rows, view)
        if mixture is None:
            return label_loss(logits, labels)
        shares = mixture.shares.to(logits.device)
        partners = all_labels[mixture.partners].to(logits.device)
        partners = torch.where(labels < 0, labels, partners)
        return label_loss(logits, labels, shares) + label_loss(logits, partners, 1 - shares)

    def loss(net: Net, rows: Rows, epoch: int) -> Tensor:
        view = epoch % targets.view_count
        features = net.features(inputs.batch(rows, view))
        logits = net.head(features)
        hard = by_labels(logits, rows, view) / len(rows)
        if control:
            return hard
        if lesson.method == "feature":
            soft = losses.relational(
                net.head.standardize(features), targets.features(rows, view).to(logits.device)
            )
        else:
            teacher = targets.logits(rows, view).to(logits.device)
            labels = all_labels[rows].to(logits.device)
            soft = lesson.soft_loss(logits, teacher, labels)
        return lesson.mixed(hard / labelled_share, soft)

    return loss
