"""Other number formats of a model: near the original, the same bytes each time."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from stages.core.nets.onnx_export import metadata_of
from stages.core.nets.onnx_run import session
from stages.core.nets.variants import METHODS, USUAL, Int8, as_fp16, as_int8, grid

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS = np.random.default_rng(0).normal(128, 300, (40, 64, 64))
IMAGES = gaussian_filter(DRAWS, (0, 3, 3)).clip(0, 255).astype(np.uint8)[..., None]
BATCHES = [(IMAGES[i : i + 8],) for i in range(0, 32, 8)]


def answers(model: onnx.ModelProto) -> NDArray[np.float32]:
    running = session(model.SerializeToString(), "cpu", threads=1)
    output: NDArray[np.float32] = running.run(None, {"images": IMAGES})[0]
    return output


def apart(model: onnx.ModelProto, original: Path) -> float:
    return float(np.abs(answers(model) - answers(onnx.load(original))).max())


def test_the_grid_names_each_way_once() -> None:
    ways = grid()
    assert len({how.name for how in ways}) == len(ways) == 36
    assert USUAL in ways
    assert USUAL.name == "int8_u8s8_channel_minmax_float_ends"


def test_float16_is_near_and_half_the_size(exported: Path) -> None:
    model = as_fp16(onnx.load(exported))
    assert apart(model, exported) < 0.01
    assert model.ByteSize() < 0.6 * exported.stat().st_size
    assert [v.type.tensor_type.elem_type for v in (*model.graph.input, *model.graph.output)] == [
        onnx.TensorProto.UINT8, onnx.TensorProto.FLOAT,
    ]  # fmt: skip


SOME = [USUAL, Int8("s8s8", False, "entropy", False), Int8("u8u8", True, "percentile", True)]


@pytest.mark.parametrize("how", SOME, ids=lambda how: how.name)
def test_int8_is_near_and_keeps_what_it_says(
    exported: Path, capfd: pytest.CaptureFixture[str], how: Int8
) -> None:
    assert how.method in METHODS
    model = as_int8(onnx.load(exported), how, BATCHES)
    assert apart(model, exported) < 0.2
    initializers = {i.name: i for i in model.graph.initializer}
    kinds = {
        initializers[node.input[0]].data_type
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in initializers
        and len(initializers[node.input[0]].dims) == 4
    }  # fmt: skip
    wanted = onnx.TensorProto.UINT8 if how.form == "u8u8" else onnx.TensorProto.INT8
    assert kinds == {wanted}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    in_float = [node.input[1] in initializers for node in convolutions]
    assert (in_float[0], in_float[-1]) == (how.float_ends, how.float_ends)
    assert not any(in_float[1:-1])
    assert tuple(capfd.readouterr()) == ("", ""), "the libraries talk"


def test_the_same_bytes_each_time_and_what_it_says_of_itself(exported: Path) -> None:
    first, second = (as_int8(onnx.load(exported), USUAL, BATCHES) for _ in range(2))
    content = first.SerializeToString(deterministic=True)
    assert content == second.SerializeToString(deterministic=True)
    assert b"/tmp" not in content
    assert json.loads(metadata_of(onnx.load(exported))["classes"]) == ["functional", "defective"]


def test_ranges_come_from_the_images_that_are_given(exported: Path) -> None:
    """Quantised by images that are all black, it knows nothing of others."""
    black = [(np.zeros_like(IMAGES[:8]),)]
    model = as_int8(onnx.load(exported), USUAL, black)
    assert apart(model, exported) > 2 * apart(
        as_int8(onnx.load(exported), USUAL, BATCHES), exported
    )
