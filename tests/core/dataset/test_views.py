import numpy as np
import pytest
import torch

from stages.core.dataset.resize import resize
from stages.core.dataset.symmetries import NAMES, NUMBERS, Symmetries, inverse, turned
from stages.core.dataset.views import Mix, Views, _boxes, turn


def pixels(n: int = 12, px: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 1), dtype=np.uint8)


def test_a_view_does_not_depend_on_its_batch() -> None:
    views = Views(pixels(), seed=1, jitter=0.2, symmetries="all")
    whole = views.batch(np.arange(12), 3)
    alone = torch.cat([views.batch(np.array([i]), 3) for i in range(12)])
    assert torch.equal(whole, alone)


def test_views_and_seeds_differ() -> None:
    rows = np.arange(12)
    a = Views(pixels(), seed=1, jitter=0.2, symmetries="all")
    b = Views(pixels(), seed=2, jitter=0.2, symmetries="all")
    assert not torch.equal(a.batch(rows, 0), a.batch(rows, 1))
    assert not torch.equal(a.batch(rows, 0), b.batch(rows, 0))


def test_without_jitter_a_view_only_moves_pixels() -> None:
    views = Views(pixels(), seed=1, jitter=0.0, symmetries="all")
    seen = views.batch(np.arange(12), 5).flatten(1).sort(1).values
    assert torch.equal(seen, torch.from_numpy(pixels()).flatten(1).sort(1).values)


def test_turn_gives_the_eight_symmetries() -> None:
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
    turned = turn(image.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert torch.equal(turned[0], image[0])


def by_hand(image: np.ndarray, number: int) -> np.ndarray:
    """(P, P, C) after a symmetry, pixel by pixel: turned to the left, then mirrored."""
    last = len(image) - 1
    for _ in range(number % 4):
        turned = np.empty_like(image)
        for y, x in np.ndindex(image.shape[:2]):
            turned[last - x, y] = image[y, x]
        image = turned
    if number >= 4:
        mirrored = np.empty_like(image)
        for y, x in np.ndindex(image.shape[:2]):
            mirrored[y, last - x] = image[y, x]
        image = mirrored
    return image


@pytest.mark.parametrize("number", range(8))
def test_each_symmetry_is_what_it_is_called(number: int) -> None:
    images = pixels(3)
    expected = np.stack([by_hand(image, number) for image in images])
    assert np.array_equal(turned(images, number), expected)
    every = torch.full((3,), number)
    assert np.array_equal(turn(torch.from_numpy(images), every).numpy(), expected)
    assert np.array_equal(turned(expected, inverse(number)), images)
    image = images[0]
    named = {
        "as it is": image, "a half turn": image[::-1, ::-1],
        "mirrored left to right": image[:, ::-1], "mirrored top to bottom": image[::-1],
    }  # fmt: skip
    if NAMES[number] in named:
        assert np.array_equal(expected[0], named[NAMES[number]])
    else:
        assert NAMES[number] == ("a quarter turn" if number < 4 else "mirrored along a diagonal")


@pytest.mark.parametrize(("choice", "count"), [("none", 1), ("mirror", 2), ("rotations", 4)])
def test_views_show_the_chosen_symmetries_and_no_others(choice: Symmetries, count: int) -> None:
    image = pixels(1)
    views = Views(np.repeat(image, 200, 0), seed=1, jitter=0.0, symmetries=choice)
    seen = {view.numpy().tobytes() for view in views.batch(np.arange(200), 0)}
    assert len(seen) == count
    assert seen == {turned(image, number).tobytes() for number in NUMBERS[choice]}
    # One of them after another is a third: or training would show what nobody has chosen.
    for number in NUMBERS[choice]:
        again = turned(image, number)
        assert {turned(again, other).tobytes() for other in NUMBERS[choice]} == seen


def test_all_symmetries_are_drawn_as_ever() -> None:
    """Where all are chosen, views are those of the releases before there was a choice."""
    views = Views(pixels(), seed=3, jitter=0.0, symmetries="all")
    numbers = (np.random.default_rng([3, 2]).random((12, 3))[:, 0] * 8).astype(int)
    expected = [by_hand(image, n) for image, n in zip(pixels(), numbers, strict=True)]
    assert np.array_equal(views.batch(np.arange(12), 2).numpy(), np.stack(expected))


def test_resize_keeps_a_constant_and_averages_down() -> None:
    grey = torch.full((2, 16, 16, 1), 77, dtype=torch.uint8)
    assert torch.equal(resize(grey, 4), torch.full((2, 4, 4, 1), 77, dtype=torch.uint8))
    assert torch.equal(resize(grey, 16), grey)


PARTNERS = np.array([1, 4, 5, 8, 10])


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_every_second_view_is_mixed(mix: Mix) -> None:
    alone = Views(pixels(), 1, 0.2, "all")
    mixed = Views(pixels(), 1, 0.2, "all", mix, PARTNERS)
    rows = np.array([7, 0, 3, 11, 2])
    assert mixed.mixture(rows, 2) is None
    assert torch.equal(mixed.batch(rows, 2), alone.batch(rows, 2))
    mixture = mixed.mixture(rows, 3)
    assert mixture is not None
    assert set(mixture.partners) <= set(PARTNERS)
    shares = mixture.shares.double()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert len(set(shares.tolist())) == 5
    own, other = alone.batch(rows, 3), alone.batch(mixture.partners, 3)
    seen = mixed.batch(rows, 3)
    if mix == "mixup":
        weights = shares.reshape(-1, 1, 1, 1)
        expected = weights * own.double() + (1 - weights) * other.double()
        assert (seen.double() - expected).abs().max() < 0.51
    else:
        is_own = (seen == own) & ~((seen == other) & (own != other))
        assert ((seen == own) | (seen == other)).all()
        assert is_own.double().mean((1, 2, 3)).tolist() == pytest.approx(shares.tolist(), abs=0.05)


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_a_mixed_view_does_not_depend_on_its_batch(mix: Mix) -> None:
    views = Views(pixels(), 1, 0.2, "all", mix, PARTNERS)
    whole = views.batch(np.arange(12), 3)
    alone = torch.cat([views.batch(np.array([i]), 3) for i in range(12)])
    assert torch.equal(whole, alone)
    # Other draws in other views, and not those of symmetries and jitter.
    shares = [views.mixture(np.arange(12), view) for view in (3, 5)]
    assert not torch.equal(*(each.shares for each in shares if each))


def test_boxes_have_the_area_that_is_asked_for() -> None:
    areas = np.array([0.0, 0.25, 0.25, 1.0, 1.0])
    centres = np.array([[0.5, 0.5], [0.5, 0.5], [0.0, 0.0], [0.5, 0.5], [1.0, 0.5]])
    boxes = _boxes(8, areas, centres)
    # Cut at the edges, and so smaller.
    assert boxes.float().mean((1, 2)).tolist() == [0, 0.25, 0.0625, 1, 0.5]
    assert boxes[1, 2:6, 2:6].all()
    assert boxes[2, :2, :2].all()
    assert boxes[4, 4:].all()
