"""How good predictions are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from sklearn.metrics import accuracy_score, f1_score, recall_score

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]


class _Ranking:
    """Scores sorted once, so that many weightings of their rows are cheap.

    scikit-learn's roc_auc_score gives the same, but sorts anew for each of a bootstrap's thousand
    weightings: forty times slower on 2,624 rows, a minute and a half for a study's table.
    """

    def __init__(self, scores: NDArray[np.floating[Any]], positive: NDArray[np.bool_]) -> None:
        self._order = np.argsort(scores, kind="stable")
        ordered = scores[self._order]
        self._ties = np.flatnonzero(np.r_[True, ordered[1:] > ordered[:-1]])
        self._positive = positive[self._order]

    def auroc(self, weights: NDArray[np.float64]) -> float:
        """Share of (positive, negative) pairs in the right order, ties half, by weight (N,)."""
        weights = weights[self._order]
        positive = np.add.reduceat(weights * self._positive, self._ties)
        negative = np.add.reduceat(weights * ~self._positive, self._ties)
        below = np.cumsum(negative) - negative / 2
        return float(positive @ below / (positive.sum() * negative.sum()))


def _rankings(logits: Logits, labels: Labels) -> list[_Ranking]:
    if logits.shape[1] == 2:
        return [_Ranking(logits[:, 1] - logits[:, 0], labels == 1)]
    # A logit alone ranks nothing: only against the others does it say how probable its class is.
    scores = log_softmax(logits.astype(np.float64), axis=1)
    return [_Ranking(scores[:, k], labels == k) for k in range(logits.shape[1])]


def auroc(logits: Logits, labels: Labels) -> float:
    """Area under the ROC curve: of the last class for two, one-vs-rest and unweighted for more.

    Args:
        logits: (N, K); classes are ranked by their probabilities.
        labels: (N,), each class present.
    """
    once = np.ones(len(labels))
    return float(np.mean([ranking.auroc(once) for ranking in _rankings(logits, labels)]))


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


class _Duel:
    """A pair made ready for many draws of its groups."""

    def __init__(self, pair: Paired) -> None:
        codes, self._members = np.unique(pair.groups, return_inverse=True)
        self._present = np.stack(
            [
                np.bincount(self._members[pair.labels == k], minlength=len(codes)) > 0
                for k in np.unique(pair.labels)
            ]
        )
        self._better = _rankings(pair.better, pair.labels)
        self._worse = _rankings(pair.worse, pair.labels)

    def draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """How often each group is drawn; draws that lack a class are drawn again."""
        groups = self._present.shape[1]
        while True:
            draws = generator.multinomial(groups, np.full(groups, 1 / groups))
            if (self._present & (draws > 0)).any(1).all():
                return draws

    def gain(self, draws: NDArray[np.int64] | None = None) -> float:
        """Difference in AUROC when each group counts as often as it was drawn, or once."""
        count = np.ones(self._present.shape[1]) if draws is None else draws.astype(np.float64)
        weights = count[self._members]
        pairs = zip(self._better, self._worse, strict=True)
        return float(np.mean([a.auroc(weights) - b.auroc(weights) for a, b in pairs]))


def mean_paired_gain(
    pairs: Sequence[Paired], *, resamples: int = 1000, seed: int = 0
) -> dict[str, float]:
    """Mean difference in AUROC of two models over folds and seeds, with its 95 % interval.

    Whole groups are drawn with replacement (cluster bootstrap, Davison & Hinkley 1997, 3.8), the
    same ones for both models and for all pairs on the same groups (the seeds of a fold).

    Returns: gain, low, high (percentile interval).
    """
    generator = np.random.default_rng(seed)
    duels = [(frozenset(pair.groups.tolist()), _Duel(pair)) for pair in pairs]
    drawn = []
    for _ in range(resamples):
        draws: dict[frozenset[int], NDArray[np.int64]] = {}
        for fold, duel in duels:
            if fold not in draws:
                draws[fold] = duel.draw(generator)
        drawn.append(np.mean([duel.gain(draws[fold]) for fold, duel in duels]))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "gain": float(np.mean([duel.gain() for _, duel in duels])),
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
