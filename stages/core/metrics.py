"""How good predictions are."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, f1_score, recall_score, roc_auc_score

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


def auroc(logits: Logits, labels: Labels, weights: NDArray[np.float64] | None = None) -> float:
    """Area under the ROC curve: of the last class for two, one-vs-rest and unweighted for more.

    Args:
        logits: (N, K).
        labels: (N,), each class present.
        weights: (N,), how often each row counts.
    """
    if logits.shape[1] == 2:
        return float(roc_auc_score(labels, logits[:, 1] - logits[:, 0], sample_weight=weights))
    each = [
        roc_auc_score(labels == k, logits[:, k], sample_weight=weights)
        for k in range(logits.shape[1])
    ]
    return float(np.mean(each))


def expected_calibration_error(logits: Logits, labels: Labels, *, bins: int = 15) -> float:
    """ECE of the top class: |accuracy - confidence|, averaged over equal-width bins (0 to 1).

    Source: Naeini et al. 2015, as used by Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def negative_log_likelihood(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy in nats."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    return float(-log_p[np.arange(len(labels)), labels].mean())


def classification(logits: Logits, labels: Labels, classes: list[str]) -> dict[str, object]:
    """All figures of one model on one split, by name."""
    decided = logits.argmax(1)
    recall = recall_score(labels, decided, average=None, labels=range(len(classes)))
    return {
        "auroc": auroc(logits, labels),
        "accuracy": float(accuracy_score(labels, decided)),
        "macro_f1": float(f1_score(labels, decided, average="macro")),
        "ece": expected_calibration_error(logits, labels),
        "nll": negative_log_likelihood(logits, labels),
        "recall": {c: float(r) for c, r in zip(classes, recall, strict=True)},
    }


def paired_gain(
    better: Logits,
    worse: Logits,
    labels: Labels,
    groups: NDArray[np.int64],
    *,
    metric: Callable[[Logits, Labels, NDArray[np.float64]], float] = auroc,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Difference of two models on the same images, with its 95 % bootstrap interval.

    Whole groups are drawn with replacement (cluster bootstrap, Davison & Hinkley 1997, 3.8), the
    same ones for both models; percentile interval. Draws that lack a class are drawn again.

    Returns: gain, low, high.
    """
    generator = np.random.default_rng(seed)
    codes, members = np.unique(groups, return_inverse=True)
    present = np.stack([np.bincount(members[labels == k], minlength=len(codes)) > 0
                        for k in np.unique(labels)])  # fmt: skip
    gains: list[float] = []
    while len(gains) < resamples:
        draws = generator.multinomial(len(codes), np.full(len(codes), 1 / len(codes)))
        if not (present & (draws > 0)).any(1).all():
            continue
        weights = draws[members].astype(np.float64)
        gains.append(metric(better, labels, weights) - metric(worse, labels, weights))
    everything = np.ones(len(labels))
    low, high = np.quantile(gains, [0.025, 0.975])
    return {
        "gain": metric(better, labels, everything) - metric(worse, labels, everything),
        "low": float(low),
        "high": float(high),
    }


def kernel_distance(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """KID: unbiased squared MMD of two feature sets, kernel (a.b / F + 1)^3; 0 if alike.

    Source: Binkowski et al. 2018 (arXiv 1801.01401), section 4; Gretton et al. 2012, equation 3.

    Args:
        x, y: (M, F) and (N, F), M and N at least 2.
    """

    def kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        raised: NDArray[np.float64] = (a @ b.T / a.shape[1] + 1) ** 3
        return raised

    def within(a: NDArray[np.float64]) -> float:
        k = kernel(a, a)
        return float((k.sum() - np.trace(k)) / (len(a) * (len(a) - 1)))

    a, b = x.astype(np.float64), y.astype(np.float64)
    return within(a) + within(b) - 2 * float(kernel(a, b).mean())
