import numpy as np
import pytest
import torch
from torch import Tensor

from stages import targets
from stages.core.frozen import WORTH, Frozen
from stages.core.nets import Ensemble, build
from stages.core.prefix import _Lowest
from stages.core.weights import packaged
from tests.conftest import dataset

LITE = "tf_efficientnet_lite0"
DATA = dataset(n=10, px=64)
IMAGES = torch.from_numpy(DATA.pixels)


def teacher(members: int) -> Ensemble:
    nets = []
    for seed in range(members):
        torch.manual_seed(seed)
        net = build(LITE, packaged(LITE), stages=[0, 1], data=DATA)
        torch.nn.init.normal_(net.head.linear.weight, std=0.1)
        nets.append(net)
    return Ensemble(nets)


def lowest() -> torch.nn.Module:
    net = teacher(1).each()[0]
    net.freeze_lowest(2)
    return _Lowest(net, net.frozen_links())


def opinion() -> torch.nn.Module:
    return targets._Opinion(teacher(2), with_features=True)


def both(module: torch.nn.Module) -> tuple[Frozen, Frozen]:
    few, many = (Frozen(module, IMAGES[:2], images=n) for n in (WORTH - 1, WORTH))
    return few, many


def close(found: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(torch.allclose(a, b, atol=2e-4, rtol=2e-4) for a, b in pairs)


@pytest.mark.parametrize("make", [lowest, opinion])
def test_engines_agree_for_any_number_of_images(make: type[torch.nn.Module]) -> None:
    few, many = both(make())
    for count in (1, 3, 10):
        expected = few(IMAGES[:count])
        assert [len(x) for x in expected] == [count] * 2
        assert close(many(IMAGES[:count]), expected)
        # What comes out belongs to these images alone.
        assert not np.allclose(expected[0].numpy(), many(IMAGES[:count].flip(2))[0].numpy())


def test_many_images_run_through_onnx_runtime_on_weights_as_they_were() -> None:
    module = lowest()
    few, many = both(module)
    before = few(IMAGES)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(0.5)
    assert not close(few(IMAGES), before)
    assert close(many(IMAGES), before)
