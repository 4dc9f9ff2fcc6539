"""The teacher's logits on disk, as the targets stage writes and the students read them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.data import Dataset
from stages.core.views import Views


@dataclass(frozen=True)
class Targets:
    """What the teacher says, and the views that it was shown.

    Attributes:
        views: the very views; view v of the students is view v of the teacher.
        count: number of views V.
        plain: float32 (N, K) logits of every image as it is.
    """

    views: Views
    count: int
    plain: NDArray[np.float32]
    _logits: Tensor
    _place: NDArray[np.int64]

    def logits(self, rows: NDArray[np.int64], view: int) -> Tensor:
        """Logits (B, K) of one view of training images."""
        return self._logits[view][torch.from_numpy(self._place[rows])]


def save_targets(
    folder: Path, views: Views, logits: NDArray[np.float32], plain: NDArray[np.float32]
) -> None:
    """Write (V, n_train, K) logits of the training images' views, and (N, K) plain ones."""
    folder.mkdir()
    np.save(folder / "views.npy", logits)
    np.save(folder / "plain.npy", plain)
    shown = {"seed": views.seed, "jitter": views.jitter}
    (folder / "views.json").write_text(json.dumps(shown) + "\n")


def load_targets(folder: Path, data: Dataset) -> Targets:
    """What `save_targets` wrote, for the same validated data."""
    shown = json.loads((folder / "views.json").read_text())
    logits = np.load(folder / "views.npy")
    train = data.rows("train")
    place = np.full(len(data.labels), -1, dtype=np.int64)
    place[train] = np.arange(len(train))
    return Targets(
        views=Views(data.pixels, shown["seed"], shown["jitter"]),
        count=len(logits),
        plain=np.load(folder / "plain.npy"),
        _logits=torch.from_numpy(logits),
        _place=place,
    )
