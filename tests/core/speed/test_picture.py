from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.speed.picture import latencies


@pytest.mark.parametrize("load", [[], [(10.0, 1.5, 3.0), (20.0, 2.0, 40.0)]])
@pytest.mark.parametrize("count", [3, 40])
def test_it_is_drawn_whatever_was_measured(
    tmp_path: Path, load: list[tuple[float, float, float]], count: int
) -> None:
    draws = np.random.default_rng(0)
    samples = {f"engine {n}": np.sort(draws.exponential(1 + n, 50)) for n in range(count)}
    latencies(tmp_path / "latencies.png", samples, load, 10.0)
    with Image.open(tmp_path / "latencies.png") as image:
        width, height = image.size
    assert (width > 2 * height) == bool(load)
