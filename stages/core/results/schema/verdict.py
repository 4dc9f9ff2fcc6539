"""The metrics of the check stage."""

from stages.core.results.schema.base import Metrics, Number
from stages.core.results.schema.speed import Provider


class Gate(Metrics):
    """One condition for a release.

    A difference between two models fails only if its 95 % interval is clear of the limit, on the
    wrong side: a good model is not stopped by what chance alone explains.

    Attributes:
        low, high: ends of that interval; None where the value has none.
        margin: what there is to spare, negative where it failed.
        suggested: a limit that a run as good as this one clears; None where the limit that comes
            with the project means the same for all images.
    """

    value: Number
    low: float | None
    high: float | None
    limit: Number
    margin: Number
    passed: bool
    suggested: Number | None

    @property
    def verdict(self) -> str:
        """passed, failed, or open: passed with an interval that holds the limit."""
        if not self.passed:
            return "failed"
        return "open" if self.low is not None and self.low < self.limit else "passed"


class Offer(Metrics):
    """Whether a model in another number format ships for a provider, beside the float32 one.

    Attributes:
        precision: the format, as in `ExportMetrics.variants`.
        speed_up: at batch 1, in the round where it is least ahead of float32; None where it was not
            timed.
        val_loss: as in `VariantOn`; None where its answers were not measured.
        file: its name in the release, or None.
        reason: why it does not ship, or "".
    """

    precision: str
    provider: Provider
    speed_up: float | None
    val_loss: float | None
    file: str | None
    reason: str


class CheckMetrics(Metrics):
    """Every gate by name, and whether all of them passed; and what became of other formats."""

    passed: bool
    gates: dict[str, Gate]
    offers: dict[str, Offer]
