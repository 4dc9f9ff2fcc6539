"""The teacher's logits on disk, as the targets stage writes and the students read them."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.dataset.data import Dataset
from stages.core.dataset.views import Views
from stages.core.nets.inference import as_half


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
    _features: NDArray[np.float16] | None
    _place: NDArray[np.int64]

    @property
    def has_features(self) -> bool:
        return self._features is not None

    def logits(self, rows: NDArray[np.int64], view: int) -> Tensor:
        """Logits (B, K) of one view of images that are taught (`Dataset.distillation_rows`)."""
        return self._logits[view][torch.from_numpy(self._place[rows])].float()

    def features(self, rows: NDArray[np.int64], view: int) -> Tensor:
        """The teacher's standardised features (B, G) of one view of images that are taught."""
        assert self._features is not None
        return torch.from_numpy(self._features[view][self._place[rows]]).float()


def save_targets(
    folder: Path,
    views: Views,
    logits: NDArray[np.float32],
    plain: NDArray[np.float32],
    features: NDArray[np.float16] | None,
) -> None:
    """Write logits of V views of the n taught images, and of all N as they are.

    Args:
        logits: (V, n, K), stored as float16.
        plain: (N, K).
        features: (V, n, G).

    Raises: TrainingDiverged for logits that are too large.
    """
    folder.mkdir()
    stored = as_half(torch.from_numpy(logits), "the teacher's logits")
    np.save(folder / "views.npy", stored.numpy())
    np.save(folder / "plain.npy", plain)
    if features is not None:
        np.save(folder / "features.npy", features)
    shown = {"seed": views.seed, "jitter": views.jitter}
    (folder / "views.json").write_text(json.dumps(shown) + "\n")


def load_targets(folder: Path, data: Dataset) -> Targets:
    """What `save_targets` wrote, for the same validated data."""
    shown = json.loads((folder / "views.json").read_text())
    logits = np.load(folder / "views.npy")
    features = folder / "features.npy"
    place = np.full(len(data.labels), -1, dtype=np.int64)
    assert logits.shape[1] == len(data.distillation_rows)
    place[data.distillation_rows] = np.arange(len(data.distillation_rows))
    return Targets(
        views=Views(data.pixels, shown["seed"], shown["jitter"]),
        count=len(logits),
        plain=np.load(folder / "plain.npy"),
        _logits=torch.from_numpy(logits),
        _features=np.load(features, mmap_mode="r") if features.exists() else None,
        _place=place,
    )
