"""What the metrics of all stages are made of.

A stage writes an instance of its class with `report.write_metrics`; whoever wants the figures reads
them back as one with `report.read_metrics`. An optional field that is left out is not written; one
that is None is null.
"""

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict

# Whole numbers stay whole, so that a count is written as one.
Number = int | float


class Metrics(BaseModel):
    """Base of all classes here: a wrong or missing key is an error, and so is a wrong type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Auroc(Metrics):
    """AUROC of one model on one split, 0 to 1.

    Attributes:
        auroc_within_groups: over the pairs of images of the same group; left out where no group
            has two classes, or where no groups are given.
    """

    auroc: float
    auroc_within_groups: float | None = None


class Quality(Auroc):
    """One model on one split.

    Attributes:
        accuracy, macro_f1, recall: 0 to 1; `recall` by class, in the order of the logits.
        ece: expected calibration error, 0 to 1.
        nll: mean cross-entropy in nats.
    """

    accuracy: float
    macro_f1: float
    ece: float
    nll: float
    recall: dict[str, float]


class Difference(Metrics):
    """Difference of two models on the same images, in AUROC where nothing else is said.

    Attributes:
        gain: above 0 if the first model is better.
        low, high: ends of the 95 % interval; None where there are too few groups for one.
    """

    gain: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.gain:+z.3f} [no interval: too few groups]"
        return f"{self.gain:+z.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def is_shown(self) -> bool:
        """Whether the first model is shown to be better: the interval lies above zero."""
        return self.low is not None and self.low > 0


class Gain(Difference):
    """Difference in AUROC of two models, overall and within groups.

    Attributes:
        within_groups: left out where no group has two classes, or where no groups are given.
    """

    within_groups: Difference | None = None


def count_intervals(gains: Iterable[Gain]) -> int:
    """How many intervals some gains have."""
    each = (part for gain in gains for part in (gain, gain.within_groups) if part is not None)
    return sum(part.low is not None for part in each)


def intervals_note(gains: Iterable[Gain]) -> str:
    """A sentence that says how many intervals a table of gains holds, and what that means."""
    count = count_intervals(gains)
    return f"95 % intervals: {count}; each misses the true value one time in twenty."
