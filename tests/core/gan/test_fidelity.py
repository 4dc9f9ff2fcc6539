"""The figures against naive references, and what they must catch."""

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.core.dataset.symmetries import turned
from stages.core.gan import fidelity


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


def smooth(count: int, seed: int) -> NDArray[np.uint8]:
    """Images (count, 64, 64, 1) of broad spots."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 1)).astype(np.uint8)
    return coarse.repeat(8, 1).repeat(8, 2)


@pytest.mark.parametrize("number", [0, 3, 6])
@pytest.mark.parametrize("noise", [0, 8])
def test_copies_are_found_turned_and_with_noise(number: int, noise: int) -> None:
    training = smooth(60, seed=1)
    stain = np.random.default_rng(2).integers(-noise, noise + 1, training.shape)
    noisy = (training + stain).clip(0, 255).astype(np.uint8)
    copies = np.ascontiguousarray(turned(noisy, number)).astype(np.uint8)
    assert fidelity.authentic(copies[:30], training, "all") == 0


def test_new_images_are_authentic_as_often_as_real_ones() -> None:
    new = fidelity.authentic(smooth(100, seed=2), smooth(100, seed=1), "none")
    assert new == pytest.approx(0.5, abs=0.3)
    far = np.full((10, 64, 64, 1), 255, np.uint8)
    assert fidelity.authentic(far, smooth(100, seed=1), "none") == 1


def test_authenticity_is_as_defined() -> None:
    images, training = smooth(20, seed=3), smooth(30, seed=4)
    small = [fidelity.thumbnails(x).astype(float) for x in (images, training)]
    expected = []
    for x in small[0]:
        distances = np.linalg.norm(small[1] - x, axis=1)
        nearest = int(distances.argmin())
        apart = np.delete(np.linalg.norm(small[1] - small[1][nearest], axis=1), nearest).min()
        expected.append(distances[nearest] > apart)
    assert fidelity.authentic(images, training, "none") == pytest.approx(np.mean(expected))


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
