"""What a teacher says of a few images, and how a student learns from it."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.core.dataset.data import Dataset
from stages.core.dataset.views import Views
from stages.core.training.student import Lesson
from stages.core.training.targets import Targets, load_targets, save_targets
from tests.conftest import outputs

VIEWS = 3


def lesson(**changes: Any) -> Lesson:
    values = {"method": "kd", "standardize_logits": False, "temperature": 3.0, "alpha": 0.3}
    return Lesson.model_validate(values | changes)


def teacher_logits(data: Dataset, seed: int = 0) -> Any:
    shape = (VIEWS, len(data.rows("train")), len(data.classes))
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def targets_of(folder: Path, data: Dataset, *, seed: int = 0) -> Targets:
    logits = teacher_logits(data, seed)
    features = np.random.default_rng(9).normal(size=(*logits.shape[:2], 7)).astype(np.float16)
    plain = np.zeros((len(data.labels), len(data.classes)), np.float32)
    save_targets(folder, Views(data.pixels, 4, 0.3, "all"), VIEWS, outputs(logits, features), plain)
    return load_targets(folder, data)
