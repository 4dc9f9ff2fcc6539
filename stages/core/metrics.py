"""How good predictions are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

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


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: logits (N, K) twice, labels (N,), groups (N,)."""

    better: Logits
    worse: Logits
    labels: Labels
    groups: NDArray[np.int64]


def _draw(generator: np.random.Generator, pair: Paired) -> dict[int, int]:
    """How often each group is drawn; draws that lack a class are drawn again."""
    codes, members = np.unique(pair.groups, return_inverse=True)
    present = np.stack(
        [
            np.bincount(members[pair.labels == k], minlength=len(codes)) > 0
            for k in np.unique(pair.labels)
        ]
    )
    while True:
        draws = generator.multinomial(len(codes), np.full(len(codes), 1 / len(codes)))
        if (present & (draws > 0)).any(1).all():
            return dict(zip(codes.tolist(), draws.tolist(), strict=True))


def mean_paired_gain(
    pairs: Sequence[Paired],
    *,
    metric: Callable[[Logits, Labels, NDArray[np.float64]], float] = auroc,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Mean difference of two models over folds and seeds, with its 95 % bootstrap interval.

    Whole groups are drawn with replacement (cluster bootstrap, Davison & Hinkley 1997, 3.8), the
    same ones for both models and for all pairs on the same groups (the seeds of a fold).

    Returns: gain, low, high (percentile interval).
    """
    generator = np.random.default_rng(seed)
    folds = [frozenset(pair.groups.tolist()) for pair in pairs]

    def gain(pair: Paired, weights: NDArray[np.float64]) -> float:
        better = metric(pair.better, pair.labels, weights)
        return better - metric(pair.worse, pair.labels, weights)

    drawn = []
    for _ in range(resamples):
        draws: dict[frozenset[int], dict[int, int]] = {}
        gains = []
        for fold, pair in zip(folds, pairs, strict=True):
            if fold not in draws:
                draws[fold] = _draw(generator, pair)
            weights = np.array([draws[fold][g] for g in pair.groups.tolist()], dtype=np.float64)
            gains.append(gain(pair, weights))
        drawn.append(np.mean(gains))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "gain": float(np.mean([gain(pair, np.ones(len(pair.labels))) for pair in pairs])),
        "low": float(low),
        "high": float(high),
    }


def paired_gain(
    better: Logits, worse: Logits, labels: Labels, groups: NDArray[np.int64], **how: Any
) -> dict[str, float]:
    """Difference of two models on the same images; see `mean_paired_gain`."""
    return mean_paired_gain([Paired(better, worse, labels, groups)], **how)


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
