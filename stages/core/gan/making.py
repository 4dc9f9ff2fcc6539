"""What every way of making images is asked for, and what it gives."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from stages.core.dataset.data import Rows


@dataclass(frozen=True)
class Task:
    """What images are to show, and what there is to make them from.

    Attributes:
        to: name of the class, or of the domain.
        label: the class that they are to show; None where they keep their sources' own.
        wanted: real images that show it, at least `FEWEST_WANTED`.
        sources: labelled images that do not.
    """

    to: str
    label: int | None
    wanted: Rows
    sources: Rows


# Fewer real images can be told nothing about.
FEWEST_WANTED = 4


@dataclass(frozen=True)
class Made:
    """Images that were made.

    Attributes:
        pixels: uint8 (M, S, S, C).
        labels: int64 (M,).
        sources: of which images each was made (M,); None where of none.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    sources: Rows | None

    def take(self, chosen: NDArray[np.int64]) -> "Made":
        """Some of them."""
        sources = None if self.sources is None else self.sources[chosen]
        return Made(self.pixels[chosen], self.labels[chosen], sources)


# A number of images, and a seed.
Maker = Callable[[int, int], Made]


@dataclass(frozen=True)
class Makers:
    """What a way of making images offers.

    Attributes:
        by_step: one for each kept state of a training, by its number of steps; without training,
            one at 0.
        image_px: side of the images.
        curves: of the training, one row per checkpoint.
        failure: why the training ended early; None where it did not.
    """

    by_step: dict[int, Maker]
    image_px: int
    curves: pd.DataFrame
    failure: str | None = None


def labels_of(task: Task, labels: NDArray[np.int64], sources: Rows) -> NDArray[np.int64]:
    """The classes that images made of `sources` show (M,); `labels` are the dataset's."""
    if task.label is None:
        return labels[sources]
    return np.full(len(sources), task.label, dtype=np.int64)
