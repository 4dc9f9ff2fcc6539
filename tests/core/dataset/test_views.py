import numpy as np
import torch

from stages.core.dataset.resize import resize
from stages.core.dataset.views import Views, turn


def pixels(n: int = 12, px: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, px, px, 1), dtype=np.uint8)


def test_a_view_does_not_depend_on_its_batch() -> None:
    views = Views(pixels(), seed=1, jitter=0.2)
    whole = views.batch(np.arange(12), 3)
    alone = torch.cat([views.batch(np.array([i]), 3) for i in range(12)])
    assert torch.equal(whole, alone)


def test_views_and_seeds_differ() -> None:
    rows = np.arange(12)
    a = Views(pixels(), seed=1, jitter=0.2)
    b = Views(pixels(), seed=2, jitter=0.2)
    assert not torch.equal(a.batch(rows, 0), a.batch(rows, 1))
    assert not torch.equal(a.batch(rows, 0), b.batch(rows, 0))


def test_without_jitter_a_view_only_moves_pixels() -> None:
    views = Views(pixels(), seed=1, jitter=0.0)
    seen = views.batch(np.arange(12), 5).flatten(1).sort(1).values
    assert torch.equal(seen, torch.from_numpy(pixels()).flatten(1).sort(1).values)


def test_turn_gives_the_eight_symmetries() -> None:
    image = torch.arange(9, dtype=torch.uint8).reshape(1, 3, 3, 1)
    turned = turn(image.expand(8, -1, -1, -1), torch.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert torch.equal(turned[0], image[0])


def test_resize_keeps_a_constant_and_averages_down() -> None:
    grey = torch.full((2, 16, 16, 1), 77, dtype=torch.uint8)
    assert torch.equal(resize(grey, 4), torch.full((2, 4, 4, 1), 77, dtype=torch.uint8))
    assert torch.equal(resize(grey, 16), grey)
