from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core.checkpoint import Checkpoint
from stages.core.errors import TrainingDiverged
from stages.core.fit import Recipe, fit
from stages.core.nets import Net, NetSpec
from stages.core.views import Views

RECIPE = Recipe(
    epochs=3, batch_size=4, learning_rate=1e-3, head_learning_rate=1e-2, weight_decay=0.1
)
ROWS = np.arange(10)


def small_net() -> Net:
    torch.manual_seed(0)
    spec = NetSpec(
        backbone="tf_efficientnet_lite0",
        width=1.0,
        depth=1.0,
        stages=[0, 1],
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
    return Views(pixels, seed=0, jitter=0.1)


class Killed(Exception):
    pass


def train(folder: Path, *, die_after: int | None = None) -> Net:
    net, shown = small_net(), views()
    labels = torch.arange(10) % 2
    calls = 0

    def loss(net: Net, rows: np.ndarray, epoch: int) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == die_after:
            raise Killed
        return torch.nn.functional.cross_entropy(net(shown.batch(rows, epoch)), labels[rows])

    fit(
        net,
        loss,
        ROWS,
        RECIPE,
        seed=7,
        evaluate=lambda net: {"figure": 1.0},
        checkpoint=Checkpoint(folder, "fit"),
        what="testing",
    )
    return net


@pytest.mark.parametrize("die_after", [1, 4, 5, 9])
def test_goes_on_bit_for_bit(tmp_path: Path, die_after: int) -> None:
    undisturbed = train(tmp_path / "a").state_dict()
    with pytest.raises(Killed):
        train(tmp_path / "b", die_after=die_after)
    resumed = train(tmp_path / "b").state_dict()
    assert all(torch.equal(undisturbed[k], resumed[k]) for k in undisturbed)


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    net, shown = small_net(), views()
    net.freeze_lowest(2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit(
        net,
        lambda net, rows, epoch: (net(shown.batch(rows, epoch)) - 1).square().mean(),
        ROWS,
        RECIPE,
        seed=0,
        evaluate=lambda net: {},
        checkpoint=Checkpoint(tmp_path, "fit"),
        what="testing",
    )
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    frozen = {id(p) for group in net.layer_groups()[:2] for p in group}
    names = {n for n, p in net.named_parameters() if id(p) in frozen}
    assert names
    assert not names & changed
    assert not {k for k in changed if "running" in k}
    assert any(k.startswith("backbone") for k in changed)


def test_stops_when_the_loss_is_no_number(tmp_path: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"lower learning_rate \(now 0.001\)"):
        fit(
            small_net(),
            lambda net, rows, epoch: net.head.linear.weight.sum() * float("nan"),
            ROWS,
            RECIPE,
            seed=0,
            evaluate=lambda net: {},
            checkpoint=Checkpoint(tmp_path, "fit"),
            what="testing",
        )
