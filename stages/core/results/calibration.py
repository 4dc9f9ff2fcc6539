"""A temperature for a model's logits, and whether it helps on groups that it was not fitted on.

Source of the method: Guo et al. 2017 (arXiv 1706.04599).
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.model_selection import GroupKFold

from stages.core.results.metrics import (
    Groups,
    Labels,
    Logits,
    cross_entropies,
    negative_log_likelihood,
    paired_reduction,
)
from stages.core.results.schema.base import Difference

# Up to this many groups are left out one by one, more of them in as many parts.
MOST_PARTS = 20


@dataclass(frozen=True)
class Calibration:
    """A temperature, and what it gives.

    Attributes:
        fitted: the temperature with the lowest mean cross-entropy on all images.
        gain: how much lower the mean cross-entropy (nats) is on groups that a temperature was not
            fitted on than without any.
    """

    fitted: float
    gain: Difference

    @property
    def temperature(self) -> float:
        """The one to use: 1, which changes nothing, unless the gain is clear of zero."""
        return self.fitted if self.gain.is_shown else 1.0


def fit_temperature(logits: Logits, labels: Labels, highest: float) -> float:
    """The temperature in 1 / highest to highest with the lowest negative log-likelihood."""
    optimum = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits / np.exp(log_t), labels),
        bounds=(-np.log(highest), np.log(highest)),
        method="bounded",
    )
    return float(np.exp(optimum.x))


def calibrate(logits: Logits, labels: Labels, groups: Groups, highest: float) -> Calibration:
    """Fit a temperature, and judge it by leaving out groups.

    The images that fit a temperature cannot judge it: on them, it always helps. With a single group
    there are no others, so no interval.

    Args:
        logits: (N, K).
        labels, groups: (N,).
        highest: the highest temperature, above 1.
    """
    fitted = fit_temperature(logits, labels, highest)
    count = min(len(np.unique(groups)), MOST_PARTS)
    calibrated = logits / fitted
    if count > 1:
        for others, part in GroupKFold(count).split(logits, groups=groups):
            calibrated[part] = logits[part] / fit_temperature(
                logits[others], labels[others], highest
            )
    better, worse = (cross_entropies(each, labels) for each in (calibrated, logits))
    return Calibration(fitted, paired_reduction(better, worse, groups))
