import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stages.core.nets.net import Net
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.errors import ParamsError, TrainingDiverged
from stages.core.training.fit import Evaluate, _Training, fit
from tests.helpers.fitted import RECIPE, ROWS, Killed, small_net, train, views

MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "discriminative": {"rate_decay": 2.6, "unfreeze_every": 1, "epochs": 4},
    "averaged": {"average": 0.9},
    "all": {"rate_decay": 2.0, "unfreeze_every": 1, "epochs": 4, "average": 0.9},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("die_after", [1, 4, 5, 9])
def test_goes_on_bit_for_bit(tmp_path: Path, mode: str, die_after: int) -> None:
    recipe = RECIPE.model_copy(update=MODES[mode])
    undisturbed = train(tmp_path / "a", recipe).state_dict()
    with contextlib.suppress(Killed):
        train(tmp_path / "b", recipe, die_after=die_after)
    resumed = train(tmp_path / "b", recipe).state_dict()
    assert all(torch.equal(undisturbed[k], resumed[k]) for k in undisturbed)


def run_fit(net: Net, folder: Path, evaluate: Evaluate, **changes: object) -> pd.DataFrame:
    example_views = views()
    return fit(
        net,
        lambda net, rows, epoch: (net(example_views.batch(rows, epoch)) - 1).square().mean(),
        ROWS,
        RECIPE.model_copy(update=changes),
        seed=0,
        evaluate=evaluate,
        checkpoint=Checkpoint(folder, "fit"),
        what="testing",
    )


def test_the_last_epoch_is_kept_whatever_validation_says(tmp_path: Path) -> None:
    figures = iter([0.5, 0.9, 0.8])
    seen = []

    def evaluate(net: Net) -> dict[str, float]:
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return {"figure": next(figures)}

    net = small_net()
    history = run_fit(net, tmp_path, evaluate)
    assert history["figure"].tolist() == [0.5, 0.9, 0.8]
    assert all(torch.equal(v, seen[-1][k]) for k, v in net.state_dict().items())


def test_curves_are_drawn_again_when_nothing_is_left_to_learn(tmp_path: Path) -> None:
    seen: list[list[float]] = []
    for _ in range(2):
        fit(
            small_net(),
            lambda net, rows, epoch: net.head.linear.weight.square().sum(),
            ROWS,
            RECIPE,
            seed=0,
            evaluate=lambda net: {"figure": 1.0},
            checkpoint=Checkpoint(tmp_path, "fit"),
            what="testing",
            watch=lambda history: seen.append(history["epoch"].tolist()),
        )
    assert seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("decay", [0.5, 0.9])
def test_the_average_is_what_is_evaluated_and_kept(tmp_path: Path, decay: float) -> None:
    """Against the recurrence: the first step's weights, then `decay` of what there was."""
    net, example_views = small_net(), views()
    before: list[torch.Tensor] = []
    evaluated: list[torch.Tensor] = []

    def loss(net: Net, rows: np.ndarray, epoch: int) -> torch.Tensor:
        before.append(net.head.linear.weight.detach().clone())
        return (net(example_views.batch(rows, epoch)) - 1).square().mean()

    def evaluate(net: Net) -> dict[str, float]:
        evaluated.append(net.head.linear.weight.detach().clone())
        return {"figure": 1.0}

    fit(
        net, loss, ROWS, RECIPE.model_copy(update={"average": decay}), seed=0, evaluate=evaluate,
        checkpoint=Checkpoint(tmp_path, "fit"), what="testing",
    )  # fmt: skip
    steps = len(before) // RECIPE.epochs
    average, averages = before[1], []
    for weights in before[2:]:
        averages.append(average)
        average = decay * average + (1 - decay) * weights
    for epoch in (1, 2):
        assert torch.allclose(evaluated[epoch - 1], averages[epoch * steps - 1], atol=1e-7)
    assert not torch.allclose(evaluated[0], before[steps], atol=1e-5)
    assert torch.equal(net.head.linear.weight, evaluated[-1])


def test_layer_groups_learn_from_the_top_down_and_slower_below(tmp_path: Path) -> None:
    net = small_net()
    groups = net.layer_groups()
    before = [[p.clone() for p in g] for g in groups]
    changed: list[list[bool]] = []

    def evaluate(net: Net) -> dict[str, float]:
        changed.append(
            [any(not torch.equal(p, b) for p, b in zip(g, old, strict=True))
             for g, old in zip(groups, before, strict=True)]
        )  # fmt: skip
        return {"figure": 1.0}

    run_fit(net, tmp_path, evaluate, unfreeze_every=1, epochs=4)
    assert changed == [
        [False, False, False], [False, False, True], [False, True, True], [True, True, True],
    ]  # fmt: skip


def test_a_group_that_would_never_learn_is_refused(tmp_path: Path) -> None:
    words = r"unfreeze_every = 2: the lowest layer group .* after 6 epochs, and there are 6"
    with pytest.raises(ParamsError, match=words):
        run_fit(small_net(), tmp_path, lambda net: {}, unfreeze_every=2, epochs=6)


def never(*_: object) -> torch.Tensor:
    """A loss that is not asked for."""
    raise AssertionError


def test_rates_fall_by_the_decay(tmp_path: Path) -> None:
    training = _Training(small_net(), never, RECIPE.model_copy(update={"rate_decay": 2.0}), steps=1)
    rates = [group["max_lr"] for group in training.optimizer.param_groups]
    assert rates == pytest.approx([1e-3 / 4, 1e-3 / 2, 1e-3, 1e-2])


def test_what_is_frozen_stays(tmp_path: Path) -> None:
    net, example_views = small_net(), views()
    net.freeze_lowest(2)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fit(
        net,
        lambda net, rows, epoch: (net(example_views.batch(rows, epoch)) - 1).square().mean(),
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


@pytest.mark.parametrize(
    ("first", "words"),
    [
        (0, r"before anything was learned, so no rate is too high: look at these images"),
        (2, r"the weights were finite: lower learning_rate \(now 0\.001\)"),
    ],
)
def test_stops_when_the_loss_is_no_number(tmp_path: Path, first: int, words: str) -> None:
    factors = iter([1.0] * first + [float("nan")] * 9)
    with pytest.raises(TrainingDiverged, match=words):
        fit(
            small_net(),
            lambda net, rows, epoch: net.head.linear.weight.sum() * next(factors),
            ROWS,
            RECIPE,
            seed=0,
            evaluate=lambda net: {},
            checkpoint=Checkpoint(tmp_path, "fit"),
            what="testing",
        )


@pytest.mark.parametrize("steps", range(1, 12))
def test_the_shortest_training_has_a_schedule(steps: int) -> None:
    training = _Training(small_net(), never, RECIPE.model_copy(update={"epochs": 1}), steps)
    for _ in range(steps):
        training.optimizer.step()
        training.schedule.step()
    assert all(0 <= group["lr"] <= group["max_lr"] for group in training.optimizer.param_groups)


def test_statistics_that_are_learned_need_whole_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = small_net()
    net.frozen_statistics = False
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParamsError, match=r"learns its statistics needs whole batches"):
        run_fit(net, tmp_path, lambda net: {"figure": 1.0})


@pytest.mark.parametrize("what", ["the loss became inf", "the gradients became nan"])
def test_a_diverged_batch_can_be_replayed(tmp_path: Path, what: str) -> None:
    net, example_views = small_net(), views()
    values = []

    def loss(net: Net, rows: np.ndarray, epoch: int) -> torch.Tensor:
        value = (net(example_views.batch(rows, epoch)) - 1).square().mean()
        values.append(value.item())
        if epoch < RECIPE.epochs - 1 or 3 not in rows:
            return value
        # The slope of a root at 0 is infinite, and 0 times that is no number.
        return (
            value * float("inf")
            if "inf" in what
            else value + (0 * net.head.linear.weight.sum()).sqrt()
        )

    with pytest.raises(TrainingDiverged, match=rf"{what} in .*Net and batch are in .*diverged\.pt"):
        fit(
            net,
            loss,
            ROWS,
            RECIPE,
            seed=0,
            evaluate=lambda net: {"figure": 1.0},
            checkpoint=Checkpoint(tmp_path, "fit"),
            what="testing",
        )
    saved = torch.load(tmp_path / "diverged.pt", weights_only=True)
    again = small_net()
    again.load_state_dict(saved["net"])
    torch.set_rng_state(saved["random"])
    again.train()
    value = loss(again, saved["rows"].numpy(), saved["epoch"])
    torch.autograd.backward(value)
    # `fit` has folded BatchNorm, this has not.
    assert values[-1] == pytest.approx(values[-2], rel=1e-5)
    gradient = again.head.linear.weight.grad
    assert gradient is not None
    assert not (torch.isfinite(value) and torch.isfinite(gradient).all())
