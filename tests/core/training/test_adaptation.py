from pathlib import Path

import numpy as np
import pytest
import torch

from stages.core.dataset.views import Views
from stages.core.nets import net as nets
from stages.core.nets import weights
from stages.core.runner.checkpoint import Checkpoint
from stages.core.training import adaptation, losses
from stages.core.training.adaptation import (
    MCC_TEMPERATURE,
    Adversary,
    Confusion,
    adapt_statistics,
)
from stages.core.training.fit import Recipe, fit
from stages.core.training.inputs import Inputs
from tests.conftest import RECIPE, dataset

DATA = dataset(n=12, px=32)
PLAIN = Views(DATA.pixels, 0, 0, "all").plain


@pytest.fixture
def net() -> nets.Net:
    lite = "tf_efficientnet_lite0"
    network = nets.build(lite, weights.packaged(lite), out_indices=[0, 1], data=DATA)
    network.freeze_lowest(2)
    return network


def test_statistics_become_those_of_the_images(net: nets.Net) -> None:
    rows = np.arange(12)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    adapt_statistics(net, PLAIN, rows)
    with torch.inference_mode():
        x = net.backbone.model.conv_stem(net.prepare(PLAIN(rows)))
    norm = net.backbone.model.bn1
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-5)
    assert torch.allclose(norm.running_var, x.var((0, 2, 3)), rtol=1e-4)
    features = net.features(PLAIN(rows)).detach()
    assert torch.allclose(net.head.mean, features.mean(0), atol=1e-4)
    changed = {k for k, v in net.state_dict().items() if not torch.equal(v, before[k])}
    assert not {k for k in changed if k.endswith(("weight", "bias"))}
    # What was frozen, and only that, is frozen again.
    frozen = [p.requires_grad for group in net.layer_groups() for p in group]
    assert False in frozen
    assert True in frozen
    assert net.frozen_statistics


def test_a_share_of_the_images_statistics(net: nets.Net) -> None:
    rows, norm = np.arange(12), net.backbone.model.bn1
    before = norm.running_mean.clone()
    _, features = adapt_statistics(net, PLAIN, rows, 0.0)
    assert torch.equal(norm.running_mean, before)
    assert torch.allclose(net.head.mean, torch.from_numpy(features).mean(0))
    adapt_statistics(net, PLAIN, rows, 0.25)
    with torch.inference_mode():
        own = net.backbone.model.conv_stem(net.prepare(PLAIN(rows))).mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, 0.75 * before + 0.25 * own, atol=1e-5)
    assert torch.allclose(net.head.mean, net.features(PLAIN(rows)).mean(0), atol=1e-4)


def test_without_pretrained_statistics_the_images_are_taken_whole() -> None:
    scratch = nets.build("lcnet_050", None, out_indices=[0, 1], data=DATA)
    adapt_statistics(scratch, PLAIN, np.arange(12), 0.0)
    with torch.inference_mode():
        x = scratch.backbone.model.conv_stem(scratch.prepare(PLAIN(np.arange(12))))
    assert torch.allclose(scratch.backbone.model.bn1.running_mean, x.mean((0, 2, 3)), atol=1e-5)


def test_confusion_is_of_the_targets_images(net: nets.Net, tmp_path: Path) -> None:
    rows = np.array([2, 4, 6])
    prefix = Inputs(
        net, Views(DATA.pixels, 0, 0.1, "all"), rows, 2, tmp_path, plain=rows, most_gb=1
    )
    torch.nn.init.normal_(net.head.linear.weight, std=0.1)
    net.eval()
    loss = Confusion(prefix, rows, 2, seed=5)
    batch = np.array([0, 1])
    chosen = np.random.default_rng([5, 3, 0]).choice(rows, 2, replace=False)
    expected = losses.class_confusion(net(prefix.batch(chosen, 1)), temperature=MCC_TEMPERATURE)
    assert torch.equal(loss(net, batch, 3), expected)


@pytest.mark.parametrize("epoch", [0, 3])
def test_the_adversary_tells_the_target_and_the_net_foils_it(
    net: nets.Net, tmp_path: Path, epoch: int
) -> None:
    rows, batch = np.array([2, 4, 6]), np.array([0, 1, 3])
    prefix = Inputs(
        net, Views(DATA.pixels, 0, 0.1, "all"), np.arange(8), 2, tmp_path, plain=rows, most_gb=1
    )
    net.eval()
    first = Adversary(net, prefix, rows, 2, seed=5, epochs=4)
    again = Adversary(net, prefix, rows, 2, seed=5, epochs=4)
    same = zip(first.parameters(), again.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in same)
    chosen = np.random.default_rng([5, epoch, 0]).choice(rows, 3, replace=False)
    examples = torch.cat([net.features(prefix.batch(each, epoch % 2)) for each in (batch, chosen)])
    p = again.domain(net.head.standardize(examples))[:, 0].sigmoid()
    expected = -torch.cat([(1 - p[:3]).log(), p[3:].log()]).mean()
    assert torch.allclose(again(net, batch, epoch), expected)
    learn = [q for q in net.backbone.parameters() if q.requires_grad]
    judge = list(again.parameters())
    heed = 2 / (1 + np.exp(-10 * (epoch + 0.5) / 4)) - 1
    result = torch.autograd.grad(again(net, batch, epoch), [*learn, *judge])
    plain = torch.autograd.grad(expected, [*learn, *judge])
    assert len(learn) > 3
    for i, (got, without) in enumerate(zip(result, plain, strict=True)):
        sign = -heed if i < len(learn) else 1.0
        assert torch.allclose(got, sign * without, rtol=1e-3, atol=1e-6)


def test_the_adversary_learns_with_the_net(net: nets.Net, tmp_path: Path) -> None:
    train, target = np.arange(6), np.arange(6, 12)
    prefix = Inputs(
        net,
        Views(DATA.pixels, 0, 0.1, "all"),
        np.arange(12),
        2,
        tmp_path,
        plain=train[:0],
        most_gb=1,
    )
    adversary = Adversary(net, prefix, target, 2, seed=5, epochs=1)
    before = {name: p.clone() for name, p in net.named_parameters()}
    untrained = {name: p.clone() for name, p in adversary.named_parameters()}
    checkpoint = Checkpoint(tmp_path / "fits", "net")
    recipe = Recipe.model_validate(RECIPE | {"epochs": 1})
    fit(
        net, adversary, train, recipe, seed=1, evaluate=lambda _: {"val": 0.0},
        checkpoint=checkpoint, what="adversary",
    )  # fmt: skip
    moved = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert not any(torch.equal(p, untrained[name]) for name, p in adversary.named_parameters())
    assert any(name.startswith("backbone") for name in moved)
    # It is a part of the checkpoint while it learns.
    assert set(checkpoint.read()["loss"]) == set(untrained)


def test_statistics_do_not_depend_on_the_order(net: nets.Net) -> None:
    examples = dataset(n=96, px=32)
    brighter = np.linspace(0, 1, 96).reshape(-1, 1, 1, 1)
    pixels = (examples.pixels * brighter).astype(np.uint8)
    adapt_statistics(net, Views(pixels, 0, 0, "all").plain, np.arange(96))
    with torch.inference_mode():
        x = net.backbone.model.conv_stem(net.prepare(torch.from_numpy(pixels)))
    norm = net.backbone.model.bn1
    assert torch.allclose(norm.running_mean, x.mean((0, 2, 3)), atol=1e-4)
    # A batch of 32 has a little less of what sets images apart than all have.
    assert torch.allclose(norm.running_var, x.var((0, 2, 3)), rtol=0.1)


def test_a_small_last_batch_does_not_count_as_a_whole_one(net: nets.Net) -> None:
    pixels = np.full((33, 32, 32, 1), 100, np.uint8)
    pixels[np.random.default_rng(0).permutation(33)[-1]] = 255
    adapt_statistics(net, Views(pixels, 0, 0, "all").plain, np.arange(33))
    with torch.inference_mode():
        x = net.backbone.model.conv_stem(
            net.prepare(torch.from_numpy(pixels[pixels.max((1, 2, 3)) < 255]))
        )
    assert torch.allclose(net.backbone.model.bn1.running_mean, x.mean((0, 2, 3)), atol=1e-4)


def test_memory_for_features_is_bounded(
    net: nets.Net, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    width = len(net.head.mean)
    monkeypatch.setattr(adaptation, "MAX_FEATURES", 5 * width + 1)
    rows, features = adapt_statistics(net, PLAIN, np.arange(12), 0.0)
    assert len(rows) == len(set(rows)) == 5
    assert "features of 5 of 12 images" in capsys.readouterr().out
    assert features.shape == (5, width)
    with torch.inference_mode():
        assert np.allclose(features, net.features(PLAIN(rows)), atol=1e-4)
    again, _ = adapt_statistics(net, PLAIN, np.arange(12), 0.0)
    assert np.array_equal(rows, again)
