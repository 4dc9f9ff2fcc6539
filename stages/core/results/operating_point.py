"""Thresholds that promise something about one class, and hand the doubtful images to a person.

An image is answered with the class if its probability is `high` or more, with the most probable
other class if it is below `low`, and goes to a person in between. The thresholds are chosen on the
validation split, with a margin that grows as its groups become fewer and differ more, so that the
promises hold on other groups, too.

That is so for groups that all differ a little, as in the simulation of `CONFIDENCE`. A rare odd
group that the validation split does not hold is not covered: nothing there tells of it. Where one
group in ten was off in simulation (its logits of the class by -5, with 8 between the classes), a
recall of 95 % was kept for 34 %, 52 % and 86 % of validation splits with 5, 7 and 25 groups.

Conformal risk control (Angelopoulos et al. 2022) covers such groups on average over validation
splits: with a mean R of the G groups' rates, it asks for (G R + 1) / (G + 1) at most the rate that
was promised. For 5 % that takes 19 groups without a single miss, so with 7 nothing could ever be
promised. It is not asked for here.
"""

from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from scipy.special import expit, logit
from scipy.stats import beta, t

from stages.core.results.metrics import Groups, Labels
from stages.core.results.review import Probabilities
from stages.core.results.schema.base import Difference
from stages.core.results.schema.shipped import Decisions, Promise, Thresholds
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import Section
from stages.core.runner.text import counted

Scores = NDArray[np.float64]

# Of the bound below. A threshold is the best of many, so promises are kept less often than that: in
# simulation, for 83 % to 99 % of validation splits with 5 to 25 groups, whose logits had normal
# offsets with a deviation of 0.3 or 1.0, and one of 1.2 within groups.
CONFIDENCE = 0.95
# The fewest groups that were simulated; fewer may agree by chance, and leave no margin.
LEAST_GROUPS = 5


# The recalls that every report offers to choose from, each with as many false alarms as misses.
OFFERED = (0.8, 0.9, 0.95, 0.99)


class OperatingPoint(Section):
    """What a model promises about a class: one of the two, or both.

    Attributes:
        label: the class; None is the last of two.
        min_recall: of the class's images, the share that is answered with it, or that a person
            sees.
        max_false_alarms: of the other images, the share that is answered with the class.
    """

    label: str | None
    min_recall: float | None = Field(gt=0, lt=1)
    max_false_alarms: float | None = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _promises_something(self) -> Self:
        if self.min_recall is None and self.max_false_alarms is None:
            raise PydanticCustomError(
                "promise", "expected a number for min_recall, max_false_alarms, or both"
            )
        return self

    def number(self, classes: list[str]) -> int:
        """The class's place in `classes`. Raises: ParamsError for a class that is not there."""
        if self.label is None and len(classes) == 2:
            return 1
        if self.label not in classes:
            raise ParamsError(
                f"operating_point.label = {self.label!r}: expected one of the classes, "
                f"{', '.join(classes[:20])}"
            )
        return classes.index(self.label)

    def promise(
        self,
        classes: list[str],
        thresholds: Thresholds,
        probabilities: Probabilities,
        labels: Labels,
        groups: Groups,
    ) -> Promise:
        """What is promised, and what the thresholds do on other images (N, K)."""
        number = self.number(classes)
        score, inside = probabilities[:, number].astype(np.float64), labels == number
        margins: list[Difference | None] = [None, None]
        if self.min_recall is not None:
            is_missed = score[inside] < thresholds.low
            margins[0] = margin(is_missed, groups[inside], 1 - self.min_recall)
        if self.max_false_alarms is not None:
            is_alarm = score[~inside] >= thresholds.high
            margins[1] = margin(is_alarm, groups[~inside], self.max_false_alarms)
        return Promise(
            label=classes[number],
            min_recall=self.min_recall,
            max_false_alarms=self.max_false_alarms,
            thresholds=thresholds,
            test=decisions(probabilities, labels, number, thresholds),
            recall_margin=margins[0],
            false_alarm_margin=margins[1],
        )


def offered(wanted: OperatingPoint | None, classes: list[str]) -> dict[str, OperatingPoint]:
    """Promises to choose from, by their recall: about the wanted class, or the last of two."""
    label = wanted.label if wanted else None
    if label is None and len(classes) > 2:
        return {}
    return {
        f"{recall:.0%}": OperatingPoint(
            label=label, min_recall=recall, max_false_alarms=round(1 - recall, 6)
        )
        for recall in OFFERED
    }


def highest_rates(scores: Scores, groups: Groups) -> tuple[Scores, NDArray[np.float64]]:
    """Upper confidence bounds of the share of images below each score, when whole groups are drawn.

    The larger of two: the rate plus Student's t times its deviation by the cluster jackknife (see
    `metrics.mean_paired_gain`), on the scale of logits, as Korn & Graubard (1998) have it for
    proportions from clusters; and Clopper and Pearson's (1934), as if images were independent,
    which counts when no group has a hit and the first one is zero.

    Args:
        scores, groups: (N,); at least two groups.

    Returns: the distinct scores from the lowest on, and the bounds.
    """
    order = np.argsort(scores)
    _, group, sizes = np.unique(groups[order], return_inverse=True, return_counts=True)
    count, images = len(sizes), len(scores)
    distinct, below = np.unique(scores[order], return_index=True)
    rate = below / images
    # Without a group of s images, h of them below, the rate is (rate s - h) / (images - s) higher.
    # The sum of the squares of that over groups, from what each image adds to a group's h and h^2;
    # a matrix of groups and scores would be too large where each image is a group.
    weights = 1 / np.square(images - sizes, dtype=np.float64)
    earlier = pd.Series(group).groupby(group).cumcount().to_numpy()
    hits = np.append(0, np.cumsum((weights * sizes)[group]))[below]
    squares = np.append(0, np.cumsum(weights[group] * (2 * earlier + 1)))[below]
    summed = np.square(rate) * (weights * np.square(sizes)).sum() - 2 * rate * hits + squares
    deviation = np.sqrt((count - 1) / count * np.maximum(summed, 0))
    return distinct, _highest(below, images, deviation, count, CONFIDENCE)


def _highest(
    hits: NDArray[np.int64], images: int, deviation: Scores, groups: int, confidence: float
) -> Scores:
    """Upper confidence bounds of rates, as in `highest_rates`: of `hits` in `images` each."""
    inside = np.clip(hits / images, 1e-9, 1 - 1e-9)
    reach = t.ppf(confidence, groups - 1) * deviation / (inside * (1 - inside))
    by_group = expit(logit(inside) + reach)
    by_image = beta.ppf(confidence, hits + 1, np.maximum(images - hits, 1e-9))
    highest: Scores = np.maximum(by_group, by_image)
    return highest


def margin(is_hit: NDArray[np.bool_], groups: Groups, most: float) -> Difference:
    """How far a rate is below what was promised, with its 95 % interval when groups are drawn.

    Each end of the interval is a bound as in `highest_rates`, of the hits or of the others. In
    simulation (tests/core/results/test_operating_point.py) it covers at least 93 % of the time with
    5 to 44 groups.

    Args:
        is_hit, groups: (N,).
        most: the rate that was promised, 0 to 1.

    Returns: without an interval (None) for fewer than `LEAST_GROUPS` groups.
    """
    _, members, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    count, images = len(sizes), len(is_hit)
    rate = float(is_hit.mean())
    if count < LEAST_GROUPS:
        return Difference(gain=most - rate, low=None, high=None)
    left = (is_hit.sum() - np.bincount(members, is_hit)) / (images - sizes)
    deviation = np.sqrt((count - 1) / count * np.square(left - rate).sum())
    hits = np.array([is_hit.sum(), images - is_hit.sum()])
    highest, others = _highest(hits, images, deviation, count, 0.975).tolist()
    return Difference(gain=most - rate, low=most - highest, high=most - (1 - others))


def cannot_be_promised(
    point: OperatingPoint, classes: list[str], labels: Labels, groups: Groups
) -> list[str]:
    """In words, which images (N,) are of too few groups to promise anything about them."""
    number = point.number(classes)
    inside = labels == number
    name = classes[number]
    sides = {}
    if point.min_recall is not None:
        sides[name] = groups[inside]
    if point.max_false_alarms is not None:
        sides[f"other classes than {name}"] = groups[~inside]
    counts = {whose: len(np.unique(each)) for whose, each in sides.items()}
    return [
        f"nothing can be promised about images of {whose}: validation has "
        f"{counted(count, 'group')} of them, and {LEAST_GROUPS} are needed; all go to a person "
        "until you give validation more groups (validate.val_folds)"
        for whose, count in counts.items()
        if count < LEAST_GROUPS
    ]


def _lowest(scores: Scores, groups: Groups, most: float) -> float:
    """The highest threshold that at most `most` of such images fall below, surely; else -inf."""
    if len(np.unique(groups)) < LEAST_GROUPS:
        return -np.inf
    thresholds, rates = highest_rates(scores, groups)
    is_kept = rates <= most
    # The bound rises with the threshold but for small steps back: the first break ends it.
    end = len(is_kept) if is_kept.all() else int(is_kept.argmin())
    return float(thresholds[end - 1]) if end else -np.inf


def choose(
    point: OperatingPoint,
    classes: list[str],
    probabilities: Probabilities,
    labels: Labels,
    groups: Groups,
) -> Thresholds:
    """The thresholds that keep all promises, with as few images in between as possible.

    Where the images, or their groups, are too few for a promise, its threshold is 0 or above 1:
    all images in question go to a person. Fewer than `LEAST_GROUPS` are too few; an image without
    a group is one. A single promise takes a single threshold.

    Args:
        probabilities: (N, K), on images that trained nothing.
        labels, groups: (N,).

    Raises: ParamsError for a class that is not there.
    """
    number = point.number(classes)
    score = probabilities[:, number].astype(np.float64)
    inside = labels == number
    low, high = -np.inf, np.inf
    if point.min_recall is not None:
        low = _lowest(score[inside], groups[inside], 1 - point.min_recall)
    if point.max_false_alarms is not None:
        high = -_lowest(-score[~inside], groups[~inside], point.max_false_alarms)
        if np.isfinite(high):
            # An image with just the highest harmless score is no alarm yet, in float32 either.
            high = float(np.nextafter(np.float32(high), np.float32(2)))
    # A promise that stands alone, and can be made, needs no person.
    if point.max_false_alarms is None and np.isfinite(low):
        high = low
    if point.min_recall is None and np.isfinite(high):
        low = high
    if low > high:  # One threshold between them keeps both promises.
        low = high = (low + high) / 2
    return Thresholds(low=max(low, 0.0), high=high if np.isfinite(high) else 2.0)


def decisions(
    probabilities: Probabilities, labels: Labels, number: int, at: Thresholds
) -> Decisions:
    """What the thresholds do on some images (N, K): what was promised, and what it costs."""
    score = probabilities[:, number].astype(np.float64)
    inside = labels == number
    return Decisions(
        recall=float((score[inside] >= at.low).mean()),
        false_alarms=float((score[~inside] >= at.high).mean()),
        asked=float(((score >= at.low) & (score < at.high)).mean()),
    )
