"""Calibration ships where groups that it was not fitted on gain from it, and only there."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import log_softmax
from scipy.stats import t as student_t

from stages.core.results import calibration, metrics
from stages.core.results.calibration import calibrate, fit_temperature
from stages.core.results.metrics import Labels, Logits


def drawn(n: int, temperature: float, seed: int = 0, k: int = 3) -> tuple[Logits, Labels]:
    """Logits that a temperature makes the true ones, from which the labels are drawn."""
    draws = np.random.default_rng(seed)
    true = draws.normal(0, 1.5, (n, k))
    labels = (true + draws.gumbel(size=true.shape)).argmax(1)
    return (true * temperature).astype(np.float32), labels.astype(np.int64)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, temperature)
    assert fit_temperature(logits, labels, 10.0) == pytest.approx(temperature, rel=0.05)
    assert fit_temperature(logits, labels, 1.5) == pytest.approx(
        np.clip(temperature, 1 / 1.5, 1.5), rel=0.05
    )


def test_what_helps_all_groups_is_shown() -> None:
    logits, labels = drawn(2000, 3.0)
    result = calibrate(logits, labels, np.arange(2000) % 10, 10.0)
    assert result.gain.is_shown
    assert result.temperature == result.fitted == pytest.approx(3, rel=0.2)


def test_what_is_calibrated_already_is_left() -> None:
    """Fitted to the images that judge it, a temperature always seems to help."""
    logits, labels = drawn(400, 1.0)
    result = calibrate(logits, labels, np.arange(400) % 10, 10.0)
    better = metrics.negative_log_likelihood(logits / result.fitted, labels)
    assert better < metrics.negative_log_likelihood(logits, labels)
    assert result.fitted != 1
    assert not result.gain.is_shown
    assert result.temperature == 1


def test_what_helps_one_group_only_is_not_shown() -> None:
    (sure, of_sure), (other, of_other) = drawn(300, 6.0), drawn(300, 1.0, seed=1)
    groups = np.concatenate([np.zeros(300, np.int64), 1 + np.arange(300) % 5])
    logits: Logits = np.concatenate([sure, other])
    labels = np.concatenate([of_sure, of_other])
    result = calibrate(logits, labels, groups, 10.0)
    assert metrics.negative_log_likelihood(logits / result.fitted, labels) < (
        metrics.negative_log_likelihood(logits, labels) - 0.05
    )
    assert not result.gain.is_shown


def naive(logits: Logits, labels: Labels, groups: NDArray[np.int64]) -> tuple[float, float]:
    """Gain of leave-one-group-out temperatures, and the reach of its interval."""
    log_p = log_softmax(logits.astype(np.float64), axis=1)
    gains = np.zeros(len(labels))
    for group in set(groups.tolist()):
        rest, part = groups != group, groups == group
        scaled = log_softmax(logits[part] / fit_temperature(logits[rest], labels[rest], 10.0), 1)
        gains[part] = (scaled - log_p[part])[np.arange(part.sum()), labels[part]]
    left = np.array([gains[groups != group].mean() for group in set(groups.tolist())])
    count = len(left)
    deviation = np.sqrt((count - 1) / count * np.square(left - gains.mean()).sum())
    return float(gains.mean()), float(student_t.ppf(0.975, count - 1) * deviation)


def test_each_group_is_left_out_once() -> None:
    logits, labels = drawn(300, 2.0)
    groups = np.random.default_rng(1).integers(0, 7, 300)
    gain = calibrate(logits, labels, groups, 10.0).gain
    expected, reach = naive(logits, labels, groups)
    assert gain.gain == pytest.approx(expected, abs=1e-6)
    assert gain.low == pytest.approx(expected - reach, abs=1e-6)
    assert gain.high == pytest.approx(expected + reach, abs=1e-6)


def test_as_many_groups_as_images_are_left_out_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = drawn(20_000, 3.0)
    fits: list[int] = []

    def fit(logits: Logits, labels: Labels, highest: float) -> float:
        fits.append(len(labels))
        return 3.0

    monkeypatch.setattr(calibration, "fit_temperature", fit)
    result = calibrate(logits, labels, np.arange(20_000), 10.0)
    assert fits == [20_000] + [19_000] * calibration.MOST_PARTS
    assert result.gain.is_shown


def test_a_single_group_shows_nothing() -> None:
    logits, labels = drawn(300, 3.0)
    result = calibrate(logits, labels, np.zeros(300, np.int64), 10.0)
    assert result.gain.low is result.gain.high is None
    assert result.gain.gain > 0
    assert result.temperature == 1
