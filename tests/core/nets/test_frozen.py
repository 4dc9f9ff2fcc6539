from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from stages import targets
from stages.core.dataset.views import Views
from stages.core.nets import frozen
from stages.core.nets.frozen import WORTH, Frozen
from stages.core.nets.net import Ensemble, build
from stages.core.nets.weights import packaged
from stages.core.runner.errors import ParamsError
from stages.core.training.inputs import Inputs, _Lowest
from tests.conftest import dataset

LITE = "tf_efficientnet_lite0"
DATA = dataset(n=10, px=64)
IMAGES = torch.from_numpy(DATA.pixels)


def teacher(members: int) -> Ensemble:
    nets = []
    for seed in range(members):
        torch.manual_seed(seed)
        net = build(LITE, packaged(LITE), out_indices=[0, 1], data=DATA)
        torch.nn.init.normal_(net.head.linear.weight, std=0.1)
        nets.append(net)
    return Ensemble(nets)


def lowest() -> torch.nn.Module:
    net = teacher(1).each()[0]
    net.freeze_lowest(2)
    return _Lowest(net, net.frozen_links())


def opinion() -> torch.nn.Module:
    return targets.TeacherOutputs(teacher(2), with_features=True)


def both(module: torch.nn.Module) -> tuple[Frozen, Frozen]:
    few, many = (Frozen(module, IMAGES[:2], images=n) for n in (WORTH - 1, WORTH))
    return few, many


def close(actual: list[Tensor], expected: list[Tensor]) -> bool:
    pairs = zip(actual, expected, strict=True)
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


@pytest.mark.parametrize("backbone", ["lcnet_050", "resnet18", "vgg11_bn", "vit_tiny_patch16_224"])
def test_other_families_are_exported_too(backbone: str) -> None:
    torch.manual_seed(0)
    net = build(backbone, timm.create_model(backbone).state_dict(), out_indices=[0, 1], data=DATA)
    torch.nn.init.normal_(net.head.linear.weight, std=0.1)
    few, many = both(targets.TeacherOutputs(Ensemble([net]), with_features=False))
    assert close(many(IMAGES[:3]), few(IMAGES[:3]))


def test_elsewhere_than_on_a_cpu_pytorch_runs_it_on_the_modules_device() -> None:
    actual = Frozen(lowest().to("meta"), IMAGES[:2], images=WORTH)(IMAGES)
    assert {x.device.type for x in actual} == {"meta"}


def test_what_cannot_be_exported_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = lowest()
    forward = module.forward

    def undecided(images: Tensor) -> tuple[Tensor, Tensor]:
        actual: tuple[Tensor, Tensor] = forward(images if images.sum() > 0 else images + 1)
        return actual

    monkeypatch.setattr(module, "forward", undecided)
    with pytest.raises(ParamsError, match=f"^backbone {LITE}: PyTorch cannot write it") as raised:
        Frozen(module, IMAGES[:2], images=WORTH)
    assert len(str(raised.value).splitlines()) == 1


def test_what_one_engine_has_stored_is_not_read_by_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, views, rows = teacher(1).each()[0], Views(DATA.pixels, 1, 0.1, "all"), np.arange(10)
    net.freeze_lowest(2)
    for worth in (WORTH, 0):
        monkeypatch.setattr(frozen, "WORTH", worth)
        Inputs(net, views, rows, 1, tmp_path, plain=rows[:0], most_gb=1)
    by_torch, by_ort = (np.load(file) for file in sorted(tmp_path.rglob("*-0-pooled.npy")))
    assert np.allclose(by_torch, by_ort, atol=2e-4, rtol=2e-4)
    assert not np.array_equal(by_torch, by_ort)


def test_it_runs_in_evaluation_mode() -> None:
    module = lowest()
    expected = Frozen(module, IMAGES[:2], images=2)(IMAGES)
    for part in module.modules():
        part.training = True
    assert close(Frozen(module, IMAGES[:2], images=2)(IMAGES), expected)
