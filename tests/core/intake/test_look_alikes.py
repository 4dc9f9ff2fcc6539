"""Classes that a symmetry exchanges are found, and no others."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stages.core.dataset.symmetries import NAMES, Symmetries
from stages.core.intake import look_alikes as module
from stages.core.intake.look_alikes import look_alikes
from tests.helpers.shapes import Shapes, arrows, digits


def pairs(shapes: Shapes, symmetries: Symmetries) -> set[tuple[int, int, str]]:
    pixels, labels = shapes
    result = look_alikes(pixels, labels, np.arange(len(labels)), symmetries)
    assert all(x.share >= module.EXCHANGED and x.one < x.other for x in result)
    assert [x.share for x in result] == sorted((x.share for x in result), reverse=True)
    return {(x.one, x.other, NAMES[x.symmetry]) for x in result}


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ("none", set()), ("mirror", set()), ("rotations", {(6, 9, "a half turn")}),
        ("all", {(6, 9, "a half turn")}),
    ],
)  # fmt: skip
def test_of_ten_digits_only_6_and_9(choice: Symmetries, expected: set[Any]) -> None:
    assert pairs(digits(*range(10)), choice) == expected


@pytest.mark.parametrize(("one", "other"), [(0, 1), (1, 7), (3, 8), (4, 9), (0, 8)])
def test_digits_that_no_turn_exchanges(one: int, other: int) -> None:
    assert pairs(digits(one, other), "all") == set()


def test_6_and_9_alone() -> None:
    assert pairs(digits(6, 9), "mirror") == set()
    assert (0, 1, "a half turn") in pairs(digits(6, 9), "rotations")


# Symmetry 0 is an arrow to the right, 1 one upwards, 2 and 4 one to the left, 3 one downwards.
LEFT_RIGHT, UP_LEFT, RIGHT_UP, UP_DOWN = (0, 2), (1, 2), (0, 1), (1, 3)


@pytest.mark.parametrize(
    ("kinds", "by_mirror", "by_rotations"),
    [
        (LEFT_RIGHT, {"mirrored left to right"}, {"a half turn"}),
        (UP_DOWN, set(), {"a half turn"}),
        (UP_LEFT, set(), {"a quarter turn"}),
        (RIGHT_UP, set(), {"a quarter turn"}),
    ],
)
def test_arrows(kinds: tuple[int, int], by_mirror: set[str], by_rotations: set[str]) -> None:
    shapes = arrows(*kinds)
    expected: dict[Symmetries, set[str]] = {
        "none": set(), "mirror": by_mirror, "rotations": by_rotations,
    }  # fmt: skip
    for choice, names in expected.items():
        assert {name for *_, name in pairs(shapes, choice)} == names


def test_colours_may_tell_them_apart() -> None:
    grey = arrows(*LEFT_RIGHT, colours=[(1, 1, 1), (1, 1, 1)])
    coloured = arrows(*LEFT_RIGHT, colours=[(1, 0.3, 0.3), (0.3, 1, 0.3)])
    assert len(pairs(grey, "mirror")) == 1
    assert pairs(coloured, "mirror") == set()


def noise(count: int, px: int = 32) -> NDArray[np.uint8]:
    return np.random.default_rng(1).integers(0, 256, (count, px, px, 1), dtype=np.uint8)


@pytest.mark.parametrize(("classes", "each"), [(2, 10), (2, 200), (20, 20), (60, 10)])
def test_classes_that_nothing_tells_apart_are_no_look_alikes(classes: int, each: int) -> None:
    assert pairs((noise(classes * each), np.arange(classes * each) % classes), "all") == set()


def test_brightness_is_no_look_alike() -> None:
    labels = np.arange(80) % 2
    pixels = (noise(80) // 2 + 60 * labels[:, None, None, None]).astype(np.uint8)
    assert pairs((pixels, labels), "all") == set()


def test_classes_of_few_images_are_left_out() -> None:
    assert pairs(arrows(*LEFT_RIGHT, count=module.LEAST - 1), "mirror") == set()
    pixels, labels = arrows(0, 2, 1, count=30)
    sample = np.r_[0:30, 30:60, 60:65]
    assert pairs((pixels[sample], labels[sample]), "mirror") == {(0, 1, "mirrored left to right")}
    swapped = np.r_[0:5, 30:60, 60:90]
    assert pairs((pixels[swapped], labels[swapped]), "rotations") == {(1, 2, "a quarter turn")}


def test_only_training_images_are_looked_at() -> None:
    pixels, labels = arrows(*LEFT_RIGHT)
    broken = np.concatenate([pixels, np.zeros_like(pixels)])
    result = look_alikes(broken, np.tile(labels, 2), np.arange(len(pixels)), "mirror")
    assert result == look_alikes(pixels, labels, np.arange(len(pixels)), "mirror")
    assert len(result) == 1


@pytest.mark.parametrize(
    ("classes", "each", "most"), [(2, 5000, 200), (100, 90, 4000), (500, 12, 5000)]
)
def test_the_sample_is_bounded(classes: int, each: int, most: int) -> None:
    labels = np.repeat(np.arange(classes), each)
    rows = np.arange(len(labels))[::-1]
    chosen, sample = module._sample(labels, rows)
    assert len(chosen) == most
    assert len(set(chosen)) == most
    assert sample.tolist() == list(range(classes))
    counts = np.bincount(labels[chosen])
    assert counts.min() == counts.max()


def test_large_images_are_averaged() -> None:
    pixels = noise(1, 64)
    small = module._small(pixels[0])
    assert small.shape == (module.SIDE, module.SIDE, 1)
    assert small[3, 5, 0] == pytest.approx(pixels[0, 12:16, 20:24].mean())


def test_images_are_judged_by_a_model_that_has_not_seen_them() -> None:
    """It knows the images of noise that it has seen by heart, and of others nothing."""
    images = np.stack([module._small(image) for image in noise(200)])
    labels = np.arange(200) // 100
    shares = module._nearer(module._scores(images, labels, [0])[0], labels)
    assert 0.4 < shares[0, 1] < 0.6
    assert 0.4 < shares[1, 0] < 0.6
