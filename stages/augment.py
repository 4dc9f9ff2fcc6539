"""Synthetic images of the rarest class, from a class-conditional GAN, judged by the teacher.

Reads:  data/validated/, data/models/teacher/
Writes: data/augmented/ (pixels.npy, labels.npy, logits.npy), data/models/gan/, metrics, curves,
        a picture of samples beside their nearest real images
Params: augment
Run:    dvc repro augment
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch.nn import functional as F

from stages.core.dataset.data import Dataset, Rows, Split, load_dataset
from stages.core.dataset.resize import resize
from stages.core.gan import training as gan_training
from stages.core.gan.networks import Generator
from stages.core.gan.training import RealImages
from stages.core.nets.inference import BATCH, run_batched
from stages.core.nets.net import build, load_teacher, save_weights
from stages.core.nets.weights import packaged
from stages.core.results import metrics, pictures, report
from stages.core.results.schema import AugmentMetrics
from stages.core.runner import disk, stage
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.runtime import Resources


class Params(gan_training.Recipe):
    """Section `augment`."""

    image_px: int = Field(ge=16, le=256)
    images: int = Field(ge=1)
    keep_quantile: float = Field(gt=0, le=1)
    judge_backbone: str = Field(min_length=1)
    judge_out_indices: list[int] = Field(min_length=1)

    @field_validator("image_px")
    @classmethod
    def _power_of_two(cls, image_px: int) -> int:
        if image_px & (image_px - 1):
            raise PydanticCustomError("power", "expected a power of two")
        return image_px


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    teacher: Path = stage.reads()
    augmented: Path = stage.writes()
    gan: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes()
    samples: Path = stage.writes()


# Images of one kind that KID is measured on, at most: its kernel has the square of this.
MOST_JUDGED = 5000


def reduced(data: Dataset, rows: Rows, image_px: int, path: Path) -> NDArray[np.uint8]:
    """Some images at the GAN's size, uint8 (n, image_px, image_px, C), on the disk.

    Raises: OSError when it is full.
    """
    shape = (len(rows), image_px, image_px, data.channels)
    path.parent.mkdir(parents=True, exist_ok=True)
    images: NDArray[np.uint8] = disk.allocated(path, np.uint8, shape)
    for start in range(0, len(rows), BATCH):
        piece = torch.from_numpy(data.pixels[rows[start : start + BATCH]])
        images[start : start + len(piece)] = resize(piece, image_px).numpy()
    return images


def generate(
    generator: Generator, label: int, count: int, device: torch.device, seed: int
) -> NDArray[np.uint8]:
    """`count` images of one class: uint8 (count, S, S, C)."""
    draws = torch.Generator().manual_seed(seed)
    images = []
    with torch.inference_mode():
        for start in range(0, count, 64):
            n = min(64, count - start)
            z = torch.randn(n, generator.noise, generator=draws).to(device)
            x = generator(z, torch.full((n,), label, device=device))
            images.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(images).permute(0, 2, 3, 1).contiguous().numpy()


def kept_by_teacher(
    logits: NDArray[np.float32], label: int, burn_in: int, quantile: float
) -> NDArray[np.int64]:
    """Indices of the images that the teacher finds like enough to their class.

    The teacher's cross-entropy must not exceed the `quantile` of that of the first `burn_in` images
    (cGAN-KD, Ding et al. 2021, arXiv 2104.03164); those only set the threshold.
    """
    losses = F.cross_entropy(
        torch.from_numpy(logits), torch.full((len(logits),), label), reduction="none"
    ).numpy()
    threshold = np.quantile(losses[:burn_in], quantile)
    return burn_in + np.flatnonzero(losses[burn_in:] <= threshold)


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Train the GAN, make images of the rarest class, filter and measure them."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    teacher = load_teacher(paths.teacher).to(device)
    train = data.rows("train")
    labels = data.labels[train]
    rarest = int(np.bincount(labels).argmin())
    small = reduced(data, train, params.image_px, paths.scratch / "real.npy")
    real = RealImages(
        torch.from_numpy(small), torch.from_numpy(labels), len(data.classes), data.symmetries
    )
    generator, curves = gan_training.train(real, params, device, Checkpoint(paths.scratch, "gan"))

    candidates = generate(generator, rarest, 2 * params.images, device, params.seed)
    large = resize(torch.from_numpy(candidates), data.image_px)
    logits = run_batched(teacher, lambda rows: large[rows], np.arange(len(candidates)), device)
    chosen = kept_by_teacher(logits, rarest, params.images, params.keep_quantile)
    fakes = candidates[chosen]

    kid, kid_real = measure(fakes, data, rarest, params, device)
    save(paths, data, generator, fakes, logits[chosen], rarest)
    curves.to_csv(paths.curves, index=False)
    pictures.beside_nearest(paths.samples, fakes, small[labels == rarest])
    report.write_metrics(
        paths.metrics,
        AugmentMetrics(
            **{"class": data.classes[rarest]},
            images=len(fakes),
            kept_share=len(fakes) / params.images,
            teacher_agrees=float((logits.argmax(1) == rarest).mean()),
            kid=kid,
            kid_real=kid_real,
        ),
    )


def measure(
    fakes: NDArray[np.uint8], data: Dataset, label: int, params: Params, device: torch.device
) -> tuple[float, float]:
    """KID of the fakes, and of real training images, against the held-out reals of the class.

    In the standardised features of an ImageNet network that judges nothing else, on at most
    `MOST_JUDGED` images of each kind.
    """
    judge = build(
        params.judge_backbone,
        packaged(params.judge_backbone),
        out_indices=params.judge_out_indices,
        data=data,
    ).to(device)

    def features(images: Callable[[Rows], torch.Tensor], count: int) -> NDArray[np.float32]:
        every = np.arange(count)
        if count > MOST_JUDGED:
            every = np.sort(np.random.default_rng(0).choice(every, MOST_JUDGED, replace=False))
        return run_batched(judge.features, images, every, device)

    def as_small(images: torch.Tensor) -> torch.Tensor:
        # The reals as small as the fakes are, so that sharpness alone tells nothing.
        return resize(resize(images, params.image_px), data.image_px)

    def real(split: Split) -> NDArray[np.float32]:
        rows = data.rows(split)
        rows = rows[data.labels[rows] == label]
        return features(lambda r: as_small(torch.from_numpy(data.pixels[rows[r]])), len(rows))

    train, val = real("train"), real("val")
    synthetic = torch.from_numpy(fakes)
    fake = features(lambda r: resize(synthetic[r], data.image_px), len(fakes))
    mean, spread = train.mean(0), train.std(0) + 1e-3
    train, val, fake = ((x - mean) / spread for x in (train, val, fake))
    return metrics.kernel_distance(fake, val), metrics.kernel_distance(train, val)


def save(
    paths: Paths,
    data: Dataset,
    generator: Generator,
    images: NDArray[np.uint8],
    logits: NDArray[np.float32],
    label: int,
) -> None:
    """Write the synthetic images with the teacher's logits, and the generator."""
    paths.augmented.mkdir()
    np.save(paths.augmented / "pixels.npy", images)
    np.save(paths.augmented / "logits.npy", logits)
    np.save(paths.augmented / "labels.npy", np.full(len(images), label, dtype=np.int64))
    paths.gan.mkdir()
    save_weights(generator, paths.gan / "model.safetensors")
    config = {"classes": data.classes, "image_px": images.shape[1], "channels": data.channels}
    (paths.gan / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    stage.main("augment", Params, Paths, run)
