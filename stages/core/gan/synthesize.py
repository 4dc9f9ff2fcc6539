"""Images from noise: a class-conditional GAN at a size of its own."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from stages.core.dataset.data import Dataset, FileRules, Rows
from stages.core.dataset.resize import resize
from stages.core.gan import training
from stages.core.gan.game import WATCHED, RealImages, Round, as_pixels, consistent
from stages.core.gan.making import Made, Maker, Makers, Task
from stages.core.gan.networks import Discriminator, Generator
from stages.core.nets.inference import BATCH, batched
from stages.core.runner import disk
from stages.core.runner.checkpoint import Checkpoint


class Params(training.Recipe):
    """Section `augment.synthesize`."""

    image_px: int = Field(ge=16, le=256)
    noise: int = Field(ge=1, le=1024)

    @field_validator("image_px")
    @classmethod
    def _power_of_two(cls, image_px: int) -> int:
        if image_px & (image_px - 1):
            raise PydanticCustomError("power", "expected a power of two")
        return image_px


class Synthesis:
    """Noise and a class become an image; real images of all classes are drawn alike."""

    def __init__(
        self,
        real: RealImages,
        wanted: RealImages,
        classes: int,
        rules: FileRules,
        width: int,
        noise: int,
    ) -> None:
        """Take the real images at the GAN's size; see `Generator` for the rest.

        `wanted` are those of the one class that images are made of in the end.
        """
        self._real, self._wanted, self._noise, self._rules = real, wanted, noise, rules
        self._shape = (classes, real.channels, real.image_px, width)

    def generator(self) -> nn.Module:
        return Generator(*self._shape, self._noise)

    def discriminator(self) -> nn.Module:
        return Discriminator(*self._shape)

    def draw(self, size: int, draws: torch.Generator) -> Round:
        real, labels, _ = self._real.batch(size, draws)
        return Round(real, labels, torch.randn(size, self._noise, generator=draws))

    def fake(self, generator: nn.Module, round_: Round) -> tuple[Tensor, Tensor]:
        images = cast(Tensor, generator(round_.noise, round_.labels))
        return consistent(images, images, self._rules), images.new_zeros(())

    def diversity(
        self, generator: nn.Module, draws: torch.Generator, device: torch.device
    ) -> float:
        """Deviation between images of the wanted class, as a share of that of real ones."""
        real, labels, _ = self._wanted.batch(WATCHED, draws)
        round_ = Round(real, labels, torch.randn(WATCHED, self._noise, generator=draws)).to(device)
        made, _ = self.fake(generator, round_)
        return float(made.std(0).mean() / round_.real.std(0).mean().clamp(min=1e-6))


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


def makers(
    params: Params, data: Dataset, task: Task, seed: int, device: torch.device, scratch: Path
) -> Makers:
    """Train the GAN on the images of all classes; there must be a wanted one.

    Raises: TrainingDiverged.
    """
    assert task.label is not None
    rows = np.sort(np.concatenate([task.wanted, task.sources]))
    small = reduced(data, rows, params.image_px, scratch / "real.npy")

    def images(chosen: Rows) -> RealImages:
        return RealImages(small, chosen, data.labels[rows[chosen]], data.symmetries)

    every, of_class = np.arange(len(rows)), np.flatnonzero(data.labels[rows] == task.label)
    game = Synthesis(
        images(every),
        images(of_class),
        len(data.classes),
        data.rules,
        params.width,
        params.noise,
    )
    outcome = training.train(game, params, seed, device, Checkpoint(scratch, "gan"))

    def maker(generator: nn.Module, label: int) -> Maker:
        def make(count: int, seed: int) -> Made:
            draws = torch.Generator().manual_seed(seed)
            images = []
            with torch.inference_mode():
                for part in batched(torch.full((count,), label), BATCH):
                    noise = torch.randn(len(part), params.noise, generator=draws)
                    images.append(as_pixels(generator(noise.to(device), part.to(device))).cpu())
            labels = np.full(count, label, dtype=np.int64)
            return Made(torch.cat(images).numpy(), labels, None)

        return make

    by_step = {step: maker(net, task.label) for step, net in outcome.generators.items()}
    return Makers(by_step, params.image_px, outcome.curves, outcome.failure)
