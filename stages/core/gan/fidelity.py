"""How like the real images of a class others are.

Most figures are of features, those of a network that judges nothing else. Every figure means
something only beside that of a like number of real images.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler

from stages.core.dataset.resize import resize
from stages.core.dataset.symmetries import NUMBERS, Symmetries, turned
from stages.core.results import metrics
from stages.core.results.schema.base import Auroc
from stages.core.results.schema.synthetic import KernelDistance

Features = NDArray[np.float32]

# Neighbours that make a ball around each image, as Naeem et al. recommend.
NEIGHBOURS = 5
# Side of the images that are compared for copies.
THUMBNAIL_PX = 32
# Random subsets that a kernel distance is computed on, each of half the images.
SUBSETS = 20


def _distances(x: Features, to: Features, count: int) -> NDArray[np.float64]:
    """Of each of x (M, F), the distances to its nearest `count` of `to`: (M, count)."""
    found: NDArray[np.float64] = NearestNeighbors(n_neighbors=count).fit(to).kneighbors(x)[0]
    return found


def neighbours(x: Features) -> int:
    """How many neighbours of each of x make its ball: `NEIGHBOURS`, of few images fewer."""
    return min(NEIGHBOURS, len(x) - 1)


def _radii(x: Features) -> NDArray[np.float64]:
    """From each of x to the last neighbour in its ball, itself not counted: (M,)."""
    return _distances(x, x, neighbours(x) + 1)[:, -1]


def _inside(x: Features, centres: Features, radii: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each of x lies in the ball around each centre: (M, N)."""
    squares = np.square(x).sum(1)[:, None] + np.square(centres).sum(1) - 2 * x @ centres.T
    inside: NDArray[np.bool_] = squares <= np.square(radii) * (1 + 1e-6)
    return inside


def neighbourhoods(images: Features, real: Features) -> dict[str, Any]:
    """Precision, recall, density and coverage, as `Fidelity` names them.

    Sources: Kynkäänniemi et al. 2019 (arXiv 1904.06991), equation 2; Naeem et al. 2020 (arXiv
    2002.09797), equations 3 and 4.

    Args:
        images: (M, F), M at least 2.
        real: (N, F), as `images`.
    """
    radii = _radii(real)
    in_real = _inside(images, real, radii)
    in_images = _inside(real, images, _radii(images))
    return {
        "precision": float(in_real.any(1).mean()),
        "recall": float(in_images.any(1).mean()),
        "density": float(in_real.sum() / (neighbours(real) * len(images))),
        "coverage": float((_distances(real, images, 1)[:, 0] <= radii).mean()),
    }


def kernel_distance(images: Features, real: Features) -> KernelDistance:
    """KID over random subsets, each of half the images: mean, and deviation between subsets."""
    draws = np.random.default_rng(0)

    def half(x: Features) -> Features:
        return x[draws.choice(len(x), max(len(x) // 2, 2), replace=False)]

    values = [metrics.kernel_distance(half(images), half(real)) for _ in range(SUBSETS)]
    return KernelDistance(mean=float(np.mean(values)), deviation=float(np.std(values, ddof=1)))


def thumbnails(pixels: NDArray[np.generic]) -> Features:
    """Images (M, S, S, C) as they are compared for copies: (M, F), small and so without noise."""
    small = resize(torch.from_numpy(np.ascontiguousarray(pixels)), THUMBNAIL_PX).numpy()
    return small.reshape(len(small), -1).astype(np.float32)


def authentic(
    images: NDArray[np.uint8], training: NDArray[np.uint8], symmetries: Symmetries
) -> float:
    """Share of the images that are no copies of training images, as `thumbnails` show them.

    An image is a copy if it, or what one of the symmetries makes of it, is as near to its nearest
    training image as that image's own nearest neighbour in training is, or nearer (Alaa et al.
    2022, arXiv 2102.08921, section 3.3).

    Args:
        images: uint8 (M, S, S, C).
        training: uint8 (N, S, S, C), N at least 2.
    """
    known = thumbnails(training)
    variants = [thumbnails(turned(images, number)) for number in NUMBERS[symmetries]]
    finder = NearestNeighbors(n_neighbors=1).fit(known)
    found = [finder.kneighbors(variant) for variant in variants]
    distances = np.stack([distance[:, 0] for distance, _ in found])
    nearest = np.stack([place[:, 0] for _, place in found])
    best = distances.argmin(0), np.arange(len(images))
    apart = _distances(known, known, 2)[:, 1]
    return float((distances[best] > apart[nearest[best]]).mean())


def classification_score(
    images: Features,
    others: Features,
    test: Features,
    labels: metrics.Labels,
    groups: metrics.Groups,
    inverse_penalty: float,
) -> Auroc:
    """How well a linear probe tells real images that learned the class from `images` alone.

    Source: the classification accuracy score of Ravuri & Vinyals 2019 (arXiv 1905.10887), with
    AUROC in place of accuracy.

    Args:
        images: (M, F), that stand for the class.
        others: (N, F), real training images of the other classes.
        test: (T, F), real images.
        labels: (T,), 1 where the class is.
        groups: (T,).
        inverse_penalty: scikit-learn's C.
    """
    learned = np.concatenate([images, others])
    scaler = StandardScaler().fit(learned)
    probe = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=2000)
    probe.fit(scaler.transform(learned), np.r_[np.ones(len(images)), np.zeros(len(others))])
    margin = probe.decision_function(scaler.transform(test))
    logits = np.stack([np.zeros_like(margin), margin], 1).astype(np.float32)
    return metrics.ranking(logits, labels, groups)
