"""How good predictions are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import t
from sklearn.metrics import accuracy_score, f1_score, recall_score

from stages.core.results.schema.base import Auroc, Difference, Gain, Quality
from stages.core.runner.errors import DataError

Logits = NDArray[np.float32]
Labels = NDArray[np.int64]
# One number per image and group. Negative for groups that the user did not give: these images are
# in no pair within groups.
Groups = NDArray[np.int64]

ONE_CLASS = "AUROC: found images of one class only, expected two classes at least"


def _scores(logits: Logits) -> list[tuple[int, NDArray[np.floating[Any]]]]:
    """The positive class and the scores (N,) of each ranking: one for two classes, else K."""
    if logits.shape[1] == 2:
        return [(1, logits[:, 1] - logits[:, 0])]
    # A logit alone ranks nothing: only against the others does it say how probable its class is.
    scores = log_softmax(logits.astype(np.float64), axis=1)
    return [(k, scores[:, k]) for k in range(logits.shape[1])]


def _lower(
    counted: NDArray[np.bool_], scores: NDArray[np.floating[Any]], blocks: NDArray[np.int64]
) -> NDArray[np.float64]:
    """How many counted images of its own block score lower than each image; ties count half.

    Args:
        counted, scores, blocks: (N,).
    """
    order = np.lexsort((scores, blocks))
    score, block = scores[order], blocks[order]
    new_block = np.r_[True, block[1:] != block[:-1]]
    new_score = new_block | np.r_[True, score[1:] != score[:-1]]
    total = np.r_[0, np.cumsum(counted[order])]
    starts = np.flatnonzero(new_score)
    before, after = total[starts], total[np.r_[starts[1:], len(order)]]
    block_starts = total[np.flatnonzero(new_block)][np.cumsum(new_block) - 1]
    lower = np.empty(len(order))
    lower[order] = ((before + after) / 2)[np.cumsum(new_score) - 1] - block_starts
    return lower


def auroc(logits: Logits, labels: Labels) -> float:
    """Area under the ROC curve: of the last class for two, one-vs-rest and unweighted for more.

    Args:
        logits: (N, K); classes are ranked by their probabilities.
        labels: (N,); the mean is over the classes that are present.

    Raises: DataError where all labels are the same.
    """
    block = np.zeros(len(labels), dtype=np.int64)
    values = []
    for k, scores in _scores(logits):
        positive = labels == k
        pairs = positive.sum() * (~positive).sum()
        if pairs:
            values.append(_lower(~positive, scores, block)[positive].sum() / pairs)
    if not values:
        raise DataError(ONE_CLASS)
    return float(np.mean(values))


def auroc_within_groups(logits: Logits, labels: Labels, groups: Groups) -> float | None:
    """AUROC over the pairs of images of the same group: what the group is tells nothing here.

    The share of right (positive, negative) pairs, summed over groups; for more than two classes,
    the mean over those that have such pairs. A model that knows only the group scores 0.5.

    Args:
        logits: (N, K).
        labels, groups: (N,).

    Returns: None where no group has two classes.
    """
    given = groups >= 0
    logits, labels, groups = logits[given], labels[given], groups[given]
    values = []
    for k, scores in _scores(logits):
        positive = labels == k
        pairs = _lower(~positive, np.zeros(len(labels)), groups)[positive].sum() * 2
        if pairs:
            values.append(_lower(~positive, scores, groups)[positive].sum() / pairs)
    return float(np.mean(values)) if values else None


def ranking(logits: Logits, labels: Labels, groups: Groups) -> Auroc:
    """AUROC over all pairs of images, and within groups. Raises: DataError, as `auroc`."""
    within = auroc_within_groups(logits, labels, groups)
    figures = {} if within is None else {"auroc_within_groups": within}
    return Auroc(auroc=auroc(logits, labels), **figures)


def group_shares(labels: Labels, groups: Groups, classes: int) -> Logits:
    """Logits (N, K) of a model that knows of an image only how the rest of its group is labelled.

    Its AUROC says how much of such a figure the group alone explains.

    Args:
        labels, groups: (N,).
    """
    _, members = np.unique(groups, return_inverse=True)
    own = np.eye(classes)[labels]
    counts = np.zeros((int(members.max()) + 1, classes))
    np.add.at(counts, members, own)
    others = counts[members] - own
    # Far below the share of one image in any group, since 0 has no logarithm.
    shares = others / np.maximum(others.sum(1, keepdims=True), 1) + 1e-12
    logits: Logits = np.log(shares).astype(np.float32)
    return logits


def expected_calibration_error(logits: Logits, labels: Labels, *, bins: int = 15) -> float:
    """ECE of the top class: |accuracy - confidence|, averaged over equal-width bins (0 to 1).

    Source: Naeini et al. 2015, as used by Guo et al. 2017 (arXiv 1706.04599), equation 3.
    """
    probabilities = softmax(logits.astype(np.float64), axis=1)
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / len(labels))


def cross_entropies(logits: Logits, labels: Labels) -> NDArray[np.float64]:
    """Cross-entropy of each image, (N,), in nats."""
    log_p: NDArray[np.float64] = log_softmax(logits.astype(np.float64), axis=1)
    return -log_p[np.arange(len(labels)), labels]


def negative_log_likelihood(logits: Logits, labels: Labels) -> float:
    """Mean cross-entropy in nats."""
    return float(cross_entropies(logits, labels).mean())


def classification(logits: Logits, labels: Labels, groups: Groups, classes: list[str]) -> Quality:
    """All figures of one model on one split."""
    decided = logits.argmax(1)
    recall = recall_score(labels, decided, average=None, labels=range(len(classes)))
    return Quality(
        **ranking(logits, labels, groups).model_dump(exclude_unset=True),
        accuracy=float(accuracy_score(labels, decided)),
        macro_f1=float(f1_score(labels, decided, average="macro")),
        ece=expected_calibration_error(logits, labels),
        nll=negative_log_likelihood(logits, labels),
        recall={name: float(r) for name, r in zip(classes, recall, strict=True)},
    )


@dataclass(frozen=True)
class Paired:
    """Two models on the same images: logits (N, K) twice, labels (N,), groups (N,)."""

    better: Logits
    worse: Logits
    labels: Labels
    groups: Groups


@dataclass(frozen=True)
class _Estimate:
    """A gain, and what it is with each group left out, by group; NaN where no pair is left."""

    gain: float
    without: dict[int, float]


def _leaving_out(
    logits: Logits, labels: Labels, members: NDArray[np.int64], mixed: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUROC with each group left out, and with none: over all pairs, and over those within groups.

    From sums over pairs, so that many groups cost no more than few.

    Args:
        members: (N,), each image's group as a number in 0 to G - 1.
        mixed: (G,), whether the group has pairs within it.

    Returns: two arrays (number of rankings, G + 1); in the last column, no group is left out. NaN
        where no pair is left.
    """
    block, ones = np.zeros(len(labels), dtype=np.int64), np.ones(len(labels))

    def per_group(values: NDArray[np.float64], rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        sums = np.bincount(members[rows], values[rows], minlength=len(mixed))
        return sums.astype(np.float64)

    def left(whole: float, lost: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.append(whole - lost, whole)

    def share(right: NDArray[np.float64], pairs: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.where(pairs > 0, right / np.maximum(pairs, 1), np.nan)

    overall, within = [], []
    for k, scores in _scores(logits):
        positive = labels == k
        lower = _lower(~positive, scores, block)
        higher = positive.sum() - _lower(positive, scores, block)
        own = per_group(_lower(~positive, scores, members), positive)
        lost = per_group(lower, positive) + per_group(higher, ~positive) - own
        inside, outside = per_group(ones, positive), per_group(ones, ~positive)
        pairs = left(inside.sum(), inside) * left(outside.sum(), outside)
        overall.append(share(left(lower[positive].sum(), lost), pairs))
        right, pairs = own * mixed, inside * outside * mixed
        within.append(share(left(right.sum(), right), left(pairs.sum(), pairs)))
    return np.array(overall), np.array(within)


def _gains(pair: Paired) -> tuple[_Estimate, _Estimate]:
    """The gain over all pairs of images, and within groups, where only those with pairs count."""
    groups, members = np.unique(pair.groups, return_inverse=True)
    classes = np.unique(np.stack([members, pair.labels]), axis=1)[0]
    mixed = (np.bincount(classes, minlength=len(groups)) > 1) & (groups >= 0)
    aurocs = (_leaving_out(x, pair.labels, members, mixed) for x in (pair.better, pair.worse))
    estimates = []
    for better, worse in zip(*aurocs, strict=True):
        each = better - worse
        counts = np.isfinite(each).sum(0)
        gains = np.where(counts > 0, np.nansum(each, axis=0) / np.maximum(counts, 1), np.nan)
        every = zip(groups.tolist(), gains[:-1].tolist(), strict=True)
        estimates.append(_Estimate(float(gains[-1]), dict(every)))
    overall, within = estimates
    if np.isnan(overall.gain):
        raise DataError(ONE_CLASS)
    of_mixed = {group: within.without[group] for group in groups[mixed].tolist()}
    return overall, _Estimate(within.gain, of_mixed)


def _difference(estimates: Sequence[_Estimate]) -> Difference:
    """The mean gain with its interval; see `mean_paired_gain`."""
    groups = sorted(set().union(*(each.without for each in estimates)))
    left = np.array(
        [[each.without.get(group, each.gain) for group in groups] for each in estimates]
    ).mean(0)
    gain, count = float(np.mean([each.gain for each in estimates])), len(groups)
    if count < 2 or not np.isfinite(left).all():
        return Difference(gain=gain, low=None, high=None)
    deviation = float(np.sqrt((count - 1) / count * np.square(left - gain).sum()))
    reach = float(t.ppf(0.975, count - 1)) * deviation
    return Difference(gain=gain, low=gain - reach, high=gain + reach)


def mean_paired_gain(pairs: Sequence[Paired]) -> Gain:
    """Mean difference in AUROC of two models over folds and seeds, with its 95 % interval.

    Overall, and within groups (`auroc_within_groups`), over those folds where groups have two
    classes; without the latter where there is none.

    Each group is left out once, in all pairs in which it occurs: the cluster jackknife, with
    Student's t of G - 1 degrees of freedom (Tukey 1958; Cameron & Miller 2015, section VI). It is
    deterministic, and covers at least 94 % of the time with 11 groups as with 44, which a cluster
    bootstrap's percentiles do not (see tests/core/results/test_coverage.py). Within groups, G is
    the number of groups that have two classes.

    Without an interval (None) where there is a single group, or where all images of a class, or all
    pairs within groups, are in one group: nothing says then how groups differ.

    Raises: DataError, as `auroc`.
    """
    overall, every = zip(*map(_gains, pairs), strict=True)
    within = [each for each in every if each.without]
    inside: dict[str, Any] = {"within_groups": _difference(within)} if within else {}
    return Gain(**_difference(overall).model_dump(), **inside)


def paired_gain(better: Logits, worse: Logits, labels: Labels, groups: Groups) -> Gain:
    """Difference in AUROC of two models on the same images; see `mean_paired_gain`."""
    return mean_paired_gain([Paired(better, worse, labels, groups)])


def paired_reduction(
    better: NDArray[np.float64], worse: NDArray[np.float64], groups: Groups
) -> Difference:
    """How much lower one mean loss is than another on the same images; see `mean_paired_gain`.

    Args:
        better, worse, groups: (N,); the losses of each image, and its group.
    """
    names, members = np.unique(groups, return_inverse=True)
    lower = worse - better
    rest = len(lower) - np.bincount(members)
    # A single group leaves no image.
    left = (lower.sum() - np.bincount(members, lower)) / np.maximum(rest, 1)
    without = dict(zip(names.tolist(), left.tolist(), strict=True))
    return _difference([_Estimate(float(lower.mean()), without)])


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
