import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stages.core.nets import folding
from stages.core.nets.net import Net, build
from tests.conftest import dataset
from tests.helpers.fitted import RECIPE, train

DATA = dataset(n=10, px=64)
LABELS = torch.arange(10) % 2

# Uneven padding; residuals; convolutions with a bias; an activation that bends; squeeze-and-excite.
BACKBONES = {
    "tf_efficientnet_lite0": [0, 1, 2],
    "resnet18": [1, 2],
    "vgg11_bn": [0, 1],
    "mobilenetv3_small_050": [0, 1],
}


def used(backbone: str) -> Net:
    """A network whose BatchNorm has seen and learned something."""
    torch.manual_seed(0)
    net = build(backbone, None, out_indices=BACKBONES[backbone], data=DATA)
    net.frozen_statistics = True
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in (
                (module.running_mean, -0.5), (module.running_var, 0.5),
                (module.weight, 0.5), (module.bias, -0.5),
            ):  # fmt: skip
                assert tensor is not None
                nn.init.uniform_(tensor, low, low + 1)
            module.eps = 0.1
    nn.init.normal_(net.head.linear.weight, std=0.1)
    return net


def learn(net: Net, pairs: folding.Pairs) -> list[Tensor]:
    """Logits and all gradients of one step, in float64: what differs is not rounding."""
    net.double().train()
    net.zero_grad()
    with folding.folded(pairs):
        logits = net(torch.from_numpy(DATA.pixels))
    F.cross_entropy(logits, LABELS).backward()
    return [logits.detach(), *(p.grad.clone() for p in net.parameters() if p.grad is not None)]


def is_folded(net: Net) -> bool:
    return any("forward" in module.__dict__ for module in net.modules())


def worst(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, as a share of the largest number of its tensor."""
    pairs = zip(actual, expected, strict=True)
    return max(((a - b).abs().max() / (b.abs().max() + 1e-6)).item() for a, b in pairs)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_folded_networks_give_the_same_logits_and_gradients(backbone: str) -> None:
    net = used(backbone)
    pairs = folding.pairs(net)
    run = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm for _, norm in pairs} == set(run)
    assert worst(learn(net, pairs), learn(net, [])) < 1e-9


def test_a_wrong_fold_is_seen() -> None:
    net = used("resnet18")
    pairs = folding.pairs(net)
    expected = learn(net, pairs)
    assert pairs[0][1].running_mean is not None
    pairs[0][1].running_mean += 0.1
    assert worst(learn(net, pairs), expected) > 1e-3


def test_batchnorm_that_learns_its_statistics_is_left_alone() -> None:
    net = used("resnet18")
    pairs = folding.pairs(net)
    net.frozen_statistics = False
    plain = copy.deepcopy(net)
    actual, expected = learn(net, pairs), learn(plain, [])
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
    after, before = net.state_dict(), used("resnet18").state_dict()
    moved = [name for name in after if "running_mean" in name]
    assert not any(torch.equal(after[name], before[name]) for name in moved)
    assert all(torch.equal(after[name], plain.state_dict()[name]) for name in moved)


def test_nothing_is_folded_where_an_output_is_needed_elsewhere() -> None:
    net = used("resnet18")
    block = net.backbone.model.layer1[0]

    def forward(x: Tensor) -> Tensor:
        inner = block.conv1(x)
        out: Tensor = block.act2(
            block.bn2(block.conv2(block.act1(block.bn1(inner)))) + 1e-4 * inner
        )
        return out

    block.forward = forward
    assert folding.pairs(net) == []


def test_nothing_is_folded_where_one_convolution_runs_twice() -> None:
    net = used("resnet18")
    block = net.backbone.model.layer1[0]
    block.conv2 = block.conv1
    assert folding.pairs(net) == []
    assert not is_folded(net)


def test_looking_for_pairs_changes_nothing() -> None:
    net = used("mobilenetv3_small_050")
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    folding.pairs(net)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_folding_ends_with_the_block_also_by_an_error() -> None:
    net = used("resnet18")
    pairs = folding.pairs(net)
    with pytest.raises(AttributeError), folding.folded(pairs):
        net(None)
    assert not is_folded(net)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_is_folded_and_measuring_is_not(tmp_path: Path, average: float) -> None:
    seen = set()
    recipe = RECIPE.model_copy(update={"average": average})
    train(tmp_path, recipe, look=lambda net: seen.add((net.training, is_folded(net))))
    assert seen == {(True, True), (False, False)}
