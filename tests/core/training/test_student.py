from typing import Any

import pytest

from stages.core.runner.errors import ParamsError
from stages.core.training.student import Lesson


def lesson(**changes: Any) -> Lesson:
    values = {"method": "kd", "standardize_logits": False, "temperature": 2.0, "alpha": 0.5}
    return Lesson.model_validate(values | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": "dkd"}, "method 'dkd': with two classes there is one other class"),
        ({"method": "dist"}, "method 'dist': with two classes correlation over two classes"),
        ({"standardize_logits": True}, "standardize_logits: with two classes two logits"),
    ],
)
def test_what_teaches_nothing_with_two_classes_is_refused(
    changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ParamsError, match=words):
        lesson(**changes).check_method(2)
    lesson(**changes).check_method(3)


def test_features_have_no_logits_to_standardize() -> None:
    with pytest.raises(ParamsError, match=r"standardize_logits: method 'feature' looks at no"):
        lesson(method="feature", standardize_logits=True).check_method(3)


@pytest.mark.parametrize("method", ["kd", "feature"])
def test_what_teaches_something_is_not(method: str) -> None:
    lesson(method=method).check_method(2)


def test_mixed_images_have_no_single_class() -> None:
    with pytest.raises(ParamsError, match=r"^method 'dkd': with targets\.mix = 'cutmix'"):
        lesson(method="dkd").check_method(3, "cutmix")
    lesson(method="dkd").check_method(3, "none")
    lesson(method="kd").check_method(3, "cutmix")
