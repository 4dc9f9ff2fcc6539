import tracemalloc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.special import expit
from scipy.stats import beta, t

from stages.core.release import predict
from stages.core.results import operating_point
from stages.core.results.operating_point import CONFIDENCE, OperatingPoint, choose, decisions
from stages.core.results.schema.shipped import Thresholds
from stages.core.runner.errors import ParamsError

CLASSES = ["good", "bad"]


def point(
    recall: float | None = 0.95, false_alarms: float | None = 0.05, label: Any = None
) -> OperatingPoint:
    return OperatingPoint(label=label, min_recall=recall, max_false_alarms=false_alarms)


def images(seed: int, groups: int, *, each: int = 60, spread: float = 0.3) -> tuple[Any, Any, Any]:
    """Probabilities, labels and groups; groups differ by an offset, as modules and cameras do."""
    draws = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), each)
    label = (draws.random(groups * each) < 0.4).astype(np.int64)
    offset = draws.normal(0, spread, groups)[group]
    logit = 1.7 * (2 * label - 1) + draws.normal(0, 1.2, len(label)) + offset
    p = 1 / (1 + np.exp(-logit))
    return np.stack([1 - p, p], 1), label, group


def test_the_bound_is_the_larger_of_two() -> None:
    # Of three groups with 20 images each, none is below the first score, 3, 9 and 0 the second one.
    scores = np.repeat([0.5, 0.1, 0.5, 0.1, 0.5], [17, 3, 11, 9, 20])
    distinct, result = operating_point.highest_rates(scores, np.repeat([7, 3, 5], 20))
    assert distinct.tolist() == [0.1, 0.5]
    # Without a hit, groups do not differ; but at that rate most samples of 60 have one.
    assert result[0] == pytest.approx(beta.ppf(CONFIDENCE, 1, 60))
    assert (1 - result[0]) ** 60 == pytest.approx(1 - CONFIDENCE)
    left = [(9 + 0) / 40, 3 / 40, 12 / 40]
    deviation = np.sqrt(2 / 3 * sum((each - 12 / 60) ** 2 for each in left))
    reach = t.ppf(CONFIDENCE, 2) * deviation / (0.2 * 0.8)
    assert np.log(result[1] / (1 - result[1])) == pytest.approx(np.log(0.25) + reach)


def test_the_bound_is_the_jackknife_with_groups_left_out_one_by_one() -> None:
    draws = np.random.default_rng(0)
    groups = draws.choice(8, 300, p=np.arange(1, 9) / 36)
    scores = draws.normal(0.3 * groups, 1).round(1)
    distinct, result = operating_point.highest_rates(scores, groups)
    for score, bound in zip(distinct, result, strict=True):
        below = scores < score
        left = [below[groups != group].mean() for group in range(8)]
        rate = below.mean().clip(1e-9)
        deviation = np.sqrt(7 / 8 * np.square(left - below.mean()).sum())
        odds = rate / (1 - rate) * np.exp(t.ppf(CONFIDENCE, 7) * deviation / (rate * (1 - rate)))
        by_image = beta.ppf(CONFIDENCE, below.sum() + 1, (~below).sum())
        assert bound == pytest.approx(max(odds / (1 + odds), by_image), rel=1e-9)


def test_many_images_without_groups_take_little_memory() -> None:
    count = 20_000
    draws = np.random.default_rng(0)
    label = (draws.random(count) < 0.3).astype(np.int64)
    p = expit(draws.normal(3 * label, 1))
    tracemalloc.start()
    at = choose(point(), CLASSES, np.stack([1 - p, p], 1), label, -1 - np.arange(count))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 500 * count
    assert 0 < at.low < at.high < 1


def test_promises_are_kept_on_other_groups() -> None:
    """On most validation splits, with few groups as with many; a bare quantile keeps half."""
    for groups in (7, 25):
        is_kept: dict[str, list[bool]] = {"recall": [], "false_alarms": []}
        asked = []
        for seed in range(60):
            thresholds = choose(point(), CLASSES, *images(seed, groups))
            p, label, _ = images(1000 + seed, 200)
            result = decisions(p, label, 1, thresholds)
            is_kept["recall"].append(result.recall >= 0.95)
            is_kept["false_alarms"].append(result.false_alarms <= 0.05)
            asked.append(result.asked)
        assert all(np.mean(each) >= 0.8 for each in is_kept.values()), (groups, is_kept, asked)
        assert 0.05 < np.mean(asked) < 0.6


def test_it_asks_more_where_groups_are_few_or_differ() -> None:
    def asked(groups: int, spread: float) -> float:
        shares = []
        for seed in range(20):
            thresholds = choose(point(), CLASSES, *images(seed, groups, spread=spread))
            p, label, _ = images(1000 + seed, 200, spread=spread)
            shares.append(decisions(p, label, 1, thresholds).asked)
        return float(np.mean(shares))

    assert asked(25, 0.3) < asked(6, 0.3)
    assert asked(25, 0.1) < asked(25, 1.0)


def test_a_single_promise_asks_nobody() -> None:
    p, label, group = images(0, 10)
    both = choose(point(), CLASSES, p, label, group)
    at = choose(point(false_alarms=None), CLASSES, p, label, group)
    assert at.low == at.high == both.low
    at = choose(point(recall=None), CLASSES, p, label, group)
    assert at.low == at.high == both.high
    for alone in (point(false_alarms=None), point(recall=None)):
        few = choose(alone, CLASSES, *images(0, 3))
        assert (few.low, few.high) == (0, 2), "nothing can be promised: a person sees all"
        said = operating_point.cannot_be_promised(alone, CLASSES, *images(0, 3)[1:])
        assert len(said) == 1
        at = choose(alone, CLASSES, p, label, group)
        promise = alone.promise(CLASSES, at, p, label, group)
        assert promise.test.asked == 0
        assert (promise.recall_margin is None) == (alone.min_recall is None)
        assert (promise.false_alarm_margin is None) == (alone.max_false_alarms is None)
    with pytest.raises(ValidationError, match="a number for min_recall, max_false_alarms, or both"):
        point(None, None)


def test_margins_say_how_promises_are_kept() -> None:
    p, label, group = images(0, 20)
    at = Thresholds(low=0.3, high=0.8)
    promise = point(0.9, 0.2).promise(CLASSES, at, p, label, group)
    recall, alarms = promise.recall_margin, promise.false_alarm_margin
    assert recall is not None
    assert alarms is not None
    assert recall.gain == pytest.approx(promise.test.recall - 0.9)
    assert alarms.gain == pytest.approx(0.2 - promise.test.false_alarms)
    for each in (recall, alarms):
        assert each.low is not None
        assert each.high is not None
        assert each.low < each.gain < each.high
    assert operating_point.margin(label == 1, np.zeros(len(label), np.int64), 0.5).low is None
    # Without a hit, and with nothing but hits, Clopper and Pearson's bounds.
    for hits in (np.zeros(60, bool), np.ones(60, bool)):
        sure = operating_point.margin(hits, np.arange(60) // 6, 0.0)
        ends = [-float(hits.mean()), -float(beta.ppf(0.975, 1, 60))]
        ends = ends if not hits[0] else [ends[0], -float(beta.ppf(0.025, 60, 1))]
        assert [sure.low, sure.high] == pytest.approx(sorted(ends), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [5, 11, 44])
def test_margins_cover(groups: int) -> None:
    """And a promise that is just kept is seldom called broken."""
    at = Thresholds(low=0.2, high=0.8)
    many = decisions(*images(0, 20_000, spread=0.5)[:2], 1, at)
    wanted = point(round(many.recall, 6), round(many.false_alarms, 6))
    covered, broken = [], []
    for seed in range(1, 1001):
        promise = wanted.promise(CLASSES, at, *images(seed, groups, spread=0.5))
        for margin in (promise.recall_margin, promise.false_alarm_margin):
            assert margin is not None
            assert margin.low is not None
            assert margin.high is not None
            covered.append(margin.low <= 0 <= margin.high)
            broken.append(margin.high < 0)
    assert np.mean(covered) >= 0.93, np.mean(covered)
    assert np.mean(broken) <= 0.03, np.mean(broken)


def test_too_few_groups_leave_everything_to_a_person() -> None:
    for p, label, group in (images(0, 1), images(0, 2, each=3)):
        thresholds = choose(point(0.99, 0.01), CLASSES, p, label, group)
        assert (thresholds.low, thresholds.high) == (0, 2)
        assert decisions(p, label, 1, thresholds).asked == 1


def test_fewer_groups_than_were_simulated_promise_nothing() -> None:
    """However clear their images are: a group that is not among them may be another matter."""
    for groups in (2, 4, 5):
        p, label, group = images(0, groups, each=200)
        clear = 0.1 * p[:, 1] + 0.8 * label
        thresholds = [
            choose(wanted, CLASSES, np.stack([1 - clear, clear], 1), label, group)
            for wanted in (point(), point(0.8, 0.2))
        ]
        said = operating_point.cannot_be_promised(point(), CLASSES, label, group)
        if groups == 5:
            assert said == []
            assert all(0.1 < at.low == at.high < 0.9 for at in thresholds)
            continue
        assert all((at.low, at.high) == (0, 2) for at in thresholds)
        assert said == [
            f"nothing can be promised about images of {whose}: validation has {groups} groups of "
            "them, and 5 are needed; all go to a person until you give validation more groups "
            "(validate.val_folds)"
            for whose in ("bad", "other classes than bad")
        ]
    alone = choose(point(), CLASSES, np.stack([1 - clear, clear], 1), label, -1 - np.arange(1000))
    assert 0 < alone.low == alone.high < 1


def test_groups_without_images_of_the_class_do_not_count() -> None:
    p, label, group = images(0, 8, each=200)
    clear = 0.1 * p[:, 1] + 0.8 * label
    keep = (label == 0) | (group < 3)
    rest = [values[keep] for values in (np.stack([1 - clear, clear], 1), label, group)]
    at = choose(point(), CLASSES, *rest)
    assert at.low == 0
    assert 0 < at.high < 1


def test_one_threshold_is_enough_where_classes_are_far_apart() -> None:
    p, label, group = images(0, 10, spread=0)
    clear = np.where(label == 1, 0.99, 0.01) + 0.005 * (p[:, 1] - 0.5)
    thresholds = choose(point(), CLASSES, np.stack([1 - clear, clear], 1), label, group)
    assert thresholds.low == thresholds.high
    assert 0.02 < thresholds.low < 0.98
    result = decisions(np.stack([1 - clear, clear], 1), label, 1, thresholds)
    assert (result.recall, result.false_alarms, result.asked) == (1, 0, 0)


def test_images_that_tie_at_the_highest_harmless_score_are_no_alarms() -> None:
    """As many do whose logits are so high that float32 makes their probabilities 1."""
    _, label, group = images(0, 10)
    draws = np.random.default_rng(1)
    for tie in (0.75, 1.0):
        score = np.where(label == 1, 0.8, 0.1) + 0.1 * draws.random(len(label))
        score[draws.random(len(label)) < 0.2] = tie
        tied = np.stack([1 - score, score], 1).astype(np.float32)
        at = choose(point(), CLASSES, tied, label, group)
        assert np.float32(at.high) > tie
        result = decisions(tied, label, 1, at)
        assert result.false_alarms <= 0.05
        assert result.asked > 0.1
        released: Any = SimpleNamespace(classes=CLASSES, thresholds=(1, at.low, at.high))
        answers = [predict.decision(released, row) for row in tied]
        assert answers.count(None) == round(result.asked * len(label))
        alarms = [answer == "bad" for answer in np.array(answers)[label == 0]]
        assert np.mean(alarms) == result.false_alarms


def test_what_thresholds_do() -> None:
    p = np.array([0.1, 0.3, 0.5, 0.9, 0.1, 0.5, 0.95, 0.6])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    result = decisions(np.stack([1 - p, p], 1), labels, 1, Thresholds(low=0.3, high=0.6))
    assert (result.recall, result.false_alarms, result.asked) == (0.75, 0.25, 0.375)


def test_the_class_is_the_last_of_two_or_named() -> None:
    assert point().number(CLASSES) == 1
    assert point(label="good").number(CLASSES) == 0
    assert point(label="c").number(["a", "b", "c"]) == 2
    for label, classes in ((None, ["a", "b", "c"]), ("d", CLASSES)):
        with pytest.raises(ParamsError, match=r"^operating_point\.label = .*: expected one of the"):
            point(label=label).number(classes)


def test_the_report_offers_some() -> None:
    assert list(operating_point.offered(None, CLASSES)) == ["80%", "90%", "95%", "99%"]
    assert operating_point.offered(None, ["a", "b", "c"]) == {}
    offered = operating_point.offered(point(label="a"), ["a", "b", "c"])["99%"]
    assert (offered.label, offered.min_recall, offered.max_false_alarms) == ("a", 0.99, 0.01)
