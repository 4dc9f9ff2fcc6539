"""Losses of the pipeline; all take (B, K) logits and give a mean over the batch, in nats."""

from torch import Tensor
from torch.nn import functional as F


def distillation(
    logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, temperature: float, alpha: float
) -> Tensor:
    """Soft targets: (1 - alpha) CE(labels) + alpha T^2 KL(teacher || student), both at T.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.

    Args:
        logits, teacher_logits: (B, K), of the same views.
        labels: int64 (B,).
        temperature: T > 0; higher shows more of what the teacher holds similar.
        alpha: 0 ignores the teacher, 1 the labels.
    """
    soft = F.kl_div(
        F.log_softmax(logits / temperature, 1),
        F.log_softmax(teacher_logits / temperature, 1),
        log_target=True,
        reduction="batchmean",
    )
    return (1 - alpha) * F.cross_entropy(logits, labels) + alpha * temperature**2 * soft
