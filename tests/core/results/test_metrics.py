from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from scipy.stats import t as student_t
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.image.kid import poly_mmd

from stages.core.results import metrics
from stages.core.results.metrics import Logits, Paired
from stages.core.results.schema.base import Difference
from stages.core.runner.errors import DataError

Floats = NDArray[np.floating[Any]]


def random_logits(n: int, k: int, seed: int = 0) -> tuple[Logits, NDArray[np.int64]]:
    draws = np.random.default_rng(seed)
    labels = draws.integers(k, size=n)
    logits = draws.normal(size=(n, k)) + 1.2 * np.eye(k)[labels]
    return logits.astype(np.float32), labels.astype(np.int64)


def quarters(logits: Floats) -> Logits:
    """Rounded so that there are ties, and that differences are exact."""
    return (np.round(4 * logits) / 4).astype(np.float32)


def test_auroc_of_two_classes_is_of_the_last() -> None:
    logits, labels = random_logits(200, 2)
    theirs = roc_auc_score(labels, logits[:, 1] - logits[:, 0])
    assert metrics.auroc(logits, labels) == pytest.approx(theirs)
    assert metrics.auroc(-logits, labels) == pytest.approx(1 - metrics.auroc(logits, labels))


def test_auroc_of_many_classes_is_one_against_rest() -> None:
    logits, labels = random_logits(300, 4)
    naive = []
    probabilities = softmax(logits, axis=1)
    for k in range(4):
        inside, outside = probabilities[labels == k, k], probabilities[labels != k, k]
        naive.append((inside[:, None] > outside[None]).mean())
    assert metrics.auroc(logits, labels) == pytest.approx(np.mean(naive))


@pytest.mark.parametrize("k", [2, 3])
def test_auroc_is_of_probabilities_with_ties_as_scikit_learn_has_it(k: int) -> None:
    draws = np.random.default_rng(1)
    logits, labels = random_logits(300, k)
    # What the logits of one image have in common says nothing about its class.
    common = draws.normal(size=(300, 1)).astype(np.float32)
    logits = (logits + common)[draws.integers(100, size=300)]
    p = softmax(logits, axis=1)
    theirs = roc_auc_score(labels, p[:, 1] if k == 2 else p, multi_class="ovr")
    assert metrics.auroc(logits, labels) == pytest.approx(theirs)


@pytest.mark.parametrize("k", [2, 5])
def test_calibration_error_is_torchmetrics(k: int) -> None:
    logits, labels = random_logits(500, k)
    theirs = multiclass_calibration_error(
        torch.from_numpy(logits).double().softmax(1), torch.from_numpy(labels), k, n_bins=15
    )
    assert metrics.expected_calibration_error(logits, labels) == pytest.approx(
        float(theirs), abs=1e-6
    )


def test_kernel_distance_is_torchmetrics_at_equal_sizes() -> None:
    draws = np.random.default_rng(1)
    x = draws.normal(size=(40, 7)).astype(np.float32)
    y = draws.normal(0.3, 1.2, size=(40, 7)).astype(np.float32)
    theirs = poly_mmd(torch.from_numpy(x).double(), torch.from_numpy(y).double())
    assert metrics.kernel_distance(x, y) == pytest.approx(float(theirs), rel=1e-6)


def test_kernel_distance_tells_distributions_apart() -> None:
    draws = np.random.default_rng(2)
    x, y = draws.normal(size=(2, 300, 5)).astype(np.float32)
    assert abs(metrics.kernel_distance(x, y)) < 0.1
    assert metrics.kernel_distance(x, y + 1) > 1


def test_auroc_is_over_the_classes_that_are_present() -> None:
    logits, labels = random_logits(300, 4)
    rows = labels != 2
    p = softmax(logits[rows], axis=1)
    naive = [roc_auc_score(labels[rows] == k, p[:, k]) for k in (0, 1, 3)]
    assert metrics.auroc(logits[rows], labels[rows]) == pytest.approx(np.mean(naive))
    with pytest.raises(DataError, match="found images of one class only"):
        metrics.auroc(logits[:, :2], np.ones(300, np.int64))


@pytest.mark.parametrize("k", [2, 3])
def test_auroc_within_groups_is_of_pairs_of_one_group(k: int) -> None:
    draws = np.random.default_rng(9)
    logits, labels = random_logits(200, k)
    logits = quarters(logits)
    groups = draws.integers(0, 12, 200)
    scores = softmax(logits.astype(np.float64), axis=1)
    naive = []
    for c in range(1, 2) if k == 2 else range(k):
        right, pairs = 0.0, 0
        for i in np.flatnonzero(labels == c):
            for j in np.flatnonzero((labels != c) & (groups == groups[i])):
                right += (scores[i, c] > scores[j, c]) + 0.5 * (scores[i, c] == scores[j, c])
                pairs += 1
        naive.append(right / pairs)
    assert metrics.auroc_within_groups(logits, labels, groups) == pytest.approx(np.mean(naive))


def test_knowing_only_the_group_scores_one_half_within_groups() -> None:
    groups = np.repeat(np.arange(10), 20)
    labels = (np.random.default_rng(0).random(200) < groups / 10).astype(np.int64)
    logits = np.stack([np.zeros(200), groups], 1).astype(np.float32)
    assert metrics.auroc(logits, labels) > 0.75
    assert metrics.auroc_within_groups(logits, labels, groups) == 0.5
    assert metrics.auroc_within_groups(logits, labels, np.arange(200)) is None


def test_images_of_negative_groups_are_in_no_pair_within_groups() -> None:
    logits, labels = random_logits(120, 3)
    groups = np.arange(120) // 10
    given = groups < 7
    some = np.where(given, groups, -1 - groups)
    expected = metrics.auroc_within_groups(logits[given], labels[given], groups[given])
    assert metrics.auroc_within_groups(logits, labels, some) == expected
    assert metrics.auroc_within_groups(logits, labels, -1 - groups) is None
    pairs = [Paired(logits, -logits, labels, each) for each in (groups, some, -1 - groups)]
    all_given, some_given, none_given = map(metrics.mean_paired_gain, [[pair] for pair in pairs])
    # Overall, they count for the interval as before.
    assert interval(some_given) == interval(none_given) == interval(all_given)
    part = metrics.paired_gain(logits[given], -logits[given], labels[given], groups[given])
    assert some_given.within_groups == part.within_groups != all_given.within_groups
    assert none_given.within_groups is None


def test_a_ranking_is_overall_and_within_groups() -> None:
    logits, labels = random_logits(60, 2)
    groups = np.arange(60) // 6
    both = {
        "auroc": metrics.auroc(logits, labels),
        "auroc_within_groups": metrics.auroc_within_groups(logits, labels, groups),
    }
    assert metrics.ranking(logits, labels, groups).model_dump(exclude_unset=True) == both
    quality = metrics.classification(logits, labels, groups, ["a", "b"]).model_dump()
    assert {key: quality[key] for key in both} == both
    alone = metrics.ranking(logits, labels, np.arange(60)).model_dump(exclude_unset=True)
    assert alone == {"auroc": both["auroc"]}


def test_what_the_group_tells_is_how_its_other_images_are_labelled() -> None:
    draws = np.random.default_rng(2)
    groups = np.append(draws.integers(0, 8, 90), 99)
    labels = (draws.random(91) < groups / 12).astype(np.int64)
    shares = []
    for i in range(90):
        others = labels[(groups == groups[i]) & (np.arange(91) != i)]
        shares.append(others.mean())
    # Nothing is known of the image that is alone in its group.
    expected = roc_auc_score(labels, [*shares, 0.5])
    assert metrics.auroc(metrics.group_shares(labels, groups, 2), labels) == pytest.approx(expected)


def test_paired_gain_of_a_model_over_itself_is_zero() -> None:
    logits, labels = random_logits(120, 2)
    gain = metrics.paired_gain(logits, logits, labels, np.repeat(np.arange(12), 10))
    nothing = {"gain": 0.0, "low": 0.0, "high": 0.0}
    assert gain.model_dump() == nothing | {"within_groups": nothing}


def interval(gain: Difference | None) -> tuple[float, float]:
    assert gain is not None
    assert gain.low is not None
    assert gain.high is not None
    return gain.low, gain.high


def test_paired_gain_is_wider_for_fewer_groups() -> None:
    good, labels = random_logits(240, 2, seed=3)
    bad = good + np.random.default_rng(4).normal(0, 3, good.shape).astype(np.float32)
    few = metrics.paired_gain(good, bad, labels, np.repeat(np.arange(4), 60))
    many = metrics.paired_gain(good, bad, labels, np.arange(240))
    assert few.gain == many.gain > 0
    (low, high), (narrow_low, narrow_high) = interval(few), interval(many)
    assert low < few.gain < high
    assert 0 < narrow_low < narrow_high
    assert high - low > narrow_high - narrow_low


def naive_gain(pair: Paired, rows: NDArray[np.int64]) -> float:
    """Difference in AUROC on some rows, over the classes that are among them."""
    labels = pair.labels[rows]
    k = pair.better.shape[1]
    classes = [1] if k == 2 else [c for c in range(k) if (labels == c).any()]
    each = [
        roc_auc_score(labels == c, log_softmax(pair.better[rows].astype(np.float64), axis=1)[:, c])
        - roc_auc_score(labels == c, log_softmax(pair.worse[rows].astype(np.float64), axis=1)[:, c])
        for c in classes
    ]
    return float(np.mean(each))


def random_pair(k: int, groups: NDArray[np.int64], seed: int) -> Paired:
    good, labels = random_logits(len(groups), k, seed)
    noise = np.random.default_rng(seed + 1).normal(0, 1, good.shape)
    return Paired(quarters(good), quarters(good + noise), labels, groups)


@pytest.mark.parametrize("k", [2, 3])
def test_interval_is_the_jackknife_over_folds_and_seeds(k: int) -> None:
    """Two seeds of a fold, and a fold that shares some of its groups."""
    draws = np.random.default_rng(8)
    fold, other = draws.integers(0, 9, 200), draws.integers(6, 14, 150)
    pairs = [random_pair(k, groups, seed) for seed, groups in enumerate((fold, fold, other))]
    every = sorted({*fold.tolist(), *other.tolist()})
    gain = np.mean([naive_gain(pair, np.arange(len(pair.labels))) for pair in pairs])
    without = [
        np.mean([naive_gain(pair, np.flatnonzero(pair.groups != group)) for pair in pairs])
        for group in every
    ]
    count = len(every)
    deviation = np.sqrt((count - 1) / count * sum((value - gain) ** 2 for value in without))
    result = metrics.mean_paired_gain(pairs)
    assert result.gain == pytest.approx(gain)
    reach = student_t.ppf(0.975, count - 1) * deviation
    assert interval(result) == pytest.approx((gain - reach, gain + reach))


@pytest.mark.parametrize("k", [2, 3])
def test_the_interval_within_groups_is_the_jackknife_over_groups_with_pairs(k: int) -> None:
    """Two seeds of a fold, and a fold that shares some of its groups; some hold one class only."""
    draws = np.random.default_rng(8)
    fold, other = draws.integers(0, 9, 200), draws.integers(6, 14, 150)
    pairs = []
    for seed, groups in enumerate((fold, fold, other)):
        pair = random_pair(k, groups, seed)
        keep = ~((pair.groups == 3) & (pair.labels != 1))
        rows = [x[keep] for x in (pair.better, pair.worse, pair.labels, pair.groups)]
        pairs.append(Paired(*rows))

    def gain_without(group: int) -> float:
        gains = []
        for pair in pairs:
            rows = pair.groups != group
            labels, groups = pair.labels[rows], pair.groups[rows]
            better, worse = (
                metrics.auroc_within_groups(logits[rows], labels, groups)
                for logits in (pair.better, pair.worse)
            )
            assert better is not None
            assert worse is not None
            gains.append(better - worse)
        return float(np.mean(gains))

    mixed = sorted({*fold.tolist(), *other.tolist()} - {3})
    gain, count = gain_without(-1), len(mixed)
    squares = sum((gain_without(group) - gain) ** 2 for group in mixed)
    reach = student_t.ppf(0.975, count - 1) * np.sqrt((count - 1) / count * squares)
    within = metrics.mean_paired_gain(pairs).within_groups
    assert interval(within) == pytest.approx((gain - reach, gain + reach))


def test_a_fold_without_pairs_within_groups_is_left_out_there() -> None:
    pair = random_pair(2, np.arange(120) // 10, 0)
    one_class = random_pair(2, 100 + np.arange(90), 1)
    both, one = metrics.mean_paired_gain([pair, one_class]), metrics.mean_paired_gain([pair])
    assert both.within_groups == one.within_groups is not None
    assert both.gain != one.gain
    assert metrics.mean_paired_gain([one_class]).within_groups is None


def test_no_interval_within_groups_where_one_group_has_all_pairs() -> None:
    groups = np.append(np.zeros(40, np.int64), np.arange(1, 61))
    gain = metrics.mean_paired_gain([random_pair(2, groups, 0)])
    interval(gain)
    within = gain.within_groups
    assert within is not None
    assert within.low is within.high is None


def test_cross_entropy_of_each_image_is_of_its_label() -> None:
    logits, labels = random_logits(50, 3)
    naive = [-log_softmax(x.astype(np.float64))[y] for x, y in zip(logits, labels, strict=True)]
    assert metrics.cross_entropies(logits, labels) == pytest.approx(naive)
    assert metrics.negative_log_likelihood(logits, labels) == pytest.approx(np.mean(naive))


def test_interval_of_a_loss_is_the_jackknife() -> None:
    draws = np.random.default_rng(3)
    groups = draws.integers(0, 9, 120)
    worse = draws.exponential(size=120)
    better = worse - draws.normal(0.1, 0.2, 120)
    left = np.array([(worse - better)[groups != g].mean() for g in range(9)])
    gain = (worse - better).mean()
    reach = student_t.ppf(0.975, 8) * np.sqrt(8 / 9 * np.square(left - gain).sum())
    result = metrics.paired_reduction(better, worse, groups)
    assert result.gain == pytest.approx(gain)
    assert (result.low, result.high) == pytest.approx((gain - reach, gain + reach))
    one = metrics.paired_reduction(better, worse, np.zeros(120, np.int64))
    assert one == Difference(gain=result.gain, low=None, high=None)


def test_only_what_is_clear_of_zero_is_shown() -> None:
    assert Difference(gain=0.2, low=0.1, high=0.3).is_shown
    for low, high in ((0.0, 0.4), (-0.1, 0.5), (None, None), (-0.4, -0.1)):
        assert not Difference(gain=0.2, low=low, high=high).is_shown


def test_groups_that_hold_one_class_only_have_an_interval() -> None:
    logits, labels = random_logits(60, 2, seed=5)
    order = np.argsort(labels, kind="stable")
    worse = random_logits(60, 2, seed=6)[0]
    gain = metrics.paired_gain(
        logits[order], worse[order], labels[order], np.repeat(np.arange(6), 10)
    )
    assert np.isfinite(interval(gain)).all()


@pytest.mark.timeout(60)
@pytest.mark.parametrize("mixed", [False, True])
def test_many_classes_of_few_groups_are_done_at_once(mixed: bool) -> None:
    """20 classes of 4 patients each: a bootstrap's draw that holds all of them never comes.

    With `mixed`, a few images of each patient are of another class, which has no other pairs.
    """
    labels = np.repeat(np.arange(20), 40)
    patients = np.repeat(np.arange(80), 10)
    if mixed:
        patients[::10] = (patients[::10] + 4) % 80
    draws = np.random.default_rng(0)
    better, worse = (
        (draws.normal(size=(800, 20)) + strength * np.eye(20)[labels]).astype(np.float32)
        for strength in (2, 1)
    )
    gain = metrics.paired_gain(better, worse, labels, patients)
    assert 0 < interval(gain)[0] < gain.gain
    if mixed:
        assert np.isfinite(interval(gain.within_groups)).all()
    else:
        assert gain.within_groups is None


@pytest.mark.timeout(60)
def test_as_many_groups_as_images_are_done_at_once() -> None:
    pair = random_pair(5, np.arange(20_000), 0)
    pairs = random_pair(5, np.arange(20_000) // 2, 0)
    interval(metrics.mean_paired_gain([pair]))
    interval(metrics.mean_paired_gain([pairs]).within_groups)


@pytest.mark.parametrize("groups", [[0] * 60, [0] * 30 + [1] * 15 + [2] * 15])
def test_no_interval_where_nothing_says_how_groups_differ(groups: list[int]) -> None:
    """A single group, and all images of a class in one group."""
    logits, _ = random_logits(60, 2)
    labels = np.repeat([1, 0], 30)
    gain = metrics.paired_gain(logits, -logits, labels, np.array(groups))
    assert gain.low is gain.high is None
    assert str(gain) == f"{gain.gain:+.3f} [no interval: too few groups]"


def test_a_class_that_is_missing_from_test_is_left_out() -> None:
    pair = random_pair(4, np.arange(200) % 8, 3)
    rows = np.flatnonzero(pair.labels != 2)
    gain = metrics.paired_gain(
        pair.better[rows], pair.worse[rows], pair.labels[rows], pair.groups[rows]
    )
    assert gain.gain == pytest.approx(naive_gain(pair, rows))
    assert np.isfinite(interval(gain)).all()
