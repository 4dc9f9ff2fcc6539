"""The teacher's logits on disk, as the targets stage writes and the students read them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.dataset.data import Dataset, Rows
from stages.core.dataset.views import Views
from stages.core.nets.inference import as_half
from stages.core.runner import disk


@dataclass(frozen=True)
class Targets:
    """The teacher's logits, and the views that they are of.

    Attributes:
        views: the very views; view v of the students is view v of the teacher.
        view_count: number of views V.
        plain: float32 (N, K) logits of every image as it is.
    """

    views: Views
    view_count: int
    plain: NDArray[np.float32]
    _logits: Tensor
    _features: NDArray[np.float16] | None
    _place: NDArray[np.int64]

    @property
    def has_features(self) -> bool:
        return self._features is not None

    def logits(self, rows: Rows, view: int) -> Tensor:
        """Logits (B, K) of one view of images in `Dataset.distillation_rows`."""
        return self._logits[view][torch.from_numpy(self._place[rows])].float()

    def features(self, rows: Rows, view: int) -> Tensor:
        """The teacher's standardised features (B, G), as `logits`."""
        assert self._features is not None
        return torch.from_numpy(self._features[view][self._place[rows]]).float()


def save_targets(
    folder: Path,
    views: Views,
    view_count: int,
    outputs: Iterable[tuple[Tensor, Tensor]],
    plain: NDArray[np.float32],
) -> None:
    """Write logits of V views of the n distillation rows, and of all N images as they are.

    Args:
        view_count: V.
        outputs: of each view the logits (n, K), stored as float16, and float16 features (n, G);
            G = 0 stores no features.
        plain: (N, K).

    Raises: TrainingDiverged for logits that are too large.
    """
    folder.mkdir()
    files: dict[str, np.memmap[Any, Any]] = {}
    for view, (logits, features) in enumerate(outputs):
        half = as_half(logits, "the teacher's logits")
        for name, x in {"views": half, "features": features}.items():
            if not x.shape[1]:
                continue
            if not view:
                shape = (view_count, *x.shape)
                files[name] = disk.allocated(folder / f"{name}.npy", np.float16, shape)
            files[name][view] = x.numpy()
    for file in files.values():
        file.flush()
    np.save(folder / "plain.npy", plain)
    (folder / "views.json").write_text(
        json.dumps({"seed": views.seed, "jitter": views.jitter, "mix": views.mix}) + "\n"
    )


def load_targets(folder: Path, data: Dataset) -> Targets:
    """What `save_targets` wrote, for the same validated data."""
    how = json.loads((folder / "views.json").read_text())
    logits = np.load(folder / "views.npy")
    features = folder / "features.npy"
    place = np.full(len(data.labels), -1, dtype=np.int64)
    rows = data.distillation_rows
    assert logits.shape[1] == len(rows)
    place[rows] = np.arange(len(rows))
    return Targets(
        views=Views(
            data.pixels,
            how["seed"],
            how["jitter"],
            data.symmetries,
            how["mix"],
            data.rows("train"),
        ),
        view_count=len(logits),
        plain=np.load(folder / "plain.npy"),
        _logits=torch.from_numpy(logits),
        _features=np.load(features, mmap_mode="r") if features.exists() else None,
        _place=place,
    )
