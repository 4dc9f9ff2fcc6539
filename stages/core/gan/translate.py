"""Real images moved to another class or domain: an unpaired translation at their full size."""

from pathlib import Path
from typing import cast

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from stages.core.dataset.data import Dataset, FileRules
from stages.core.gan import training
from stages.core.gan.companions import Companions
from stages.core.gan.game import WATCHED, RealImages, Round, as_pixels, consistent, scaled
from stages.core.gan.making import Made, Maker, Makers, Task, labels_of
from stages.core.gan.networks import NOISE_CHANNELS, NOISE_PX, Discriminator, Translator
from stages.core.nets.inference import BATCH, batched
from stages.core.runner.checkpoint import Checkpoint


class Params(training.Recipe):
    """Section `augment.translate`."""

    sparsity: float = Field(ge=0)


class Translation:
    """The generator adds something to a source image, as little as it can.

    So backgrounds, sharpness and variety are the real images' own. Beside every real image of the
    wanted class the discriminator sees what was made of one of the same group, where there is one:
    what tells groups apart does not tell it which is which. In the end images are made of all
    others, also of groups without any image of the class, where they add most.
    """

    def __init__(
        self,
        real: RealImages,
        sources: Companions,
        rules: FileRules,
        width: int,
        sparsity: float,
    ) -> None:
        """Take where the images are to arrive, and where they start from.

        Args:
            real: images of the wanted class or domain, all under label 0.
            sources: the others.
            rules: the dataset's.
            width: channels of both players at half the resolution.
            sparsity: weight of the mean absolute value of what is added, in -1 to 1.
        """
        self._real, self._sources, self._rules = real, sources, rules
        self._width, self._sparsity = width, sparsity

    def generator(self) -> nn.Module:
        return Translator(self._real.channels, self._width)

    def discriminator(self) -> nn.Module:
        return Discriminator(1, self._real.channels, self._real.image_px, self._width)

    def draw(self, size: int, draws: torch.Generator) -> Round:
        real, labels, rows = self._real.batch(size, draws)
        shares = torch.rand(size, generator=draws, dtype=torch.float64).numpy()
        sources = self._real.images(self._sources.of(rows, shares), draws)
        return Round(real, labels, noise(size, draws), sources)

    def fake(self, generator: nn.Module, round_: Round) -> tuple[Tensor, Tensor]:
        assert round_.sources is not None
        added = cast(Tensor, generator(round_.sources, round_.noise))
        images = (round_.sources + added).clamp(-1, 1)
        cost = self._sparsity * added.abs().mean()
        return consistent(images, round_.sources, self._rules), cost

    def diversity(
        self, generator: nn.Module, draws: torch.Generator, device: torch.device
    ) -> float:
        """Deviation between what is added to different images, as a share of its mean size."""
        round_ = self.draw(WATCHED, draws).to(device)
        added = cast(Tensor, generator(round_.sources, round_.noise))
        return float(added.std(0).mean() / added.abs().mean().clamp(min=1e-12))


def game(params: Params, data: Dataset, task: Task) -> Translation:
    """The game of a task."""
    alike = np.zeros(len(task.wanted), np.int64)
    real = RealImages(data.pixels, task.wanted, alike, data.symmetries)
    sources = Companions(task.sources, data.groups, data.domains)
    return Translation(real, sources, data.rules, params.width, params.sparsity)


def maker(generator: nn.Module, data: Dataset, task: Task, device: torch.device) -> Maker:
    """What translates random sources of a task with a generator on `device`."""

    def make(count: int, seed: int) -> Made:
        sources = np.random.default_rng(seed).choice(task.sources, count)
        draws = torch.Generator().manual_seed(seed)
        pixels = []
        with torch.inference_mode():
            for rows in batched(sources, BATCH):
                x = scaled(torch.from_numpy(data.pixels[rows])).to(device)
                drawn = noise(len(rows), draws).to(device)
                pixels.append(as_pixels(x + generator(x, drawn)).cpu())
        labels = labels_of(task, data.labels, sources)
        return Made(torch.cat(pixels).numpy(), labels, sources)

    return make


def makers(
    params: Params, data: Dataset, task: Task, seed: int, device: torch.device, scratch: Path
) -> Makers:
    """Train the translator. Raises: TrainingDiverged."""
    players = game(params, data, task)
    outcome = training.train(players, params, seed, device, Checkpoint(scratch, "gan"))
    by_step = {k: maker(net, data, task, device) for k, net in outcome.generators.items()}
    return Makers(by_step, data.image_px, outcome.curves, outcome.failure)


def noise(size: int, draws: torch.Generator) -> Tensor:
    """What the translator may draw on: (size, NOISE_CHANNELS, NOISE_PX, NOISE_PX)."""
    return torch.randn(size, NOISE_CHANNELS, NOISE_PX, NOISE_PX, generator=draws)
