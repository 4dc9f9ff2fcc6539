"""Regions of real images in others."""

from pathlib import Path

import numpy as np

from stages.core.dataset.data import load_dataset
from stages.core.gan import paste
from stages.core.gan.making import Task
from tests.helpers.classroom import validated


def test_regions_have_about_the_wanted_area() -> None:
    region = paste.regions(20, 64, 0.4, np.random.default_rng(0))
    assert region.shape == (20, 64, 64)
    assert region.min() >= 0
    assert region.max() <= 1
    assert abs((region > 0.5).mean() - 0.4) < 0.01


def test_a_region_is_the_donors_and_the_rest_the_sources() -> None:
    draws = np.random.default_rng(1)
    sources, donors = draws.integers(90, 110, (2, 3, 32, 32, 1)).astype(np.uint8)
    donors[:, 10:20, 10:20] -= 80
    region = np.zeros((3, 32, 32), np.float32)
    region[:, 8:22, 8:22] = 1
    region[:, 8, 8] = 0.5
    made = paste.blended(sources, donors, region)
    outside = region == 0
    assert (made[outside] == sources[outside]).all()
    change = made[:, 10:20, 10:20].mean() - sources[:, 10:20, 10:20].mean()
    assert change < -60


def test_a_brighter_donor_leaves_no_edge() -> None:
    sources = np.full((2, 32, 32, 1), 80, np.uint8)
    donors = np.full((2, 32, 32, 1), 200, np.uint8)
    region = paste.regions(2, 32, 0.5, np.random.default_rng(2))
    assert (paste.blended(sources, donors, region) == 80).all()


def test_what_is_made_is_labelled_and_seeded(tmp_path: Path) -> None:
    data = load_dataset(validated(tmp_path / "data"))
    task = Task("b", 1, *(np.flatnonzero(data.labels == k) for k in (1, 0)))
    makers = paste.makers(paste.Params(area=0.3), data, task)
    first, again, other = (makers.by_step[0](7, seed) for seed in (1, 1, 2))
    assert first.pixels.shape == (7, *data.pixels.shape[1:])
    assert (first.labels == 1).all()
    assert first.sources is not None
    assert np.isin(first.sources, task.sources).all()
    assert np.array_equal(first.pixels, again.pixels)
    assert not np.array_equal(first.pixels, other.pixels)
