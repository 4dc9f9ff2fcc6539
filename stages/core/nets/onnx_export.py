"""A network as an ONNX file that takes raw images and gives calibrated probabilities.

If the network saw images that were divided by their backgrounds, the file takes these too, and
divides.
"""

import json
import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from stages.core.dataset.background import divided
from stages.core.dataset.data import BackgroundKind
from stages.core.nets.evidence import Evidence
from stages.core.nets.faster import faster
from stages.core.nets.net import AnyNet, Net
from stages.core.nets.onnx_run import EVIDENCE, INPUTS, OUTPUT
from stages.core.runner.errors import ParamsError

# As old as the operators in use allow, so that runtimes from 2023 on read the file: the first was
# onnxruntime 1.14.
OPSET, IR_VERSION = 18, 8


class Calibrated(nn.Module):
    """uint8 (B, P, P, C) images to probabilities (B, K): softmax(logits / temperature)."""

    def __init__(self, net: AnyNet, temperature: float) -> None:
        super().__init__()
        self.net = net
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        return torch.softmax(self.net(images) / self.temperature, 1)


class Explained(nn.Module):
    """uint8 (B, P, P, C) images to probabilities (B, K) and `Evidence` (B, K, S, S)."""

    def __init__(self, net: Net, temperature: float) -> None:
        super().__init__()
        self.evidence = Evidence(net)
        self.temperature = temperature

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, evidence = self.evidence.logits_and_evidence(images)
        return torch.softmax(logits / self.temperature, 1), evidence


class Divided(nn.Module):
    """A module of images, as one of images and their backgrounds: uint8 (B, P, P, C) both.

    Args:
        model: takes floats, whole numbers of 0 to 255, as validation made them.
        background: what validation made: with `both`, three channels of one.
    """

    def __init__(self, model: nn.Module, background: BackgroundKind) -> None:
        super().__init__()
        self.model = model
        self.background = background

    def forward(self, images: Tensor, backgrounds: Tensor) -> Any:
        images, backgrounds = images.float(), backgrounds.float()
        seen = divided(images, backgrounds).floor()
        if self.background == "both":
            seen = torch.cat([images, seen, backgrounds], 3)
        return self.model(seen)


def released(
    net: AnyNet, temperature: float, background: BackgroundKind | None, *, explained: bool = False
) -> nn.Module:
    """A network in evaluation mode, from what a released model is given to probabilities.

    Args:
        explained: evidence comes out, too.

    Raises: ValueError for the evidence of an ensemble.
    """
    if explained:
        if not isinstance(net, Net):
            raise ValueError("evidence is that of one network")
        model: nn.Module = Explained(net, temperature).eval()
    else:
        model = Calibrated(net, temperature).eval()
    return model if background is None else Divided(model, background).eval()


def _without_traces(model: onnx.ModelProto) -> None:
    """Remove the exporter's notes about this machine's source files, in place."""
    graphs = [model.graph]
    for graph in graphs:
        del graph.metadata_props[:]
        for item in [*graph.node, *graph.value_info, *graph.input, *graph.output]:
            item.doc_string = ""
            del item.metadata_props[:]
        for initializer in graph.initializer:
            del initializer.metadata_props[:]
        for node in graph.node:
            graphs += [a.g for a in node.attribute if a.HasField("g")]
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            node.doc_string = ""
            del node.metadata_props[:]


def as_model(
    module: nn.Module, *examples: Tensor, outputs: list[str] | None = None
) -> onnx.ModelProto:
    """A module of raw images as ONNX, for any batch size.

    Args:
        module: in evaluation mode, on the CPU.
        examples: of each of its inputs at least two: the exporter would take a batch of 1 for a
            constant, and one tensor that is given twice for a single input.
        outputs: names.

    Raises: ParamsError when PyTorch cannot write it.
    """
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The exporter's own use of deprecated functions is not the user's concern.
        warnings.simplefilter("ignore")
        try:
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                dynamic_shapes=tuple({0: torch.export.Dim.DYNAMIC} for _ in examples),
                input_names=list(INPUTS[: len(examples)]),
                output_names=outputs,
                opset_version=OPSET,
                optimize=True,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            names = {net.spec.backbone for net in module.modules() if isinstance(net, Net)}
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ParamsError(
                f"backbone {' + '.join(sorted(names))}: PyTorch cannot write it as ONNX, and the "
                f"chain ends with ONNX: {reason}; take another backbone"
            ) from error
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    model.ir_version = IR_VERSION
    return model


def export(
    net: AnyNet,
    path: Path,
    *,
    temperature: float,
    metadata: Mapping[str, str],
    background: BackgroundKind | None = None,
    explained: Path | None = None,
) -> None:
    """Write `net` with preprocessing inside, for any batch size.

    Args:
        net: on the CPU; left in evaluation mode.
        temperature: divides the logits; 1 leaves them alone.
        metadata: text by key, stored in the file beside classes, image_px and channels.
        background: what the network saw beside images or in place of them, see `FileRules`.
        explained: a file in which `EVIDENCE` is an output, too; of a single network.

    Raises: ParamsError when PyTorch cannot write it.
    """
    spec = net.spec
    channels = 1 if background == "both" else spec.channels
    shape = (2, spec.image_px, spec.image_px, channels)
    examples = [torch.zeros(shape, dtype=torch.uint8) for _ in INPUTS[: 2 if background else 1]]
    own = {
        "classes": json.dumps(spec.classes),
        "image_px": str(spec.image_px),
        "channels": str(channels),
    }
    files = {path: [OUTPUT]} | ({} if explained is None else {explained: [OUTPUT, EVIDENCE]})
    for file, outputs in files.items():
        module = released(net, temperature, background, explained=EVIDENCE in outputs)
        model = faster(as_model(module, *examples, outputs=outputs))
        _without_traces(model)
        for value in (*model.graph.input, *model.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
        write(model, file, {**own, **metadata})


def write(model: onnx.ModelProto, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a model, checked by onnx.checker, with just these metadata."""
    model.producer_name, model.producer_version = "atelier", ""
    del model.metadata_props[:]
    for key, value in sorted(metadata.items()):
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString(deterministic=True))


def metadata_of(model: onnx.ModelProto) -> dict[str, str]:
    """What `write` was given."""
    return {entry.key: entry.value for entry in model.metadata_props}
