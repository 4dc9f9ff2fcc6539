"""What the teacher, and a network that is no part of the chain, think of synthetic images."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax
from torch import Tensor, nn

from stages.core.dataset.data import Dataset, Rows
from stages.core.dataset.resize import resize
from stages.core.gan import fidelity
from stages.core.gan.making import Made, Task
from stages.core.nets.frozen import Frozen
from stages.core.nets.inference import BATCH, batched
from stages.core.nets.net import Ensemble, Net, build
from stages.core.nets.weights import packaged
from stages.core.results.schema.base import Auroc
from stages.core.results.schema.synthetic import Fidelity


class _Features(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.net.features(images),)


class _Logits(nn.Module):
    def __init__(self, teacher: Ensemble) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (self.teacher(images),)


class Judge:
    """Features and the teacher's logits of images of any size."""

    def __init__(
        self,
        data: Dataset,
        teacher: Ensemble,
        backbone: str,
        out_indices: Sequence[int],
        device: torch.device,
        *,
        images: int,
    ) -> None:
        """Prepare both.

        Args:
            data: whose size and channels the images have in the end.
            teacher: on `device`.
            backbone: of the other network, in timm; its packaged ImageNet weights.
            images: about how many both are going to see.
        """
        net = build(backbone, packaged(backbone), out_indices=[*out_indices], data=data).to(device)
        example = torch.from_numpy(np.array(data.pixels[:2]))
        self._image_px = data.image_px
        self._features = Frozen(_Features(net), example, images=images)
        self._logits = Frozen(_Logits(teacher), example, images=images)

    def _run(self, frozen: Frozen, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        out = []
        for piece in batched(pixels, BATCH):
            images = resize(torch.from_numpy(np.ascontiguousarray(piece)), self._image_px)
            out.append(frozen(images)[0].float().cpu().numpy())
        return np.concatenate(out)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(M, S, S, C) to (M, F)."""
        return self._run(self._features, pixels)

    def logits(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(M, S, S, C) to (M, K)."""
        return self._run(self._logits, pixels)


# Images of one kind that are compared, at most: distances between all pairs take their square. For
# copies, which take less, more are.
MOST_COMPARED, MOST_COPIED = 500, 20_000


@dataclass(frozen=True)
class Seen:
    """Some images as the jury sees them.

    Attributes:
        pixels: uint8 (M, S, S, C).
        features: (M, F), standardised.
        logits: (M, K), the teacher's.
    """

    pixels: NDArray[np.uint8]
    features: NDArray[np.float32]
    logits: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.pixels)

    def take(self, chosen: NDArray[np.int64]) -> "Seen":
        """Some of them."""
        return Seen(self.pixels[chosen], self.features[chosen], self.logits[chosen])


class Jury:
    """Compares images with the real ones that a task wants, all at the same resolution.

    The real training images are split at random: against one half others are measured, and the
    other half shows what real images reach. Features are standardised by those of all of them.

    Attributes:
        task: what is wanted.
        real, other: the half that others are not measured against, and as many training images of
            other classes or domains.
    """

    def __init__(
        self,
        judge: Judge,
        data: Dataset,
        task: Task,
        *,
        image_px: int,
        probe_c: float,
        seed: int,
    ) -> None:
        """Look at the real images.

        Args:
            image_px: side of the images that are made.
            probe_c: scikit-learn's C, of the probe of `fidelity.classification_score`.
        """
        self._judge, self._data, self.task = judge, data, task
        self._image_px, self._probe_c = image_px, probe_c
        self._mean, self._deviation = np.float32(0), np.float32(1)

        def some(rows: Rows, most: int) -> Rows:
            return np.random.default_rng(seed).permutation(rows)[:most]

        wanted, others = (some(rows, MOST_COMPARED) for rows in (task.wanted, task.sources))
        features = self._features_of(wanted)
        self._mean, self._deviation = features.mean(0), features.std(0) + 1e-3
        features = (features - self._mean) / self._deviation
        half = len(wanted) // 2
        self._half, self._half_rows = features[half:], wanted[half:]
        self._training = self._thumbnails_of(some(task.wanted, MOST_COPIED))
        self.real = self._seen(self.resized(wanted[:half]), features[:half])
        # What the probe learns as the other class is not what stands for them here.
        half = min(half, len(others) // 2)
        self.other = self._seen(self.resized(others[:half]))
        self._others = self._features_of(others[half:])
        self._other_rows = others[:half]
        self._val = data.rows("val")
        self._probed = some(self._val, MOST_COPIED if task.label is not None else 0)
        self._on_val = self._features_of(self._probed)

    def resized(self, rows: Rows) -> NDArray[np.uint8]:
        """Real images at the resolution of those that are made."""
        return resize(torch.from_numpy(self._data.pixels[rows]), self._image_px).numpy()

    def _thumbnails_of(self, rows: Rows) -> NDArray[np.uint8]:
        parts = [self._data.pixels[batch] for batch in batched(rows, BATCH)]
        small = [resize(torch.from_numpy(x), fidelity.THUMBNAIL_PX).numpy() for x in parts]
        return np.concatenate(small)

    def _features_of(self, rows: Rows) -> NDArray[np.float32]:
        """Standardised features of real images (M, F)."""
        parts = [self.features(self.resized(batch)) for batch in batched(rows, BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Standardised features (M, F) of images (M, S, S, C)."""
        return (self._judge.features(pixels) - self._mean) / self._deviation

    def _seen(self, pixels: NDArray[np.uint8], features: NDArray[np.float32] | None = None) -> Seen:
        known = self.features(pixels) if features is None else features
        return Seen(pixels, known, self._judge.logits(pixels))

    def look(self, made: Made) -> Seen:
        """What was made, as the jury sees it."""
        return self._seen(made.pixels)

    def untouched(self, made: Made) -> NDArray[np.float32] | None:
        """The teacher's logits (M, K) of what a class was made from; None for images from noise.

        None, too, for images that keep their sources' classes.
        """
        if self.task.label is None or made.sources is None:
            return None
        return self._judge.logits(self.resized(made.sources))

    def likely(
        self, labels: NDArray[np.int64], logits: NDArray[np.float32], quantile: float
    ) -> NDArray[np.bool_]:
        """Which of some images (M,) the teacher finds as likely to show their class as real ones.

        Its cross-entropy must not exceed the `quantile` of that of the real validation images of
        the same class. (cGAN-KD, Ding et al. 2021, arXiv 2104.03164, takes the quantile of the
        GAN's own images.) A quantile for unsure images is one that images of other classes pass,
        too; so see how many of the `untouched` ones do.
        """
        keeps = np.zeros(len(labels), bool)
        for label in np.unique(labels):
            rows = self._val[self._data.labels[self._val] == label]
            parts = [self._judge.logits(self.resized(batch)) for batch in batched(rows, BATCH)]
            most = np.quantile(_surprise(np.concatenate(parts), label), quantile)
            mine = labels == label
            keeps[mine] = _surprise(logits[mine], label) <= most
        return keeps

    def score(self, features: NDArray[np.float32]) -> Auroc | None:
        """What a probe that learns the class from images of these features reaches on validation.

        None for images that show no class.
        """
        return self._score(features, self._on_val, self._probed)

    def rehearsal(self, features: NDArray[np.float32]) -> Auroc | None:
        """As `score`, but on training images: what is chosen by it leaves validation unseen."""
        known = np.concatenate([self._half, self.other.features])
        return self._score(features, known, np.r_[self._half_rows, self._other_rows])

    def _score(
        self, features: NDArray[np.float32], real: NDArray[np.float32], rows: Rows
    ) -> Auroc | None:
        if self.task.label is None:
            return None
        return fidelity.classification_score(
            features,
            self._others,
            real,
            (self._data.labels[rows] == self.task.label).astype(np.int64),
            self._data.groups[rows],
            self._probe_c,
        )

    def probability(self, seen: Seen) -> NDArray[np.float32]:
        """The teacher's probability of the class (M,)."""
        assert self.task.label is not None
        return np.exp(-_surprise(seen.logits, self.task.label))

    def compare(self, seen: Seen) -> tuple[Fidelity | None, Fidelity, Fidelity]:
        """All figures of some images, of real ones and of others: of as many of each.

        Returns: None in place of the figures of fewer than two.
        """
        kinds = [self.real, self.other, *([seen] if len(seen) >= 2 else [])]
        first = np.arange(min(map(len, kinds)))
        real, other, *mine = (kind.take(first) for kind in kinds)
        return (
            self._figures(mine[0], self._training) if mine else None,
            self._figures(real, self._thumbnails_of(self._half_rows)),
            self._figures(other, self._training),
        )

    def _figures(self, seen: Seen, training: NDArray[np.uint8]) -> Fidelity:
        """All figures; `training` are the images that they may be copies of."""
        figures = fidelity.neighbourhoods(seen.features, self._half)
        if (score := self.score(seen.features)) is not None:
            figures["classification_score"] = score
            figures["probability"] = float(self.probability(seen).mean())
        return Fidelity(
            authentic=fidelity.authentic(seen.pixels, training, self._data.symmetries),
            kernel_distance=fidelity.kernel_distance(seen.features, self._half),
            **figures,
        )


def _surprise(logits: NDArray[np.float32], label: int) -> NDArray[np.float32]:
    """Cross-entropy (M,) in nats of images that are to show a class."""
    loss: NDArray[np.float32] = -log_softmax(logits, axis=1)[:, label]
    return loss
