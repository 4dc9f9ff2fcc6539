"""A release for the tests of its script."""

import json
import shutil
from pathlib import Path

import pytest

from stages.core.release import predict
from tests.helpers.released import CLASSES


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory, exported: Path) -> Path:
    """A release folder, as the check stage writes it; copy it before you break it."""
    folder = tmp_path_factory.mktemp("release")
    shutil.copyfile(exported, folder / "model.onnx")
    (folder / "labels.json").write_text(json.dumps(CLASSES))
    shutil.copyfile(predict.__file__, folder / "predict.py")
    return folder
