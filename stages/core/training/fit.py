"""The one training loop: teacher, student, control and refinement hand it a loss."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from stages.core.dataset.data import Rows
from stages.core.nets import folding
from stages.core.nets.inference import batched
from stages.core.nets.net import Net
from stages.core.runner import processes
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.errors import ParamsError, TrainingDiverged
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress

Loss = Callable[[Net, Rows, int], Tensor]
Evaluate = Callable[[Net], dict[str, float]]
Watch = Callable[[pd.DataFrame], None]

# Share of the steps in which the learning rate rises (one-cycle, Smith & Topin 2018).
WARM_UP = 0.2


class Recipe(Section):
    """How long and how fast to train; part of the sections of all stages that train a network."""

    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=2, le=4096)
    learning_rate: float = Field(gt=0, le=1)
    head_learning_rate: float = Field(gt=0, le=1)
    rate_decay: float = Field(ge=1, le=10)
    unfreeze_every: int = Field(ge=0)
    weight_decay: float = Field(ge=0, le=1)
    average: float = Field(ge=0, lt=1)


class _Training:
    """Everything that a checkpoint holds: the net, its average, optimizer, schedule, history."""

    def __init__(self, net: Net, loss: Loss, recipe: Recipe, steps: int) -> None:
        self.net, self.recipe = net, recipe
        # A loss may learn with the network: DANN's domain classifier does.
        self.loss = loss if isinstance(loss, nn.Module) else nn.Module()
        self.pairs = folding.pairs(net)
        # Bottom up; discriminative rates and gradual unfreezing as in ULMFiT (Howard & Ruder 2018).
        learning = [[p for p in g if p.requires_grad] for g in net.layer_groups()]
        self.layers = [group for group in learning if group]
        last = recipe.unfreeze_every * len(self.layers)
        if last >= recipe.epochs:
            raise ParamsError(
                f"recipe.unfreeze_every = {recipe.unfreeze_every}: the lowest layer group would "
                f"begin to learn after {last} epochs, and there are {recipe.epochs}; freeze it "
                "(frozen_groups) or unfreeze sooner"
            )
        top = len(self.layers) - 1
        rates = [recipe.learning_rate / recipe.rate_decay ** (top - i) for i in range(top + 1)]
        groups = [
            *({"params": g, "lr": r} for g, r in zip(self.layers, rates, strict=True)),
            {
                "params": [*net.head.parameters(), *self.loss.parameters()],
                "lr": recipe.head_learning_rate,
            },
        ]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=recipe.weight_decay)
        # PyTorch's schedule divides by zero where the rise ends with the first step.
        total = max(steps * recipe.epochs, 3)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            [group["lr"] for group in self.optimizer.param_groups],
            total_steps=total,
            pct_start=max(WARM_UP, 2 / total),
        )
        self.average: AveragedModel | None = None
        if recipe.average:
            # PyTorch leaves it untyped.
            decay = get_ema_multi_avg_fn(recipe.average)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(net, multi_avg_fn=decay, use_buffers=True)
        self.history: list[dict[str, float]] = []

    def state(self) -> dict[str, Any]:
        return {
            "net": self.net.state_dict(),
            "loss": self.loss.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": self.history,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.net.load_state_dict(state["net"])
        self.loss.load_state_dict(state["loss"])
        if self.average:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.history = state["history"]

    @property
    def measured(self) -> Net:
        """The network that is evaluated and kept: the average, where there is one."""
        return cast(Net, self.average.module) if self.average else self.net

    def unfreeze(self, epoch: int) -> None:
        """Let the layer groups learn whose turn has come, from the top down."""
        every = self.recipe.unfreeze_every
        for below_top, group in enumerate(reversed(self.layers)):
            for parameter in group:
                parameter.requires_grad_(epoch >= every * (below_top + 1) or not every)


def _diverged(
    training: _Training,
    folder: Path,
    what: str,
    rows: Rows,
    epoch: int,
    wrong: str,
    random: Tensor,
) -> TrainingDiverged:
    """The error, after what is needed to see it again has been saved."""
    file = folder / "diverged.pt"
    if not processes.rank():
        folder.mkdir(parents=True, exist_ok=True)
        batch = {"rows": torch.from_numpy(rows), "epoch": epoch, "random": random}
        torch.save({"net": training.net.state_dict(), **batch}, file)
    recipe = training.recipe
    if training.schedule.last_epoch == 0:
        advice = (
            "before anything was learned, so no rate is too high: look at these images and at what "
            "the loss is made of (labels, temperature, the teacher's logits)"
        )
    else:
        weights = [p for p in training.net.parameters() if not torch.isfinite(p).all()]
        where = "the weights had already become so" if weights else "the weights were finite"
        advice = (
            f"{where}: lower learning_rate (now {recipe.learning_rate:g}) or head_learning_rate "
            f"(now {recipe.head_learning_rate:g})"
        )
    return TrainingDiverged(
        f"{what}: {wrong} in epoch {epoch + 1}; {advice}. Net and batch are in {file}"
    )


def _not_finite(training: _Training, value: float) -> str:
    """What is not finite of a loss and its gradients; nothing where all is well."""
    if not math.isfinite(value):
        return f"the loss became {value}"
    learning = (*training.net.parameters(), *training.loss.parameters())
    gradients = [p.grad for p in learning if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    return "" if math.isfinite(norm) else f"the gradients became {norm}"


def _run_epoch(
    training: _Training,
    loss: Loss,
    rows: Rows,
    epoch: int,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
) -> float:
    """One pass over all rows; gives the mean loss. Raises: TrainingDiverged."""
    net, recipe = training.net, training.recipe
    training.unfreeze(epoch)
    order = np.random.default_rng([seed, epoch]).permutation(rows)
    # For dropout, the only randomness that does not come from a seeded view.
    torch.manual_seed(seed * 100_003 + epoch)
    net.train()
    if any(module.training for module in net.modules() if isinstance(module, _BatchNorm)):
        processes.require_single_process("BatchNorm that learns its statistics")
    total = 0.0
    for batch in batched(order, recipe.batch_size):
        mine = processes.share(batch)
        training.optimizer.zero_grad()
        random = torch.get_rng_state()
        value = 0.0
        if len(mine):
            with folding.folded(training.pairs):
                part = loss(net, mine, epoch) * (len(mine) / len(batch))
            torch.autograd.backward(part)
            value = part.item()
        processes.add_gradients(net)
        if wrong := _not_finite(training, value):
            raise _diverged(training, folder, progress.what, batch, epoch, wrong, random)
        total += value * len(batch)
        training.optimizer.step()
        training.schedule.step()
        if training.average:
            training.average.update_parameters(net)
        progress.step(where=f"epoch {epoch + 1}/{recipe.epochs}")
    return processes.add(total) / len(rows)


def fit(
    net: Net,
    loss: Loss,
    rows: Rows,
    recipe: Recipe,
    *,
    seed: int,
    evaluate: Evaluate,
    checkpoint: Checkpoint,
    what: str,
    watch: Watch = lambda history: None,
) -> pd.DataFrame:
    """Train `net` in place: AdamW, one-cycle, each row once per epoch, a checkpoint per epoch.

    An epoch's order and randomness follow from (seed, epoch) alone, so a run that goes on from a
    checkpoint ends with the same weights, bit for bit. Under `torchrun` every process computes its
    share of each batch, with the same result up to rounding; what needs whole batches is refused.

    Args:
        net: on its device; what is frozen stays as it is.
        loss: (net, rows (B,), epoch) to a scalar, the mean over the batch; a module with weights of
            its own learns with the network, at the head's rate.
        rows: the images to learn from.
        evaluate: figures by name, computed after each epoch in evaluation mode. They decide
            nothing: the schedule ends with the last epoch, and the best of several by one
            validation split is mostly chance.
        what: names the work in progress lines.
        watch: called with the history so far after each epoch, and when going on.

    Returns: one row per epoch: epoch, loss, and what `evaluate` gives. The net is left in
        evaluation mode, with the averaged weights if `recipe.average`.

    Raises: TrainingDiverged when a loss or its gradients are not finite; the weights and the
        batch, as they were before that step, and the state of PyTorch's random numbers are saved
        beside the checkpoint. ParamsError.
    """
    steps = -(-len(rows) // recipe.batch_size)
    training = _Training(net, loss, recipe, steps)
    if (state := checkpoint.load()) is not None:
        training.load(state)
        # Killed after its last epoch, it would show nothing.
        watch(pd.DataFrame(training.history))
    progress = Progress(what, steps * recipe.epochs, done=steps * len(training.history))
    for epoch in range(len(training.history), recipe.epochs):
        value = _run_epoch(
            training,
            loss,
            rows,
            epoch,
            seed=seed,
            folder=checkpoint.path.parent,
            progress=progress,
        )
        training.measured.eval()
        figures = {"loss": value, **evaluate(training.measured)}
        training.history.append({"epoch": epoch + 1, **figures})
        progress.step(0, where=f"epoch {epoch + 1}/{recipe.epochs}", figures=figures)
        checkpoint.save(training.state())
        watch(pd.DataFrame(training.history))
    net.load_state_dict(training.measured.state_dict())
    net.eval()
    return pd.DataFrame(training.history)
