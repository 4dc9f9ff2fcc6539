"""What several wings' tests share."""

from pathlib import Path

import pytest

from stages.core.nets.onnx_export import export
from tests.helpers.exported import METADATA, net


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`net()` as an ONNX file; exporting takes seconds."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export(net(), path, temperature=1.7, metadata=METADATA)
    return path
