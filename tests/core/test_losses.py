import numpy as np
import pytest
import torch
from scipy.special import log_softmax, softmax

from stages.core.losses import distillation


def naive(s: np.ndarray, t: np.ndarray, y: np.ndarray, temperature: float, alpha: float) -> float:
    total = 0.0
    for student, teacher, label in zip(s, t, y, strict=True):
        hard = -log_softmax(student)[label]
        p = softmax(teacher / temperature)
        kl = sum(
            p[k] * (np.log(p[k]) - log_softmax(student / temperature)[k]) for k in range(len(p))
        )
        total += (1 - alpha) * hard + alpha * temperature**2 * kl
    return total / len(y)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize(("temperature", "alpha"), [(1.0, 1.0), (4.0, 0.9), (2.0, 0.0)])
def test_distillation_is_the_formula(classes: int, temperature: float, alpha: float) -> None:
    draws = np.random.default_rng(0)
    s, t = draws.normal(0, 3, (2, 16, classes))
    y = draws.integers(classes, size=16)
    found = distillation(
        torch.tensor(s), torch.tensor(t), torch.tensor(y), temperature=temperature, alpha=alpha
    )
    assert float(found) == pytest.approx(naive(s, t, y, temperature, alpha), rel=1e-10)


def test_a_student_that_is_its_teacher_has_no_soft_loss() -> None:
    logits = torch.randn(8, 3, dtype=torch.float64)
    labels = torch.zeros(8, dtype=torch.int64)
    found = distillation(logits, logits, labels, temperature=3.0, alpha=1.0)
    assert float(found) == pytest.approx(0, abs=1e-12)
