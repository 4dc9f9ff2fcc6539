"""A small network and its training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from stages.core.dataset.views import Views
from stages.core.nets.net import Net, NetSpec
from stages.core.runner.checkpoint import Checkpoint
from stages.core.training.fit import Recipe, fit
from tests import conftest

RECIPE = Recipe.model_validate(conftest.RECIPE | {"epochs": 3, "batch_size": 4})
ROWS = np.arange(10)


def small_net() -> Net:
    torch.manual_seed(0)
    spec = NetSpec(
        backbone="tf_efficientnet_lite0",
        width=1.0,
        depth=1.0,
        out_indices=[0, 1],
        classes=["a", "b"],
        image_px=32,
        channels=1,
        reduce=1,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    return Net(spec, dropout=0.3)


def views() -> Views:
    pixels = np.random.default_rng(0).integers(0, 256, (10, 32, 32, 1), dtype=np.uint8)
    return Views(pixels, seed=0, jitter=0.1, symmetries="all")


class Killed(Exception):
    pass


def train(
    folder: Path,
    recipe: Recipe = RECIPE,
    *,
    die_after: int | None = None,
    look: Callable[[Net], None] = lambda net: None,
) -> Net:
    """A small network's training; `look` is called in every step and evaluation."""
    net, example_views = small_net(), views()
    labels = torch.arange(10) % 2
    calls = 0

    def evaluate(net: Net) -> dict[str, float]:
        """Better from epoch to epoch."""
        look(net)
        return {"figure": epoch_now + net.head.linear.weight.abs().sum().item()}

    epoch_now = 0

    def loss(net: Net, rows: np.ndarray, epoch: int) -> torch.Tensor:
        nonlocal calls, epoch_now
        calls, epoch_now = calls + 1, epoch
        look(net)
        if calls == die_after:
            raise Killed
        return torch.nn.functional.cross_entropy(
            net(example_views.batch(rows, epoch)), labels[rows]
        )

    fit(
        net,
        loss,
        ROWS,
        recipe,
        seed=7,
        evaluate=evaluate,
        checkpoint=Checkpoint(folder, "fit"),
        what="testing",
    )
    return net
