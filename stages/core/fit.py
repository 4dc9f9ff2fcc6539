"""The one training loop: teacher, student, control and refinement hand it a loss."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from stages.core.checkpoint import Checkpoint
from stages.core.errors import TrainingDiverged
from stages.core.nets import Net, batched
from stages.core.params import Section
from stages.core.progress import Progress

Rows = NDArray[np.int64]
Loss = Callable[[Net, Rows, int], Tensor]
Evaluate = Callable[[Net], dict[str, float]]

# Share of the steps in which the learning rate rises (one-cycle, Smith & Topin 2018).
WARM_UP = 0.2


class Recipe(Section):
    """How long and how fast to train; part of the sections of all stages that train a network."""

    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=2, le=4096)
    learning_rate: float = Field(gt=0, le=1)
    head_learning_rate: float = Field(gt=0, le=1)
    weight_decay: float = Field(ge=0, le=1)


def _optimizer(net: Net, recipe: Recipe) -> torch.optim.AdamW:
    body = [p for p in net.backbone.parameters() if p.requires_grad]
    groups = [
        {"params": body, "lr": recipe.learning_rate},
        {"params": list(net.head.parameters()), "lr": recipe.head_learning_rate},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=recipe.weight_decay)


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
) -> pd.DataFrame:
    """Train `net` in place: AdamW, one-cycle, every row once an epoch, a checkpoint an epoch.

    An epoch's order and randomness follow from (seed, epoch) alone, so a run that goes on from a
    checkpoint ends with the same weights, bit for bit.

    Args:
        net: on its device; what is frozen stays as it is.
        loss: (net, rows (B,), epoch) to a scalar, the mean over the batch.
        rows: the images to learn from.
        evaluate: figures by name, computed after each epoch in evaluation mode.
        what: names the work in progress lines.

    Returns: one row an epoch: epoch, loss, and what `evaluate` gives. The net is left in
        evaluation mode.

    Raises: TrainingDiverged when a loss is not finite.
    """
    optimizer = _optimizer(net, recipe)
    steps = -(-len(rows) // recipe.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=steps * recipe.epochs,
        pct_start=WARM_UP,
    )
    history: list[dict[str, float]] = []
    if (state := checkpoint.load()) is not None:
        net.load_state_dict(state["net"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        history = state["history"]
    progress = Progress(what, steps * recipe.epochs, done=steps * len(history))
    for epoch in range(len(history), recipe.epochs):
        where = f"epoch {epoch + 1}/{recipe.epochs}"
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        # For dropout, the only randomness that does not come from a seeded view.
        torch.manual_seed(seed * 100_003 + epoch)
        net.train()
        total = 0.0
        for batch in batched(order, recipe.batch_size):
            value = loss(net, batch, epoch)
            if not torch.isfinite(value):
                raise TrainingDiverged(
                    f"{what}: the loss became {value.item()} in {where}; lower learning_rate "
                    f"(now {recipe.learning_rate:g}) or head_learning_rate"
                )
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            total += value.item() * len(batch)
            progress.step(where=where)
        net.eval()
        figures = {"loss": total / len(rows), **evaluate(net)}
        history.append({"epoch": epoch + 1, **figures})
        progress.step(0, where=where, figures=figures)
        checkpoint.save(
            {
                "net": net.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "history": history,
            }
        )
    net.eval()
    return pd.DataFrame(history)
