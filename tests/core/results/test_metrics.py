import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.image.kid import poly_mmd

from stages.core.results import metrics


def random_logits(n: int, k: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    labels = draws.integers(k, size=n)
    logits = draws.normal(size=(n, k)) + 1.2 * np.eye(k)[labels]
    return logits.astype(np.float32), labels.astype(np.int64)


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
    logits = (logits + draws.normal(size=(300, 1)))[draws.integers(100, size=300)]
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


def test_paired_gain_of_a_model_over_itself_is_zero() -> None:
    logits, labels = random_logits(120, 2)
    groups = np.repeat(np.arange(12), 10)
    gain = metrics.paired_gain(logits, logits, labels, groups, resamples=50)
    assert gain == {"gain": 0.0, "low": 0.0, "high": 0.0}


def test_paired_gain_is_wider_for_fewer_groups() -> None:
    good, labels = random_logits(240, 2, seed=3)
    bad = good + np.random.default_rng(4).normal(0, 3, good.shape).astype(np.float32)
    few = metrics.paired_gain(good, bad, labels, np.repeat(np.arange(4), 60), resamples=200)
    many = metrics.paired_gain(good, bad, labels, np.arange(240), resamples=200)
    assert few["gain"] == many["gain"] > 0
    assert few["low"] <= few["gain"] <= few["high"]
    assert many["low"] > 0


def test_interval_is_the_one_that_scikit_learn_gives() -> None:
    good, labels = random_logits(200, 3, seed=6)
    bad = good + np.random.default_rng(7).normal(0, 1, good.shape).astype(np.float32)
    groups = np.random.default_rng(8).integers(0, 9, 200)
    generator, naive = np.random.default_rng(0), []
    for _ in range(30):
        weights = generator.multinomial(9, np.full(9, 1 / 9))[groups]
        one, other = (
            np.mean(
                [
                    roc_auc_score(labels == k, softmax(x, axis=1)[:, k], sample_weight=weights)
                    for k in range(3)
                ]
            )
            for x in (good, bad)
        )
        naive.append(one - other)
    found = metrics.paired_gain(good, bad, labels, groups, resamples=30)
    assert [found["low"], found["high"]] == pytest.approx(np.quantile(naive, [0.025, 0.975]))


def test_paired_gain_draws_groups_that_hold_one_class_only() -> None:
    logits, labels = random_logits(60, 2, seed=5)
    order = np.argsort(labels, kind="stable")
    gain = metrics.paired_gain(
        logits[order], logits[order] * 0.5, labels[order], np.repeat(np.arange(6), 10), resamples=50
    )
    assert np.isfinite(list(gain.values())).all()
