"""Images that a student may learn from beside the real ones: what `augment` writes, `refine` reads.

Like the real ones, they are seen in seeded views, with the teacher's logits for each view.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.dataset.data import Dataset, Rows
from stages.core.dataset.resize import resize
from stages.core.dataset.views import Views


@dataclass(frozen=True)
class Supplement:
    """M images in V views.

    Attributes:
        views: of the images, at the size of the dataset's.
        labels: int64 (M,).
        logits: float32 (V, M, K), the teacher's.
    """

    views: Views
    labels: NDArray[np.int64]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Rows, view: int) -> tuple[Tensor, Tensor, Tensor]:
        """View number `view` modulo V: images (B, P, P, C), labels (B,), logits (B, K)."""
        view %= len(self.logits)
        labels, logits = self.labels[rows], self.logits[view, rows]
        return self.views.batch(rows, view), torch.from_numpy(labels), torch.from_numpy(logits)


def seen(pixels: NDArray[np.uint8], data: Dataset, seed: int, jitter: float) -> Views:
    """Views of images (M, S, S, C), brought to the size of the dataset's."""
    large = resize(torch.from_numpy(pixels), data.image_px).numpy()
    return Views(large, seed, jitter, data.symmetries)


def save_supplement(folder: Path, pixels: NDArray[np.uint8], supplement: Supplement) -> None:
    """Write the images at their own size (M, S, S, C), and what is known of them."""
    folder.mkdir(parents=True)
    np.save(folder / "pixels.npy", pixels)
    np.save(folder / "labels.npy", supplement.labels)
    np.save(folder / "logits.npy", supplement.logits)
    how = {"seed": supplement.views.seed, "jitter": supplement.views.jitter}
    (folder / "views.json").write_text(json.dumps(how) + "\n")


def load_supplement(folder: Path, data: Dataset) -> Supplement:
    """What `save_supplement` wrote, for the same validated data."""
    pixels, labels, logits = (
        np.load(folder / f"{name}.npy") for name in ("pixels", "labels", "logits")
    )
    how = json.loads((folder / "views.json").read_text())
    return Supplement(seen(pixels, data, how["seed"], how["jitter"]), labels, logits)
