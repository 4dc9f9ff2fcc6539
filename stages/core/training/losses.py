"""Losses of the pipeline, each a scalar averaged over the batch, and what they are made of."""

import torch
from torch import Tensor
from torch.nn import functional as F

# Deviations below this are rounding of float32: what is constant up to it counts as constant.
EPSILON = 1e-6


def standardize(logits: Tensor) -> Tensor:
    """Each row of (B, K) logits less its mean, over its deviation: what it prefers, not how much.

    With two classes only the sign is left: every row becomes (1, -1) or (-1, 1), so a teacher's
    confidence, the whole of its soft targets there, is lost.

    Source: Sun et al. 2024 (arXiv 2403.01427), section 4.3 and algorithm 1, whose deviation
    divides by K; the authors' code divides by K - 1.
    """
    deviation = logits.std(1, correction=0, keepdim=True)
    return (logits - logits.mean(1, keepdim=True)) / (deviation + EPSILON)


def soft_targets(logits: Tensor, teacher_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 KL(teacher || student) of the softmax at T, in nats; T^2 keeps the gradient's size.

    Source: Hinton et al. 2015 (arXiv 1503.02531), section 2.

    Args:
        logits, teacher_logits: (B, K), of the same views.
        temperature: T > 0; higher shows more of what the teacher holds similar.
    """
    return temperature**2 * _divergence(logits / temperature, teacher_logits / temperature)


def decoupled(
    logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    *,
    temperature: float,
    target_weight: float = 1.0,
    non_target_weight: float = 8.0,
) -> Tensor:
    """DKD: soft targets in two parts with weights of their own, T^2 (a TCKD + b NCKD), in nats.

    TCKD is KL(teacher || student) of the label's class against all others together, NCKD that of
    the other classes among themselves. Soft targets are TCKD + (1 - p) NCKD, with p the teacher's
    probability of the label: a sure teacher hardly speaks of the other classes.

    With two classes there is one other class: NCKD is 0, and a = 1 gives `soft_targets`.

    Source: Zhao et al. 2022 (arXiv 2203.08679), equations 6 and 7; T^2 and b = 8 as in the
    authors' code.

    Args:
        logits, teacher_logits: (B, K), of the same views.
        labels: int64 (B,).
        temperature: T > 0.
        target_weight: a, of TCKD.
        non_target_weight: b, of NCKD.
    """
    student, teacher = logits / temperature, teacher_logits / temperature
    target = _divergence(_against_others(student, labels), _against_others(teacher, labels))
    non_target = _divergence(_others(student, labels), _others(teacher, labels))
    return temperature**2 * (target_weight * target + non_target_weight * non_target)


def correlation(
    logits: Tensor,
    teacher_logits: Tensor,
    *,
    temperature: float,
    inter_weight: float = 1.0,
    intra_weight: float = 1.0,
) -> Tensor:
    """DIST: T^2 (b inter + c intra), each 1 - Pearson's r of student and teacher, of softmax at T.

    Inter-class: r over the classes of an image, averaged over the batch. Intra-class: r over the
    batch of a class's probabilities, averaged over the classes. What is constant has r = 0.

    With two classes, r over the classes is 1 where student and teacher prefer the same class and
    -1 where not, however sure they are: it counts disagreements, and its gradient is 0. What there
    is to learn is in the intra-class part, whose two classes have the same r.

    Source: Huang et al. 2022 (arXiv 2205.10536), section 3; T and T^2 as in the authors' code.

    Args:
        logits, teacher_logits: (B, K), of the same views; B > 1 for the intra-class part.
        temperature: T > 0.
        inter_weight: b.
        intra_weight: c.
    """
    student, teacher = (logits / temperature).softmax(1), (teacher_logits / temperature).softmax(1)
    inter = 1 - _pearson(student, teacher, dim=1).mean()
    intra = 1 - _pearson(student, teacher, dim=0).mean()
    return temperature**2 * (inter_weight * inter + intra_weight * intra)


def class_confusion(logits: Tensor, *, temperature: float) -> Tensor:
    """MCC: how far an unlabelled batch's predictions p, the softmax at T, confuse the classes.

    The confusion matrix is C = sum_i w_i p_i p_i^T, with w_i = 1 + exp(-entropy of p_i); the loss
    is the sum of what is off the diagonal after dividing each row by its sum, over K. Row k of
    the divided matrix is the mean of p_i with weights w_i p_ik, so it gives up the same mean of
    1 - p_ik; this form has no 0/0 where no image is near class k. The factor that makes the w_i
    sum to B cancels. No gradient flows through w, as in the authors' code.

    Equal predictions for the whole batch cost (K - 1) / K whatever they are, 1/2 with two
    classes: the loss nears 0 only where every class has sure predictions in the batch.

    Source: Jin et al. 2020 (arXiv 1912.03699), equations 1 to 7.

    Args:
        logits: (B, K).
        temperature: T > 0.
    """
    log_p = F.log_softmax(logits / temperature, 1)
    entropy = -(log_p.exp() * log_p).sum(1, keepdim=True).detach()
    share = (log_p + torch.log1p((-entropy).exp())).softmax(0)
    return (share * -torch.expm1(log_p)).sum(0).mean()


def reverse_gradient(x: Tensor, strength: float) -> Tensor:
    """`x`; the gradient flows back through it times -strength (Ganin et al. 2016, section 4.2)."""
    return x.detach() + strength * (x.detach() - x)


def focal(logits: Tensor, wanted: Tensor, *, gamma: float) -> Tensor:
    """Cross-entropy with (1 - p)^gamma as each class's weight, p being its predicted probability.

    With two classes and sure labels this is the paper's loss, of the difference of the two logits
    and without its balancing factor alpha; more classes take p from the softmax. Where several
    classes are wanted (soft or smoothed labels, mixup), each one's term counts by its share.

    Source: Lin et al. 2017 (arXiv 1708.02002), equation 4.

    Args:
        logits: (B, K).
        wanted: (B, K), the probabilities to learn.
        gamma: 0 is cross-entropy; higher leaves more to the images that are still wrong.
    """
    column = torch.arange(logits.shape[1], device=logits.device)
    others = column[:-1] + (column[:-1] >= column[:, None])
    rest = logits[:, others].logsumexp(2)
    log_p, log_rest = F.log_softmax(torch.stack([logits, rest], 2), 2).unbind(2)
    # From log(1 - p): the power of 1 - p itself has no finite gradient at p = 1 and gamma < 1.
    return -(wanted * (gamma * log_rest).exp() * log_p).sum(1).mean()


def relational(features: Tensor, teacher_features: Tensor) -> Tensor:
    """RKD: distances and angles between a batch's images, as the teacher has them.

    25 x distance-wise + 50 x angle-wise Huber loss: Park et al. 2019 (arXiv 1904.05068), equations
    5 to 9, who give the first half the second's weight; how much both weigh beside the labels is
    as in Tian et al. 2020 (arXiv 1910.10699). A single image has no relations: 0.

    Args:
        features: (B, F) of the student.
        teacher_features: (B, G) of the teacher; F and G may differ. Angles take B of 3 or more
            and memory for B^3 numbers.
    """

    def distances(x: Tensor) -> Tensor:
        squared = (x[:, None] - x[None]).square().sum(2)
        apart = (squared + EPSILON).sqrt() * (1 - torch.eye(len(x), dtype=x.dtype, device=x.device))
        pairs = max(len(x) * (len(x) - 1), 1)
        return apart / (apart.sum() / pairs).clamp_min(EPSILON)

    def cosines(x: Tensor) -> Tensor:
        """(B, B, B): at image i, between the directions to j and to k."""
        directions = F.normalize(x[None] - x[:, None], dim=2, eps=EPSILON)
        return directions @ directions.transpose(1, 2)

    apart = F.smooth_l1_loss(distances(features), distances(teacher_features))
    angles = F.smooth_l1_loss(cosines(features), cosines(teacher_features))
    return 25 * apart + 50 * angles


def _divergence(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(teacher || student) of the rows' softmax, averaged over the batch."""
    return F.kl_div(
        F.log_softmax(logits, 1),
        F.log_softmax(teacher_logits, 1),
        log_target=True,
        reduction="batchmean",
    )


def _others(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, K - 1): the logits without the label's."""
    column = torch.arange(logits.shape[1] - 1, device=logits.device)
    return logits.gather(1, column + (column >= labels[:, None]))


def _against_others(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, 2): the label's logit, and one logit for all other classes together."""
    others = _others(logits, labels).logsumexp(1, keepdim=True)
    return torch.cat([logits.gather(1, labels[:, None]), others], 1)


def _pearson(a: Tensor, b: Tensor, *, dim: int) -> Tensor:
    a, b = (F.normalize(x - x.mean(dim, keepdim=True), dim=dim, eps=EPSILON) for x in (a, b))
    return (a * b).sum(dim)
