from typing import get_args

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stages.core.dataset.disturbances import DISTURBANCES, disturbed
from stages.core.results.schema.shipped import Disturbed

DRAWS = np.random.default_rng(0)
IMAGES = DRAWS.integers(40, 180, (3, 100, 100, 1), dtype=np.uint8)


def test_each_kind_is_known_to_the_metrics() -> None:
    assert set(get_args(Disturbed)) == set(DISTURBANCES)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", DISTURBANCES)
def test_the_shape_stays_and_the_same_happens_each_time(kind: str, channels: int) -> None:
    images = np.repeat(IMAGES, channels, 3)
    before = images.copy()
    output = disturbed(images, kind)
    assert output.shape == images.shape
    assert output.dtype == np.uint8
    assert (output != before).mean() > 0.5
    assert (images == before).all()
    assert (disturbed(images, kind) == output).all()


def test_the_strengths_are_as_stated() -> None:
    flat = np.full((2, 200, 200, 1), 100, np.uint8)
    noise = disturbed(flat, "noise") - 100.0
    assert noise.std() == pytest.approx(8, rel=0.02)
    assert noise.mean() == pytest.approx(0, abs=0.1)
    assert (disturbed(flat, "brighter") == 125).all()
    assert (disturbed(flat, "darker") == 80).all()
    assert (disturbed(flat + np.uint8(150), "brighter") == 255).all()
    expected = gaussian_filter(IMAGES[0, ..., 0].astype(float), 1.0, mode="mirror", truncate=3)
    np.testing.assert_allclose(disturbed(IMAGES, "blur")[0, ..., 0], expected, atol=1)
