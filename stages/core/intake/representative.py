"""The validation split that resembles the images it is taken from, chosen by the data alone."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core.intake.drift import NUMBERS

# Random sets of whole groups to choose from.
DRAWS = 2000
# With more groups than this, a fold holds hundreds of them and resembles the rest by chance. Up to
# here, the sets and their orders fit into 100 MB, and all of it takes a second or two.
MOST_GROUPS = 2000
# Distributions are compared at this many quantiles of all images.
QUANTILES = 100

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


def representative(
    manifest: pd.DataFrame, fold: "pd.Series[bool]", *, share: float, seed: int
) -> "pd.Series[bool]":
    """Of `fold` and `DRAWS` random sets of whole groups, the one most like all images.

    The distance is a sum of shares of images, so it needs no weights: the total variation between
    the shares of each class in each domain; the mean Kolmogorov-Smirnov distance of a profile; and
    how far the set's size is from `share`. The profile is `NUMBERS`, the size of an image's group,
    and how much of that group has its label. It is over all classes together: within one, a few
    groups hold too few images to compare. A set that lacks a class, or leaves none of it, comes
    after all others; of equals, the first counts.

    Folds of `StratifiedGroupKFold` from many seeds would be no choice: its shuffle only decides
    between groups whose classes are spread equally, so most of those folds are the same.

    Args:
        manifest: columns label, domain, group and `NUMBERS`.
        fold: whether an image is in the set to begin with, which holds whole groups.
        share: the wanted share of all images.

    Returns: whether an image is in the best set. With more than `MOST_GROUPS` groups, `fold`.
    """
    members, groups = pd.factorize(manifest["group"], sort=True)
    if len(groups) > MOST_GROUPS:
        return fold
    sizes = np.bincount(members)
    first = np.bincount(members, fold) > 0
    sets = np.vstack([first, _draws(sizes, share, seed)]).astype(np.float32)

    labels, domains = (pd.factorize(manifest[name])[0] for name in ("label", "domain"))
    strata = labels + domains * (labels.max() + 1)
    inside, everywhere = _shares(sets, members, strata)
    distance = np.abs(inside - everywhere).sum(1) / 2
    distance += np.abs(sets @ sizes / len(members) - share)
    profile = _profile(manifest, members, labels)
    for values in profile:
        cuts = np.unique(np.quantile(values, np.arange(1, QUANTILES) / QUANTILES))
        inside, everywhere = _shares(sets, members, np.searchsorted(cuts, values, side="right"))
        distance += np.abs(np.cumsum(inside - everywhere, axis=1)).max(1) / len(profile)

    of_class = _counts(members, labels)
    lacking = ((sets @ of_class == 0) | ((1 - sets) @ of_class == 0)).sum(1)
    best = np.lexsort((distance, lacking))[0]
    print(
        f"validation split: distance {distance[best]:.3f} from the images that it is taken from; "
        f"that of the first fold is {distance[0]:.3f}",
        flush=True,
    )
    return pd.Series(sets[best][members] > 0, index=manifest.index)


def _draws(sizes: Codes, share: float, seed: int) -> NDArray[np.bool_]:
    """Random sets of groups (`DRAWS`, G), each of about `share` of the images.

    Args:
        sizes: (G,), the images of each group.
    """
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(len(sizes)), (DRAWS, 1)), axis=1)
    filled = np.cumsum(sizes[orders], axis=1)
    counts = np.abs(filled - share * sizes.sum()).argmin(1)
    sets = np.zeros(orders.shape, bool)
    np.put_along_axis(sets, orders, np.arange(len(sizes)) <= counts[:, None], axis=1)
    return sets


def _profile(manifest: pd.DataFrame, members: Codes, labels: Codes) -> list[Floats]:
    """What is compared of each image, in columns (N,); one that is constant says nothing."""
    columns = [manifest[name].to_numpy(np.float64) for name in NUMBERS]
    own = np.unique(np.stack([members, labels]), axis=1, return_inverse=True)[1]
    size = np.bincount(members)[members].astype(np.float64)
    columns += [size, np.bincount(own)[own] / size]
    return [values for values in columns if np.ptp(values)]


def _counts(members: Codes, codes: Codes) -> NDArray[np.float32]:
    """How many images of each group have each code, (G, C)."""
    counts = np.zeros((members.max() + 1, codes.max() + 1), np.float32)
    np.add.at(counts, (members, codes), 1)
    return counts


def _shares(sets: NDArray[np.float32], members: Codes, codes: Codes) -> tuple[Floats, Floats]:
    """The share of each code in each set, (D, C), and in all images, (C,)."""
    counts = _counts(members, codes)
    inside = (sets @ counts).astype(np.float64)
    # The first fold may hold none of these images.
    inside /= np.maximum(inside.sum(1, keepdims=True), 1)
    return inside, counts.sum(0, dtype=np.float64) / len(members)
