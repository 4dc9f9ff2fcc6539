"""What exported files are asked, on every provider."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages.core.dataset.data import load_dataset
from stages.core.nets import exam, onnx_export, onnx_run
from stages.core.nets.exam import parity as compared
from stages.core.nets.onnx_run import placement
from stages.core.nets.variants import USUAL
from stages.core.results.review import Cut
from stages.core.runner.errors import DataError, Unavailable
from tests.conftest import MakeFolder
from tests.helpers.front_door import run as validate
from tests.helpers.shipped import exported, network, parity

pytestmark = pytest.mark.usefixtures("one_thread", "quick")

EXPECTED = np.array([[0.7, 0.3], [0.45, 0.55], [0.1, 0.9]], np.float32)
SHIFTED = EXPECTED + np.array([[-0.04, 0.04]], np.float32)


@pytest.mark.parametrize(
    ("cut", "changed"),
    [(None, 0), (Cut(1, 0.32, 0.58), 2), (Cut(1, 0.2, 0.5), 0), (Cut(1, 0.5, 0.92), 1)],
)
def test_decisions_are_compared_as_the_file_makes_them(cut: Cut | None, changed: int) -> None:
    assert compared({"cpu": SHIFTED}, EXPECTED, cut).decisions_changed == changed


def test_the_worst_provider_counts() -> None:
    far = EXPECTED[:, ::-1]
    found = compared({"cpu": SHIFTED, "cuda": far}, EXPECTED, None)
    assert found.providers == "cpu, cuda"
    assert found.max_abs == pytest.approx(0.8)
    assert found.decisions_changed == 3


@pytest.fixture
def validated(tmp_path: Path, image_folder: MakeFolder) -> Path:
    image_folder()
    return validate(tmp_path) / "validated"


def test_each_provider_is_asked(
    tmp_path: Path, validated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's answers are the CPU's here, and of float16 there are none."""
    asked: list[str] = []

    def session(model: Path | bytes, provider: Any, *, threads: int) -> Any:
        asked.append(provider)
        if provider == "cuda" and b"float16" in (model if isinstance(model, bytes) else b""):
            raise Unavailable("no such kernel")
        return onnx_run.session(model, "cpu", threads=threads)

    monkeypatch.setattr(exam, "providers", lambda: ("cpu", "cuda"))
    monkeypatch.setattr(exam, "session", session)
    monkeypatch.setattr(exam, "as_fp16", lambda model: _named(model, "float16"))
    result = parity(exported(tmp_path, validated, network(load_dataset(validated)), variants="few"))
    assert result.parity.providers == "cpu, cuda"
    assert result.evidence_parity.providers == "cpu, cuda"
    assert {name: list(each.on) for name, each in result.variants.items()} == {
        "fp16": ["cpu"], USUAL.name: ["cpu", "cuda"],
    }  # fmt: skip
    assert asked.count("cuda") == 4


def _named(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.doc_string = name
    return model


@pytest.mark.parametrize("stem", ["fp32", "evidence", "fp16"])
def test_answers_that_are_no_numbers(
    tmp_path: Path, validated: Path, monkeypatch: pytest.MonkeyPatch, stem: str
) -> None:
    """PyTorch's are; the file's are not. Another format is an extra."""
    writes = onnx_export.write

    def breaks(model: onnx.ModelProto, path: Path, metadata: dict[str, str]) -> None:
        writes(_spoilt(model) if path.stem == stem else model, path, metadata)

    monkeypatch.setattr(onnx_export, "write", breaks)
    if stem == "fp16":
        monkeypatch.setattr(exam, "as_fp16", _spoilt)
        result = parity(
            exported(tmp_path, validated, network(load_dataset(validated)), variants="few")
        )
        assert "answers on cpu that are no numbers" in result.failed_variants["fp16"]
        assert list(result.variants) == [USUAL.name]
        return
    with pytest.raises(DataError, match="found answers on cpu that are no numbers"):
        exported(tmp_path, validated, network(load_dataset(validated)))


def _spoilt(model: onnx.ModelProto) -> onnx.ModelProto:
    """One weight of a matrix is NaN, and so are some answers."""
    weights = [each for each in model.graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
    last = max(weights, key=lambda each: len(each.dims) == 2)
    values = numpy_helper.to_array(last).copy()
    values.flat[0] = np.nan
    last.CopyFrom(numpy_helper.from_array(values, last.name))
    return model


def test_a_full_disk_is_no_property_of_a_format(
    tmp_path: Path, validated: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exam, "write", full)
    with pytest.raises(OSError, match="No space left"):
        exported(tmp_path, validated, network(load_dataset(validated)), variants="few")


def test_a_profile_tells_which_provider_runs_the_nodes(tmp_path: Path, validated: Path) -> None:
    data = load_dataset(validated)
    file = exported(tmp_path, validated, network(data)).onnx / "fp32.onnx"
    nodes = placement(file, "cpu", data.model_inputs(data.rows("test")[:1]), threads=1)
    assert list(nodes) == ["CPUExecutionProvider"]
    assert nodes["CPUExecutionProvider"] > 10
