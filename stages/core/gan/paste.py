"""No GAN: regions of real images of a class, blended into others of the same group.

After CutPaste (Li et al. 2021, arXiv 2104.04015) and copy-paste (Ghiasi et al. 2021, arXiv
2012.07177), without masks: the regions are random.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import Field
from scipy.ndimage import gaussian_filter

from stages.core.dataset.data import Dataset
from stages.core.gan.companions import Companions
from stages.core.gan.making import Made, Makers, Task
from stages.core.runner.params import Section

# Size of a region's bumps, and width of its soft edge, as shares of the image's side and of the
# deviation of the field that makes it.
SMOOTHNESS, SOFTNESS = 0.09, 0.15


class Params(Section):
    """Section `augment.paste`."""

    area: float = Field(gt=0, le=1)


def regions(count: int, side: int, area: float, draws: np.random.Generator) -> NDArray[np.float32]:
    """Random soft regions of about a share `area` of the image, 0 to 1: (count, side, side)."""
    noise = draws.standard_normal((count, side, side), dtype=np.float32)
    field = gaussian_filter(noise, (0, SMOOTHNESS * side, SMOOTHNESS * side), mode="wrap")
    edge = np.quantile(field, 1 - area, axis=(1, 2), keepdims=True)
    softness = SOFTNESS * field.std((1, 2), keepdims=True)
    region: NDArray[np.float32] = (1 / (1 + np.exp((edge - field) / softness))).astype(np.float32)
    return region


def blended(
    sources: NDArray[np.uint8], donors: NDArray[np.uint8], region: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """The donors' regions (B, P, P) in the sources (B, P, P, C): the same shape, uint8.

    Donors are brought to the sources' median first, so that an edge shows where they differ alone.
    """
    into, piece = sources.astype(np.float32), donors.astype(np.float32)
    shift = np.median(into, (1, 2), keepdims=True) - np.median(piece, (1, 2), keepdims=True)
    mixed = into + region[..., None] * (piece + shift - into)
    pixels: NDArray[np.uint8] = mixed.round().clip(0, 255).astype(np.uint8)
    return pixels


def makers(params: Params, data: Dataset, task: Task) -> Makers:
    """What pastes regions of images of the wanted class, which there must be."""
    assert task.label is not None
    label, donors = task.label, Companions(task.wanted, data.groups, data.domains)

    def make(count: int, seed: int) -> Made:
        draws = np.random.default_rng(seed)
        sources = draws.choice(task.sources, count)
        pieces = donors.of(sources, draws.random(count))
        pixels = np.empty((count, *data.pixels.shape[1:]), np.uint8)
        for start in range(0, count, 32):
            s, d = sources[start : start + 32], pieces[start : start + 32]
            region = regions(len(s), data.image_px, params.area, draws)
            pixels[start : start + len(s)] = blended(data.pixels[s], data.pixels[d], region)
        return Made(pixels, np.full(count, label, dtype=np.int64), sources)

    return Makers({0: make}, data.image_px, pd.DataFrame({"step": []}))
