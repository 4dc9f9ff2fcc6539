"""The metrics of the stages about synthetic images: augment and refine."""

import math
from typing import Literal

from stages.core.results.schema.base import Auroc, Gain, Metrics, Quality


class KernelDistance(Metrics):
    """KID over random subsets: mean, and deviation between them."""

    mean: float
    deviation: float


class Fidelity(Metrics):
    """Some images against real ones of the class or domain, in the features of a judge.

    Attributes:
        precision: share that lies among the real ones.
        recall: share of the real ones that lies among them.
        density: how many real neighbourhoods each lies in; about 1 for real images.
        coverage: share of the real ones that have one of them for a neighbour.
        authentic: share that is no copy of a training image of the class or domain.
        classification_score: on validation, of a probe that knows the class from these images
            alone; left out where it is no class that they are to show.
        probability: the teacher's mean probability of the class; left out likewise.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    authentic: float
    kernel_distance: KernelDistance
    classification_score: Auroc | None = None
    probability: float | None = None


class AugmentMetrics(Metrics):
    """The synthetic images.

    Attributes:
        mode: how they were made.
        to: the class, or the domain, that they are to show.
        images: how many passed, and go to `refine`.
        kept_share: images that the teacher's filter kept, of those that were made.
        untouched_share: the same of what they were made from; left out where that is noise, or they
            keep its classes.
        refused: why all of them are left out; None where they are not.
        ended_early: why the GAN's training ended before its last step; None where it did not.
        snapshot: number of steps of the generator that made the images; left out without a GAN.
        synthetic: those that passed the filter, against half of the real training images, and as
            copies of all of them; None where fewer than two did.
        real: the other half of the real ones, against the same. This and what follows are left out
            where no images could be made.
        other: as many training images of the other classes or domains, untouched.
    """

    mode: Literal["translate", "paste", "synthesize"]
    to: str
    images: int
    kept_share: float
    untouched_share: float | None = None
    refused: str | None
    ended_early: str | None
    snapshot: int | None = None
    synthetic: Fidelity | None = None
    real: Fidelity | None = None
    other: Fidelity | None = None


class ValidationAuroc(Metrics):
    """AUROC on validation: as distilled, refined on real images, and on synthetic ones too."""

    distilled: float
    real: float
    synthetic: float


class RefineMetrics(Metrics):
    """What refinement gives, on the test split but for what begins with `val_`.

    Without synthetic images nothing is refined, and all but the first three is left out.

    Attributes:
        accepted: whether validation shows that the synthetic images help: both gains over
            `real` and `distilled` are clear of zero there.
        winner: what goes on.
        seeds: number of times that each was refined; gains are means over them, and all other
            figures are of the first.
        val_auroc_within_groups: left out where there is none, as in `Auroc`.
        val_gain_over_real, val_gain_over_distilled: of `synthetic`.
    """

    accepted: bool
    winner: Literal["synthetic", "distilled"]
    distilled: Quality
    seeds: int | None = None
    val_auroc: ValidationAuroc | None = None
    val_auroc_within_groups: ValidationAuroc | None = None
    val_gain_over_real: Gain | None = None
    val_gain_over_distilled: Gain | None = None
    real: Quality | None = None
    synthetic: Quality | None = None
    gain_over_real: Gain | None = None

    @classmethod
    def without(cls, distilled: Quality) -> "RefineMetrics":
        """Where there are no synthetic images."""
        return cls(accepted=False, winner="distilled", distilled=distilled)

    @property
    def val_gain(self) -> Gain | None:
        """Of the two gains on validation the one that decides: that with the lower low end."""
        gains = (self.val_gain_over_real, self.val_gain_over_distilled)
        given = [gain for gain in gains if gain is not None]
        if not given:
            return None
        return min(given, key=lambda gain: -math.inf if gain.low is None else gain.low)
