"""The exported file: the same answers for any batch, nothing of this machine in it."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from stages.core.intake import images
from stages.core.nets.onnx_export import Calibrated, export
from stages.core.nets.onnx_run import probabilities, session
from stages.core.release import predict
from stages.core.runner.errors import Unavailable
from tests.conftest import ROOT
from tests.helpers.exported import METADATA, net


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("reduce", [1, 2])
def test_parity_at_any_batch(tmp_path: Path, channels: int, reduce: int) -> None:
    network = net(channels, reduce)
    path = tmp_path / "model.onnx"
    export(network, path, temperature=1.7, metadata={})
    pixels = np.random.default_rng(0).integers(0, 256, (7, 64, 64, channels), dtype=np.uint8)
    rows = np.arange(7)
    with torch.inference_mode():
        expected = Calibrated(network, 1.7)(torch.from_numpy(pixels)).numpy()
    running = session(path, "cpu", threads=1)
    for batch in (1, 3, 7):
        given = probabilities(running, lambda some: (pixels[some],), rows, batch=batch)
        np.testing.assert_allclose(given, expected, atol=1e-5)
    assert np.allclose(expected.sum(1), 1)


def test_export_is_deterministic(tmp_path: Path, exported: Path) -> None:
    export(net(), tmp_path / "again.onnx", temperature=1.7, metadata=METADATA)
    assert (tmp_path / "again.onnx").read_bytes() == exported.read_bytes()


def test_old_runtimes_read_it(exported: Path) -> None:
    """The operator set and IR version that were onnxruntime 1.14's newest, in February 2023."""
    model = onnx.load(exported)
    assert model.ir_version <= 8
    assert {(opset.domain, opset.version) for opset in model.opset_import} == {("", 18)}


def test_no_local_paths(exported: Path) -> None:
    content = exported.read_bytes()
    assert b".py" not in content
    assert str(ROOT).encode() not in content


def test_says_how_to_use_it(exported: Path) -> None:
    model = predict.Model(exported)
    assert model.classes == ["functional", "defective"]
    assert (model.image_px, model.channels) == (64, 1)
    assert (model.bit_depth, model.max_pixels) == (12, 10**6)
    inputs = onnx.load(exported).graph.input
    assert [d.dim_param or d.dim_value for d in inputs[0].type.tensor_type.shape.dim] == [
        "batch", 64, 64, 1,
    ]  # fmt: skip


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_release_reads_images_as_the_pipeline_does(
    tmp_path: Path, exported: Path, mode: str
) -> None:
    shape = (100, 90) if mode == "L" else (100, 90, 3)
    draws = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(draws).save(tmp_path / "x.png")
    content = (tmp_path / "x.png").read_bytes()
    entry = images.look(content, 64, 10**6)
    packed = np.frombuffer(entry.pixels, np.uint8).reshape(64, 64, entry.channels)
    assert np.array_equal(predict.read(content, image_px=64, max_pixels=10**6).pixels, packed)
    pixels = predict.Model(exported).pixels(content)
    if mode == "L":
        assert np.array_equal(pixels, packed)
    else:
        grey = Image.fromarray(draws).convert("L").resize((64, 64), Image.Resampling.BICUBIC)
        assert np.array_equal(pixels[..., 0], np.asarray(grey))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_missing_provider_is_an_error(exported: Path) -> None:
    with pytest.raises(Unavailable, match="ONNX Runtime on cuda"):
        session(exported, "cuda", threads=1)
