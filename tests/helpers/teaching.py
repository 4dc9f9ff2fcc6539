"""What the teacher stage is called with."""

from pathlib import Path
from typing import Any

from stages import teacher
from stages.core.runner.params import parse_section
from tests.conftest import RECIPE

LITES = ["tf_efficientnet_lite0", "tf_efficientnet_lite1"]


def params(**changes: Any) -> teacher.Params:
    values = {
        "soft_labels": None, "imbalance": "none", "focal_gamma": 2.0, "label_smoothing": 0.0,
        "mixup": 0.0, "backbones": LITES[:1], "weights": "packaged", "out_indices": [0, 1],
        "mode": "finetune", "members": 1, "own_statistics": 1.0, "frozen_groups": 2,
        "view_count": 2, "dropout": 0.0, "jitter": 0.1, "probe_c": 0.01, "adapt": "none",
        "adapt_weight": 1.0,
        "recipe": RECIPE | {"learning_rate": 3e-3, "head_learning_rate": 3e-3}, "seed": 1,
    }  # fmt: skip
    return parse_section({"teacher": values | changes}, "teacher", teacher.Params, source="here")


def paths_of(folder: Path, data: Path) -> teacher.Paths:
    folder.mkdir()
    outputs = {name: folder / name for name in teacher.Paths.outputs()}
    inputs = {"validated": data, "weights": folder / "none", "cache": folder.parent / "cache"}
    return teacher.Paths(scratch=folder / "scratch", **inputs, **outputs)
