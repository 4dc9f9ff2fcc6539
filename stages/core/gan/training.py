"""The loop in which generator and discriminator train against each other, whatever the game."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn

from stages.core.gan.diffaugment import augment
from stages.core.gan.game import Game, Round
from stages.core.gan.losses import gradient_penalty, pairing_loss
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.errors import TrainingDiverged
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress

CHECKPOINT_EVERY = 100
# The generator is kept after each of so many equal parts of the training.
SNAPSHOTS = 3
# A game whose diversity is lower has collapsed.
LEAST_DIVERSITY = 0.1


class Recipe(Section):
    """How long, how fast and how strictly both players train."""

    width: int = Field(ge=8, le=512, multiple_of=8)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=2, le=1024)
    learning_rate: float = Field(gt=0, le=0.1)
    penalty: float = Field(ge=0)
    penalty_every: int = Field(ge=1)
    average_decay: float = Field(ge=0, lt=1)


@dataclass(frozen=True)
class Outcome:
    """What a game ends with.

    Attributes:
        generators: the averaged generator, in evaluation mode, by the steps that it had after each
            part of the training.
        curves: one row per checkpoint: step, both losses, diversity.
        failure: why it ended before its last step; None where it did not.
    """

    generators: dict[int, nn.Module]
    curves: pd.DataFrame
    failure: str | None


class Players:
    """Generator, discriminator, the generator's moving average, and what trains them."""

    def __init__(self, game: Game, recipe: Recipe, seed: int, device: torch.device) -> None:
        torch.manual_seed(seed)
        self._game, self._recipe, self._seed, self._device = game, recipe, seed, device
        self.generator, self.discriminator = game.generator(), game.discriminator()
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
        """
        draws = torch.Generator().manual_seed(self._seed * 1_000_003 + number)
        penalized = number % self._recipe.penalty_every == 0
        loss_d = self._step_discriminator(self._draw(draws), draws, penalized=penalized)
        loss_g = self._step_generator(self._draw(draws), draws)
        # The average must not remember the first steps: its decay grows up to the parameter.
        decay = min(self._recipe.average_decay, (1 + number) / (10 + number))
        update_average(self.average, self.generator, decay)
        return {"generator": loss_g.item(), "discriminator": loss_d.item()}

    def _draw(self, draws: torch.Generator) -> Round:
        return self._game.draw(self._recipe.batch_size, draws).to(self._device)

    def _step_discriminator(
        self, round_: Round, draws: torch.Generator, *, penalized: bool
    ) -> Tensor:
        with torch.no_grad():
            fake, _ = self._game.fake(self.generator, round_)
        # The penalties are on the images themselves, not on what augmentation makes of them.
        real = round_.real.requires_grad_(penalized)
        fake.requires_grad_(penalized)
        real_score = self.discriminator(augment(real, draws), round_.labels)
        fake_score = self.discriminator(augment(fake, draws), round_.labels)
        loss = pairing_loss(real_score, fake_score)
        total = loss
        if penalized:
            # Every so many steps, with so many times the weight (Karras et al. 2020, appendix B).
            r1, r2 = gradient_penalty(real_score, real), gradient_penalty(fake_score, fake)
            total = loss + self._recipe.penalty_every * self._recipe.penalty / 2 * (r1 + r2)
        self._descend("discriminator", total)
        return loss.detach()

    def _step_generator(self, round_: Round, draws: torch.Generator) -> Tensor:
        fake, cost = self._game.fake(self.generator, round_)
        fake_score = self.discriminator(augment(fake, draws), round_.labels)
        with torch.no_grad():
            real_score = self.discriminator(augment(round_.real, draws), round_.labels)
        loss = pairing_loss(fake_score, real_score)
        self._descend("generator", loss + cost)
        return loss.detach()

    def _descend(self, player: str, loss: Tensor) -> None:
        self._optimizers[player].zero_grad()
        torch.autograd.backward(loss)
        self._optimizers[player].step()

    @torch.no_grad()
    def diversity(self) -> float:
        """See `Game.diversity`: of the averaged generator, always on the same draws."""
        draws = torch.Generator().manual_seed(self._seed)
        return self._game.diversity(self.average, draws, self._device)


def _failure(losses: Mapping[str, float], step: int, recipe: Recipe) -> str | None:
    if torch.isfinite(torch.tensor(list(losses.values()))).all():
        return None
    return (
        f"diverged: a loss is not finite in step {step}; lower the GAN's learning_rate (now "
        f"{recipe.learning_rate:g}) or raise its penalty (now {recipe.penalty:g})"
    )


def train(
    game: Game, recipe: Recipe, seed: int, device: torch.device, checkpoint: Checkpoint
) -> Outcome:
    """Train both players; a run that goes on from a checkpoint ends with the same weights.

    A game that diverges or collapses ends there, with the generators that were kept before.

    Raises: TrainingDiverged where none was.
    """
    players = Players(game, recipe, seed, device)
    curves: list[dict[str, float]] = []
    kept: dict[int, dict[str, Any]] = {}
    first = 0
    if (state := checkpoint.load()) is not None:
        players.load(state)
        curves, kept, first = state["curves"], state["kept"], state["step"]
    parts = {recipe.steps * (k + 1) // SNAPSHOTS for k in range(SNAPSHOTS)} - {0}
    progress = Progress("GAN", recipe.steps, done=first)
    failure = None
    for number in range(first, recipe.steps):
        losses = players.step(number)
        done = number + 1
        where = f"step {done}/{recipe.steps}"
        progress.step(where=where)
        if failure := _failure(losses, done, recipe):
            break
        if done % CHECKPOINT_EVERY and done not in parts:
            continue
        diversity = players.diversity()
        curves.append({"step": done, **losses, "diversity": diversity})
        progress.step(0, where=where, figures=curves[-1] | {"step": done})
        # Not below: that is False of NaN.
        if not diversity >= LEAST_DIVERSITY:
            failure = (
                f"collapsed: in step {done}, what it makes of one image is much like what it makes "
                f"of another (diversity {diversity:.2f}, expected {LEAST_DIVERSITY:g} at least); "
                f"train for fewer steps, or raise the GAN's penalty (now {recipe.penalty:g})"
            )
            break
        if done in parts:
            kept[done] = copy.deepcopy(players.average.state_dict())
        checkpoint.save(players.state() | {"curves": curves, "kept": kept, "step": done})
    if not kept:
        raise TrainingDiverged(f"GAN {failure}")
    if failure:
        print(f"GAN {failure}; going on with what was kept before", flush=True)
    generators = {step: copy.deepcopy(players.average).eval() for step in kept}
    for step, generator in generators.items():
        generator.load_state_dict(kept[step])
    return Outcome(generators, pd.DataFrame(curves), failure)


@torch.no_grad()
def update_average(average: nn.Module, current: nn.Module, decay: float) -> None:
    """Exponential moving average of weights, in place."""
    for a, c in zip(average.parameters(), current.parameters(), strict=True):
        a.lerp_(c, 1 - decay)
