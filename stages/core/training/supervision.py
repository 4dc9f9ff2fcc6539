"""How labels teach: soft labels, class imbalance, label smoothing, mixup."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from stages.core.dataset.data import Dataset, Rows
from stages.core.nets.net import Activations, Net
from stages.core.runner import processes
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import Section
from stages.core.training import losses
from stages.core.training.fit import Loss
from stages.core.training.inputs import Inputs


class Supervision(Section):
    """Part of the sections that learn from labels alone."""

    soft_labels: list[str] | None
    imbalance: Literal["none", "weights", "focal", "balanced"]
    focal_gamma: float = Field(ge=0, le=10)
    label_smoothing: float = Field(ge=0, lt=1)
    mixup: float = Field(ge=0, le=10)

    def probabilities(self, data: Dataset) -> Tensor:
        """Probabilities (N, K) that the network is to give; zero where an image is unlabelled.

        Raises: ParamsError when a column of `soft_labels` is not there or holds no probability.
        """
        labelled = torch.from_numpy(data.labels >= 0)[:, None]
        if not self.soft_labels:
            labels = torch.from_numpy(data.labels).clamp_min(0)
            return F.one_hot(labels, len(data.classes)).float() * labelled
        columns = []
        for name in self.soft_labels:
            if name not in data.columns:
                raise ParamsError(
                    f"soft_labels: no column {name!r} in the metadata; found "
                    f"{', '.join(data.columns)}"
                )
            values = data.numbers(name)
            if not ((values >= 0) & (values <= 1))[data.labels >= 0].all():
                raise ParamsError(f"soft_labels: column {name!r} holds more than 0 to 1")
            # What an unlabelled image says counts for nothing, whatever it is.
            columns.append(torch.tensor(np.where(data.labels >= 0, values, 0)).float())
        if len(columns) == 1 and len(data.classes) == 2:
            columns = [1 - columns[0], columns[0]]
        if len(columns) != len(data.classes):
            raise ParamsError(
                f"soft_labels: {len(columns)} columns for {len(data.classes)} classes; expected "
                "one per class, in their order (of two classes, the last one's is enough)"
            )
        probabilities = torch.stack(columns, 1)
        if (probabilities[labelled[:, 0]].sum(1) - 1).abs().max() > 0.01:
            raise ParamsError(
                f"soft_labels: the columns {', '.join(self.soft_labels)} should add up to 1 for "
                "each image, and do not"
            )
        return probabilities * labelled

    def class_weights(self, data: Dataset) -> Tensor | None:
        """Inverse frequencies (K,) in the training split, with mean 1 over its images."""
        return self._inverse_frequencies(data) if self.imbalance == "weights" else None

    def image_weights(self, data: Dataset, rows: Rows) -> NDArray[np.float64] | None:
        """Of training images `rows` (n,), for a learner that sees all of them at once; None: none.

        Class weights and repeated images come to the same there; focal loss has no weights.
        """
        if self.imbalance not in ("weights", "balanced"):
            return None
        return self._inverse_frequencies(data).double().numpy()[data.labels[rows]]

    @staticmethod
    def _inverse_frequencies(data: Dataset) -> Tensor:
        counts = np.bincount(data.labels[data.rows("train")], minlength=len(data.classes))
        return torch.from_numpy(counts.sum() / (len(counts) * counts)).float()

    def balance(self, data: Dataset, rows: Rows) -> Rows:
        """`rows`, the scarcer classes repeated until all are alike if `balanced`."""
        if self.imbalance != "balanced":
            return rows
        by_class = [rows[data.labels[rows] == k] for k in range(len(data.classes))]
        most = max(map(len, by_class))
        return np.concatenate([np.resize(each, most) for each in by_class])

    def loss(self, data: Dataset, inputs: Inputs, view_count: int, seed: int) -> Loss:
        """Cross-entropy (or focal loss) on seeded views; epoch e shows view e modulo `view_count`.

        Mixup (Zhang et al. 2018, arXiv 1710.09412) mixes what goes into the layers that learn:
        above frozen ones it is manifold mixup (Verma et al. 2019, arXiv 1806.05236).

        Raises: ParamsError for mixup where several processes train together.
        """
        probabilities, weights = self.probabilities(data), self.class_weights(data)
        probabilities = probabilities.lerp(
            torch.full_like(probabilities, 1 / len(data.classes)), self.label_smoothing
        )
        if self.mixup:
            processes.require_single_process("mixup")

        def loss(net: Net, rows: Rows, epoch: int) -> Tensor:
            view, targets = epoch % view_count, probabilities[rows]
            if self.mixup and not net.links():
                raise ParamsError(
                    f"mixup: {net.spec.backbone} is no chain of layers to mix between; set it to 0"
                )
            if self.mixup:
                draws = np.random.default_rng([seed, epoch, int(rows[0])])
                share = float(draws.beta(self.mixup, self.mixup))
                other = torch.from_numpy(draws.permutation(len(rows)))
                lowest = inputs.activations(rows, view)
                maps, pooled = (x.lerp(x[other], 1 - share) for x in (lowest.maps, lowest.pooled))
                logits = net(Activations(maps, pooled, lowest.links))
                targets = targets.lerp(targets[other], 1 - share)
            else:
                logits = net(inputs.batch(rows, view))
            if self.imbalance == "focal":
                return losses.focal(logits, targets.to(logits.device), gamma=self.focal_gamma)
            return F.cross_entropy(
                logits,
                targets.to(logits.device),
                weight=None if weights is None else weights.to(logits.device),
            )

        return loss
