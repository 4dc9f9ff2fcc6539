"""Files that answer differently from PyTorch are caught by what the default run allows."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from stages.core.dataset.background import DARKEST, FLAT
from stages.core.dataset.data import load_dataset
from stages.core.intake.contract import Contract
from stages.core.nets import onnx_export
from stages.core.runner.errors import DataError
from stages.core.runner.params import load_yaml
from tests.conftest import ROOT, MakeFolder, draw_images
from tests.helpers.front_door import run as validate
from tests.helpers.shipped import exported, network, parity

pytestmark = pytest.mark.usefixtures("one_thread", "quick")

LIMIT = load_yaml(ROOT / "params.yaml")["check"]["max_parity"]


def forgets(self: Any, images: Any, backgrounds: Any) -> Any:
    seen = images.float() + 0 * backgrounds
    return self.model(torch.cat([seen] * 3, 3) if self.background == "both" else seen)


def divide_without_rounding(images: Any, backgrounds: Any) -> Any:
    return (FLAT * images / backgrounds.clip(DARKEST, 255)).clip(0, 255)


def divide_without_guard(images: Any, backgrounds: Any) -> Any:
    return (FLAT * images / backgrounds.clip(1, 255) + 0.5).clip(0, 255)


@pytest.mark.parametrize(
    "broken",
    [forgets, divide_without_rounding, divide_without_guard, None],
    ids=lambda f: f.__name__ if f else "as_it_is",
)
def test_parity_catches_another_division(
    tmp_path: Path, image_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch,
    broken: Callable[..., Any] | None,
) -> None:  # fmt: skip
    for file in image_folder().glob("*.png"):  # dark corners, which the guard is for
        values = np.asarray(Image.open(file)).copy()
        values[:12, :12] //= 20
        Image.fromarray(values).save(file)
    out = validate(tmp_path, background="group")
    if broken is forgets:
        monkeypatch.setattr(onnx_export.Divided, "forward", forgets)
    elif broken:
        monkeypatch.setattr(onnx_export, "divided", broken)
    paths = exported(tmp_path, out / "validated", network(load_dataset(out / "validated")))
    assert (parity(paths).parity.max_abs > LIMIT) == (broken is not None)


def without_biases(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.op_type == "Conv" and len(node.input) == 3:
            node.input.pop()


def another_mean(model: onnx.ModelProto) -> None:
    mean = next(i for i in model.graph.initializer if i.name == "pixel_mean")
    mean.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(mean) + 1, mean.name))


def channels_swapped(model: onnx.ModelProto) -> None:
    first = next(node for node in model.graph.node if node.op_type == "Conv")
    weight = next(i for i in model.graph.initializer if i.name == first.input[1])
    swapped = onnx.numpy_helper.to_array(weight)[:, ::-1].copy()
    weight.CopyFrom(onnx.numpy_helper.from_array(swapped, weight.name))


def without_head(model: onnx.ModelProto) -> None:
    """As if the linear layer had kept what it started from: zeros."""
    head = next(node for node in model.graph.node if node.op_type in ("Gemm", "MatMul"))
    weight = next(i for i in model.graph.initializer if i.name == head.input[1])
    zeros = np.zeros_like(onnx.numpy_helper.to_array(weight))
    weight.CopyFrom(onnx.numpy_helper.from_array(zeros, weight.name))


def of_half_the_pixels(model: onnx.ModelProto) -> None:
    """As if images were enlarged from half their size: every second pixel twice."""
    cast = next(node for node in model.graph.node if node.op_type == "Sub")
    at = list(model.graph.node).index(cast)
    twice = np.repeat(np.arange(0, 32, 2), 2)
    model.graph.initializer.append(onnx.numpy_helper.from_array(twice, "twice"))
    for axis in (2, 3):
        node = onnx.helper.make_node(
            "Gather", [cast.input[0], "twice"], [f"half_{axis}"], axis=axis
        )
        model.graph.node.insert(at, node)
        cast.input[0] = f"half_{axis}"
        at += 1


@dataclass
class InColour:
    """Validated images in colour, and their network's files as they are before they are written.

    Attributes:
        models: without and with evidence, by the number of outputs.
    """

    validated: Path
    models: dict[int, onnx.ModelProto]

    def as_model(self, *_: Any, outputs: list[str]) -> onnx.ModelProto:
        """What PyTorch would make again, in seconds."""
        return copy.deepcopy(self.models[len(outputs)])


@pytest.fixture(scope="module")
def in_colour(tmp_path_factory: pytest.TempPathFactory) -> InColour:
    root = tmp_path_factory.mktemp("colour")
    draw_images(root / "images")
    for number, file in enumerate(sorted((root / "images").glob("*.png"))):
        grey = np.asarray(Image.open(file))
        tinted = np.stack([grey, grey // 2, grey // (2 + number % 3)], 2)
        Image.fromarray(tinted).save(file)
    as_model, models = onnx_export.as_model, dict[int, onnx.ModelProto]()

    def keeps(*arguments: Any, outputs: list[str]) -> onnx.ModelProto:
        models[len(outputs)] = as_model(*arguments, outputs=outputs)
        return copy.deepcopy(models[len(outputs)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contract, "document", lambda _: None)
        patch.setattr(onnx_export, "as_model", keeps)
        validated = validate(root) / "validated"
        data = load_dataset(validated)
        assert data.channels == 3
        assert parity(exported(root, validated, network(data))).parity.max_abs < LIMIT
    return InColour(validated, models)


@pytest.mark.parametrize(
    "broken",
    [without_biases, another_mean, channels_swapped, without_head, of_half_the_pixels, None],
    ids=lambda f: f.__name__ if f else "labels_permuted",
)
def test_parity_catches_a_broken_model(
    tmp_path: Path, in_colour: InColour, monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[onnx.ModelProto], None] | None,
) -> None:  # fmt: skip
    data = load_dataset(in_colour.validated)
    writes = onnx_export.write

    def breaks(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
        if broken is None:
            metadata = metadata | {"classes": json.dumps(data.classes[::-1])}
        elif path.stem == "fp32":
            broken(model)
        writes(model, path, metadata)

    monkeypatch.setattr(onnx_export, "as_model", in_colour.as_model)
    monkeypatch.setattr(onnx_export, "write", breaks)
    result = parity(exported(tmp_path, in_colour.validated, network(data)))
    assert result.parity.max_abs > LIMIT


def test_the_file_with_evidence_is_caught_by_its_labels_too(
    tmp_path: Path, in_colour: InColour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evidence adds up, but people go by the names of its probabilities."""
    data, writes = load_dataset(in_colour.validated), onnx_export.write

    def breaks(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
        if path.stem == "evidence":
            metadata = metadata | {"classes": json.dumps(data.classes[::-1])}
        writes(model, path, metadata)

    monkeypatch.setattr(onnx_export, "as_model", in_colour.as_model)
    monkeypatch.setattr(onnx_export, "write", breaks)
    result = parity(exported(tmp_path, in_colour.validated, network(data)))
    assert result.parity.max_abs < LIMIT
    assert result.evidence_parity.max_abs > LIMIT


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_network_whose_answers_are_no_numbers_is_an_error(
    tmp_path: Path, in_colour: InColour, value: float
) -> None:
    net = network(load_dataset(in_colour.validated))
    torch.nn.init.constant_(net.head.linear.bias, value)
    with pytest.raises(DataError, match=r"refined: found a network whose answers are no numbers"):
        exported(tmp_path, in_colour.validated, net)
