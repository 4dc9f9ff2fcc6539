"""The figures against naive references, and what they must catch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.core.gan import fidelity

DRAWS = np.random.default_rng(0)


def normal(count: int, shift: float = 0.0, seed: int = 0) -> NDArray[np.float32]:
    x = np.random.default_rng(seed).normal(shift, size=(count, 6))
    return x.astype(np.float32)


def naive(images: NDArray[np.float32], real: NDArray[np.float32], k: int) -> dict[str, float]:
    """Precision, recall, density and coverage, one pair of images after the other."""

    def radius(x: NDArray[np.float32], i: int) -> float:
        return sorted(float(np.linalg.norm(x[i] - other)) for other in x)[k]

    real_radii = [radius(real, i) for i in range(len(real))]
    image_radii = [radius(images, i) for i in range(len(images))]
    inside = [
        [np.linalg.norm(x - r) <= reach for r, reach in zip(real, real_radii, strict=True)]
        for x in images
    ]
    recalled = [
        any(np.linalg.norm(r - x) <= reach for x, reach in zip(images, image_radii, strict=True))
        for r in real
    ]
    return {
        "precision": float(np.mean([any(row) for row in inside])),
        "recall": float(np.mean(recalled)),
        "density": float(np.sum(inside) / (k * len(images))),
        "coverage": float(np.mean([any(column) for column in zip(*inside, strict=True)])),
    }


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_neighbourhoods_are_as_defined(shift: float) -> None:
    images, real = normal(30, shift, seed=1), normal(40, seed=2)
    expected = naive(images, real, fidelity.NEIGHBOURS)
    assert fidelity.neighbourhoods(images, real) == pytest.approx(expected)
    assert 0 < expected["coverage"] < 1


def test_few_images_have_smaller_neighbourhoods() -> None:
    images, real = normal(2, seed=1), normal(3, seed=2)
    assert fidelity.neighbourhoods(images, real)["coverage"] <= 1


def test_like_images_reach_what_real_ones_do() -> None:
    figures = fidelity.neighbourhoods(normal(300, seed=1), normal(300, seed=2))
    assert figures["precision"] > 0.9
    assert figures["recall"] > 0.9
    assert figures["density"] == pytest.approx(1, abs=0.15)
    assert figures["coverage"] > 0.9


def test_one_image_again_and_again_covers_nothing() -> None:
    real = normal(200, seed=2)
    images = np.repeat(real[:1], 100, 0) + 1e-3 * normal(100, seed=3)
    figures = fidelity.neighbourhoods(images, real)
    assert figures["precision"] == 1
    assert figures["coverage"] < 0.1


def test_copies_are_no_authentic_images() -> None:
    training = normal(200, seed=1)
    assert fidelity.authentic(training[:50], training) == 0
    assert fidelity.authentic(training[:50] + 1e-4, training) == 0
    among = fidelity.authentic_among(training)
    assert fidelity.authentic(normal(400, seed=2), training) == pytest.approx(among, abs=0.1)
    assert fidelity.authentic(normal(50, shift=5, seed=3), training) > among


def test_real_images_among_themselves_are_as_defined() -> None:
    training = normal(60, seed=4)
    expected = []
    for i, x in enumerate(training):
        others = np.delete(training, i, 0)
        expected.append(fidelity.authentic(x[None], others))
    assert fidelity.authentic_among(training) == pytest.approx(np.mean(expected))


def test_the_kernel_distance_has_a_deviation() -> None:
    near = fidelity.kernel_distance(normal(200, seed=1), normal(200, seed=2))
    far = fidelity.kernel_distance(normal(200, shift=1, seed=1), normal(200, seed=2))
    assert abs(near.mean) < 3 * near.deviation
    assert far.mean > 5 * far.deviation


def test_a_class_can_be_learned_from_images_that_show_it() -> None:
    labels = (np.arange(200) % 2).astype(np.int64)
    groups = np.arange(200) // 20
    test = normal(200, seed=1) + 2 * labels[:, None].astype(np.float32)
    others = normal(100, seed=2)

    def score(images: NDArray[np.float32]) -> tuple[float, float | None]:
        found = fidelity.classification_score(images, others, test, labels, groups, 0.01)
        return found.auroc, found.auroc_within_groups

    good, within = score(normal(80, shift=2, seed=3))
    assert good > 0.95
    assert within is not None
    assert within > 0.95
    assert score(normal(80, shift=-2, seed=3))[0] < 0.1
