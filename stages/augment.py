"""Synthetic images of the scarcer class, from a class-conditional GAN, judged by the teacher.

Reads:  data/validated/, data/models/teacher/
Writes: data/augmented/ (pixels.npy, labels.npy, logits.npy), data/models/gan/, metrics, curves,
        a picture of samples beside their nearest real images
Params: augment
Run:    dvc repro augment
"""

import copy
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from safetensors.torch import save_file
from torch.nn import functional as F

from stages.core.dataset.data import Dataset, Split, load_dataset
from stages.core.dataset.resize import resize
from stages.core.dataset.views import turn
from stages.core.gan import gan
from stages.core.nets.inference import BATCH, batched, run_batched
from stages.core.nets.net import build, load_teacher
from stages.core.nets.weights import packaged
from stages.core.results import metrics, pictures, report
from stages.core.runner import stage
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.errors import TrainingDiverged
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress
from stages.core.runner.runtime import Resources


class Params(Section):
    """Section `augment`."""

    image_px: int = Field(ge=16, le=256)
    width: int = Field(ge=8, le=512, multiple_of=8)
    noise: int = Field(ge=1, le=1024)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2, le=1024)
    learning_rate: float = Field(gt=0, le=0.1)
    penalty: float = Field(ge=0)
    penalty_every: int = Field(ge=1)
    average_decay: float = Field(ge=0, lt=1)
    images: int = Field(ge=1)
    keep_quantile: float = Field(gt=0, le=1)
    judge_backbone: str = Field(min_length=1)
    judge_out_indices: list[int] = Field(min_length=1)
    seed: int = Field(ge=0)

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


# Symmetries (see views.turn) that leave a rectangular pattern upright.
UPRIGHT = torch.tensor([0, 2, 4, 6])
CHECKPOINT_EVERY = 100


def train_gan(
    images: torch.Tensor,
    labels: torch.Tensor,
    classes: int,
    params: Params,
    device: torch.device,
    kept: Checkpoint,
) -> tuple[gan.Generator, pd.DataFrame]:
    """The averaged generator, and the curves of both players.

    Args:
        images: uint8 (N, S, S, C) real images, S = params.image_px.
        labels: int64 (N,).

    Every step draws all classes alike, whatever their shares. Its randomness follows from
    (seed, step), so a resumed run ends with the same weights.

    Raises: TrainingDiverged.
    """
    torch.manual_seed(params.seed)
    channels = images.shape[3]
    generator = gan.Generator(classes, channels, params.image_px, params.width, params.noise)
    discriminator = gan.Discriminator(classes, channels, params.image_px, params.width)
    average = copy.deepcopy(generator)
    players = {"generator": generator, "discriminator": discriminator, "average": average}
    for net in players.values():
        net.to(device).to(memory_format=torch.channels_last)
    optimizers = {
        name: torch.optim.Adam(
            players[name].parameters(), lr=params.learning_rate, betas=(0.0, 0.99)
        )
        for name in ("generator", "discriminator")
    }
    curves: list[dict[str, float]] = []
    first = 0
    if (state := kept.load()) is not None:
        for name, net in players.items():
            net.load_state_dict(state[name])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        curves, first = state["curves"], state["step"]

    members = [torch.nonzero(labels == k)[:, 0] for k in range(classes)]
    progress = Progress("GAN", params.steps, done=first)
    for step in range(first, params.steps):
        draws = torch.Generator().manual_seed(params.seed * 1_000_003 + step)

        def batch(draws: torch.Generator = draws) -> tuple[torch.Tensor, ...]:
            y = torch.randint(classes, (params.batch_size,), generator=draws)
            at = torch.rand(params.batch_size, generator=draws)
            rows = torch.stack(
                [members[k][int(u * len(members[k]))] for k, u in zip(y.tolist(), at, strict=True)]
            )
            symmetry = UPRIGHT[torch.randint(4, (len(rows),), generator=draws)]
            real = turn(images[rows], symmetry).permute(0, 3, 1, 2).float() / 127.5 - 1
            z = torch.randn(params.batch_size, params.noise, generator=draws)
            return real.to(device), y.to(device), z.to(device)

        real, y, z = batch()
        fake = generator(z, y).detach()
        real_seen = gan.augment(real, draws).requires_grad_()
        fake_seen = gan.augment(fake, draws).requires_grad_()
        real_score, fake_score = discriminator(real_seen, y), discriminator(fake_seen, y)
        loss_d = gan.pairing_loss(real_score, fake_score)
        total = loss_d
        if step % params.penalty_every == 0:
            r1 = gan.gradient_penalty(real_score, real_seen)
            r2 = gan.gradient_penalty(fake_score, fake_seen)
            total = loss_d + params.penalty_every * params.penalty / 2 * (r1 + r2)
        optimizers["discriminator"].zero_grad()
        torch.autograd.backward(total)
        optimizers["discriminator"].step()

        real, y, z = batch()
        fake_score = discriminator(gan.augment(generator(z, y), draws), y)
        with torch.no_grad():
            real_score = discriminator(gan.augment(real, draws), y)
        loss_g = gan.pairing_loss(fake_score, real_score)
        if not torch.isfinite(loss_g + loss_d):
            raise TrainingDiverged(
                f"GAN: a loss is not finite in step {step + 1}; lower augment.learning_rate (now "
                f"{params.learning_rate:g}) or raise augment.penalty (now {params.penalty:g})"
            )
        optimizers["generator"].zero_grad()
        torch.autograd.backward(loss_g)
        optimizers["generator"].step()
        # The average must not remember the first steps: its decay grows up to the parameter.
        gan.update_average(average, generator, min(params.average_decay, (1 + step) / (10 + step)))

        progress.step(where=f"step {step + 1}/{params.steps}")
        if (step + 1) % CHECKPOINT_EVERY == 0 or step + 1 == params.steps:
            figures = {"generator": loss_g.item(), "discriminator": loss_d.item()}
            curves.append({"step": step + 1, **figures})
            progress.step(0, where=f"step {step + 1}/{params.steps}", figures=figures)
            kept.save(
                {name: net.state_dict() for name, net in players.items()}
                | {"optimizers": {k: o.state_dict() for k, o in optimizers.items()}}
                | {"curves": curves, "step": step + 1}
            )
    return average.eval(), pd.DataFrame(curves)


def generate(
    generator: gan.Generator, label: int, count: int, device: torch.device, seed: int
) -> NDArray[np.uint8]:
    """`count` images of one class: uint8 (count, S, S, C)."""
    draws = torch.Generator().manual_seed(seed)
    made = []
    with torch.inference_mode():
        for start in range(0, count, 64):
            n = min(64, count - start)
            z = torch.randn(n, generator.noise, generator=draws).to(device)
            x = generator(z, torch.full((n,), label, device=device))
            made.append(((x + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(made).permute(0, 2, 3, 1).contiguous().numpy()


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
    """Train the GAN, make images of the scarcest class, filter and measure them."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    teacher = load_teacher(paths.teacher).to(device)
    train = data.rows("train")
    scarce = int(np.bincount(data.labels[train]).argmin())
    pieces = batched(np.arange(len(data.labels)), BATCH)
    small = torch.cat([resize(torch.from_numpy(data.pixels[p]), params.image_px) for p in pieces])

    generator, curves = train_gan(
        small[train],
        torch.from_numpy(data.labels[train]),
        len(data.classes),
        params,
        device,
        Checkpoint(paths.scratch, "gan"),
    )

    made = generate(generator, scarce, 2 * params.images, device, params.seed)
    large = resize(torch.from_numpy(made), data.image_px)
    every = np.arange(len(made))
    logits = run_batched(teacher, lambda rows: large[rows], every, device)
    kept = kept_by_teacher(logits, scarce, params.images, params.keep_quantile)

    figures = measure(made[kept], small, data, scarce, params, device)
    save(paths, data, generator, made[kept], logits[kept], scarce)
    curves.to_csv(paths.curves, index=False)
    real = small[train[data.labels[train] == scarce]].numpy()
    pictures.beside_nearest(paths.samples, made[kept], real)
    report.write_metrics(
        paths.metrics,
        {
            "class": data.classes[scarce],
            "images": len(kept),
            "kept_share": len(kept) / params.images,
            "teacher_agrees": float((logits.argmax(1) == scarce).mean()),
            **figures,
        },
    )


def measure(
    fakes: NDArray[np.uint8],
    small: torch.Tensor,
    data: Dataset,
    label: int,
    params: Params,
    device: torch.device,
) -> dict[str, float]:
    """KID of the fakes, and of real training images, against the held-out reals of the class.

    In the standardised features of an ImageNet network that judges nothing else.
    """
    judge = build(
        params.judge_backbone,
        packaged(params.judge_backbone),
        out_indices=params.judge_out_indices,
        data=data,
    ).to(device)

    def features(images: torch.Tensor) -> NDArray[np.float32]:
        every = np.arange(len(images))
        return run_batched(judge.features, lambda rows: images[rows], every, device)

    def real(split: Split) -> NDArray[np.float32]:
        rows = data.rows(split)
        return features(large[rows[data.labels[rows] == label]])

    # The reals as small as the fakes are, so that sharpness alone tells nothing.
    large = resize(small, data.image_px)
    train, val = real("train"), real("val")
    made = features(resize(torch.from_numpy(fakes), data.image_px))
    mean, spread = train.mean(0), train.std(0) + 1e-3
    train, val, made = ((x - mean) / spread for x in (train, val, made))
    return {
        "kid": metrics.kernel_distance(made, val),
        "kid_real": metrics.kernel_distance(train, val),
    }


def save(
    paths: Paths,
    data: Dataset,
    generator: gan.Generator,
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
    state = {k: v.detach().cpu().contiguous() for k, v in generator.state_dict().items()}
    save_file(state, paths.gan / "model.safetensors")
    config = {"classes": data.classes, "image_px": images.shape[1], "channels": data.channels}
    (paths.gan / "config.json").write_text(json.dumps(config, indent=1) + "\n")


if __name__ == "__main__":
    stage.main("augment")
