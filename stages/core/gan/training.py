"""The loop in which generator and discriminator train against each other."""

import copy
from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from stages.core.dataset.symmetries import NUMBERS, Symmetries
from stages.core.dataset.views import turn
from stages.core.gan.diffaugment import augment
from stages.core.gan.losses import gradient_penalty, pairing_loss
from stages.core.gan.networks import Discriminator, Generator
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.errors import TrainingDiverged
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress

# Symmetries, by number, that leave a rectangular pattern upright.
UPRIGHT = (0, 2, 4, 6)
CHECKPOINT_EVERY = 100


class Recipe(Section):
    """How long, how fast and how strictly both players train; part of the section `augment`."""

    width: int = Field(ge=8, le=512, multiple_of=8)
    noise: int = Field(ge=1, le=1024)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2, le=1024)
    learning_rate: float = Field(gt=0, le=0.1)
    penalty: float = Field(ge=0)
    penalty_every: int = Field(ge=1)
    average_decay: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)


class RealImages:
    """Batches of real images in which all classes are drawn alike, whatever their shares."""

    def __init__(
        self, images: Tensor, labels: Tensor, classes: int, symmetries: Symmetries
    ) -> None:
        """Take uint8 (N, S, S, C) images, int64 (N,) labels, and the dataset's symmetries."""
        self._images = images
        self._symmetries = torch.tensor([s for s in NUMBERS[symmetries] if s in UPRIGHT])
        self._members = [torch.nonzero(labels == k)[:, 0] for k in range(classes)]
        self.image_px, self.channels, self.classes = images.shape[1], images.shape[3], classes

    def batch(self, size: int, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Images (B, C, S, S) in -1 to 1, turned at random, and their labels (B,)."""
        labels = torch.randint(len(self._members), (size,), generator=draws)
        at = torch.rand(size, generator=draws)
        rows = torch.stack(
            [
                self._members[k][int(u * len(self._members[k]))]
                for k, u in zip(labels.tolist(), at, strict=True)
            ]
        )
        numbers = torch.randint(len(self._symmetries), (len(rows),), generator=draws)
        images = turn(self._images[rows], self._symmetries[numbers])
        images = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        return images, labels


class Players:
    """Generator, discriminator, the generator's moving average, and what trains them."""

    def __init__(self, real: RealImages, recipe: Recipe, device: torch.device) -> None:
        torch.manual_seed(recipe.seed)
        self._real, self._recipe, self._device = real, recipe, device
        shape = (real.classes, real.channels, real.image_px, recipe.width)
        self.generator = Generator(*shape, recipe.noise)
        self.discriminator = Discriminator(*shape)
        self.average = copy.deepcopy(self.generator)
        for net in self._nets().values():
            net.to(device).to(memory_format=torch.channels_last)
        self._optimizers = {
            name: torch.optim.Adam(
                self._nets()[name].parameters(), lr=recipe.learning_rate, betas=(0.0, 0.99)
            )
            for name in ("generator", "discriminator")
        }

    def _nets(self) -> dict[str, nn.Module]:
        return {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "average": self.average,
        }

    def state(self) -> dict[str, Any]:
        """All that a checkpoint needs of the players."""
        optimizers = {name: o.state_dict() for name, o in self._optimizers.items()}
        nets = {name: net.state_dict() for name, net in self._nets().items()}
        return nets | {"optimizers": optimizers}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, net in self._nets().items():
            net.load_state_dict(state[name])
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])

    def step(self, number: int) -> dict[str, float]:
        """Step `number` (from 0) of both; its randomness follows from (seed, number).

        Returns: the losses, by player.

        Raises: TrainingDiverged.
        """
        draws = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + number)
        loss_d = self._step_discriminator(draws, penalized=number % self._recipe.penalty_every == 0)
        loss_g = self._step_generator(draws)
        recipe = self._recipe
        if not torch.isfinite(loss_g + loss_d):
            raise TrainingDiverged(
                f"GAN: a loss is not finite in step {number + 1}; lower augment.learning_rate (now "
                f"{recipe.learning_rate:g}) or raise augment.penalty (now {recipe.penalty:g})"
            )
        # The average must not remember the first steps: its decay grows up to the parameter.
        decay = min(recipe.average_decay, (1 + number) / (10 + number))
        update_average(self.average, self.generator, decay)
        return {"generator": loss_g.item(), "discriminator": loss_d.item()}

    def _batch(self, draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Real images, labels and noise."""
        size = self._recipe.batch_size
        real, labels = self._real.batch(size, draws)
        noise = torch.randn(size, self._recipe.noise, generator=draws)
        return real.to(self._device), labels.to(self._device), noise.to(self._device)

    def _step_discriminator(self, draws: torch.Generator, *, penalized: bool) -> Tensor:
        real, labels, noise = self._batch(draws)
        fake = self.generator(noise, labels).detach()
        real_seen = augment(real, draws).requires_grad_()
        fake_seen = augment(fake, draws).requires_grad_()
        real_score = self.discriminator(real_seen, labels)
        fake_score = self.discriminator(fake_seen, labels)
        loss = pairing_loss(real_score, fake_score)
        total = loss
        if penalized:
            r1 = gradient_penalty(real_score, real_seen)
            r2 = gradient_penalty(fake_score, fake_seen)
            total = loss + self._recipe.penalty_every * self._recipe.penalty / 2 * (r1 + r2)
        self._descend("discriminator", total)
        return loss.detach()

    def _step_generator(self, draws: torch.Generator) -> Tensor:
        real, labels, noise = self._batch(draws)
        fake_score = self.discriminator(augment(self.generator(noise, labels), draws), labels)
        with torch.no_grad():
            real_score = self.discriminator(augment(real, draws), labels)
        loss = pairing_loss(fake_score, real_score)
        self._descend("generator", loss)
        return loss.detach()

    def _descend(self, player: str, loss: Tensor) -> None:
        self._optimizers[player].zero_grad()
        torch.autograd.backward(loss)
        self._optimizers[player].step()


def train(
    real: RealImages, recipe: Recipe, device: torch.device, checkpoint: Checkpoint
) -> tuple[Generator, pd.DataFrame]:
    """The averaged generator in evaluation mode, and the curves of both players.

    A run that goes on from a checkpoint ends with the same weights.

    Raises: TrainingDiverged.
    """
    players = Players(real, recipe, device)
    curves: list[dict[str, float]] = []
    first = 0
    if (state := checkpoint.load()) is not None:
        players.load(state)
        curves, first = state["curves"], state["step"]
    progress = Progress("GAN", recipe.steps, done=first)
    for number in range(first, recipe.steps):
        losses = players.step(number)
        done = number + 1
        where = f"step {done}/{recipe.steps}"
        progress.step(where=where)
        if done % CHECKPOINT_EVERY == 0 or done == recipe.steps:
            curves.append({"step": done, **losses})
            progress.step(0, where=where, figures=losses)
            checkpoint.save(players.state() | {"curves": curves, "step": done})
    return players.average.eval(), pd.DataFrame(curves)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Exponential moving average of weights, in place."""
    for a, c in zip(average.parameters(), current.parameters(), strict=True):
        a.lerp_(c, 1 - decay)
