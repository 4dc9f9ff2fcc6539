"""A network in other number formats: float16, and int8 after training.

int8 keeps the head in float32: it reads a deviation, and what it computes takes hardly any time.
Formats and calibration methods are ONNX Runtime's, and so is the code
(https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html).
"""

import contextlib
import io
import itertools
import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.transformers.float16 import convert_float_to_float16

from stages.core.nets.onnx_run import Inputs, feed
from stages.core.runner.errors import Unavailable

FP32, FP16 = "fp32", "fp16"
# Activations and weights. Where activations are unsigned and weights signed, products of a CPU
# without VNNI may saturate, unless weights have seven bits (reduce_range).
FORMATS = {
    "u8s8": (QuantType.QUInt8, QuantType.QInt8),
    "u8u8": (QuantType.QUInt8, QuantType.QUInt8),
    "s8s8": (QuantType.QInt8, QuantType.QInt8),
}
METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
# What is computed in int8; a ReLU6 is a Clip.
OPERATORS = ["Conv", "Clip", "Add"]
# Convolutions that a network needs, with the two that may stay in float32.
FEWEST = 3
# Training images that ranges of activations are taken from, and how many at a time. Two methods
# keep all activations in memory: some 20 MB per image of 160 x 160 pixels.
CALIBRATION_IMAGES, CALIBRATION_BATCH = 32, 8


@dataclass(frozen=True)
class Int8:
    """One way to quantise.

    Attributes:
        form: one of `FORMATS`.
        per_channel: whether each output channel's weights have a scale of their own.
        method: one of `METHODS`, which chooses the ranges of activations.
        float_ends: whether the first and the last convolution stay in float32.
    """

    form: str
    per_channel: bool
    method: str
    float_ends: bool

    @property
    def name(self) -> str:
        """As in a file's name."""
        scales = "channel" if self.per_channel else "tensor"
        ends = "_float_ends" if self.float_ends else ""
        return f"int8_{self.form}_{scales}_{self.method}{ends}"


def grid() -> list[Int8]:
    """All ways."""
    both = (False, True)
    return [Int8(*each) for each in itertools.product(FORMATS, both, METHODS, both)]


# The one that was fastest without a search, on a Xeon with VNNI.
USUAL = Int8("u8s8", per_channel=True, method="minmax", float_ends=True)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the converters' hints and progress."""
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)


# onnxruntime has no types.
class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Sequence[Inputs]) -> None:
        self._left: Iterator[Inputs] = iter(batches)

    def get_next(self) -> Any:
        batch = next(self._left, None)
        return None if batch is None else feed(batch)


def as_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with weights and arithmetic in float16, for GPUs; inputs and outputs stay."""
    with _silent():
        converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    return converted


def as_int8(model: onnx.ModelProto, how: Int8, batches: Sequence[Inputs]) -> onnx.ModelProto:
    """The model with its convolutions in int8.

    Args:
        batches: of training images, which the ranges of activations are taken from.

    Raises: Unavailable for a network that hardly has convolutions.
    """
    convolutions = [node.name for node in model.graph.node if node.op_type == "Conv"]
    if len(convolutions) < FEWEST:
        raise Unavailable(
            f"it has {len(convolutions)} convolutions; with fewer than {FEWEST}, int8 gains nothing"
        )
    activations, weights = FORMATS[how.form]
    with tempfile.TemporaryDirectory() as folder, _silent():
        file = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            file,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=OPERATORS,
            per_channel=how.per_channel,
            reduce_range=how.form == "u8s8",
            activation_type=activations,
            weight_type=weights,
            nodes_to_exclude=[convolutions[0], convolutions[-1]] if how.float_ends else [],
            calibrate_method=METHODS[how.method],
        )
        return onnx.load(file)
