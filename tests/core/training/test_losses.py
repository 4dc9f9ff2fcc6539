from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.special import log_softmax, softmax
from torch import Tensor
from torch.nn import functional as F

from stages.core.training import losses
from stages.core.training.losses import (
    class_confusion,
    correlation,
    decoupled,
    focal,
    soft_targets,
    standardize,
)

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

both_sizes = pytest.mark.parametrize("classes", [2, 5])


def drawn(classes: int, size: int = 16) -> tuple[Floats, Floats, Ints]:
    draws = np.random.default_rng(0)
    s, t = draws.normal(0, 3, (2, size, classes))
    return s, t, draws.integers(classes, size=size)


def tensors(*arrays: NDArray[np.generic]) -> list[Tensor]:
    return [torch.tensor(array) for array in arrays]


def kl(p: Floats, q: Floats) -> float:
    return sum(a * (np.log(a) - np.log(b)) for a, b in zip(p, q, strict=True))


def naive_soft_targets(s: Floats, t: Floats, temperature: float) -> float:
    total = 0.0
    for student, teacher in zip(s, t, strict=True):
        p, q = softmax(teacher / temperature), log_softmax(student / temperature)
        total += temperature**2 * sum(p[k] * (np.log(p[k]) - q[k]) for k in range(len(p)))
    return total / len(s)


def naive_decoupled(
    s: Floats, t: Floats, y: Ints, temperature: float, weights: tuple[float, float]
) -> float:
    total = 0.0
    for student, teacher, label in zip(s, t, y, strict=True):
        p, q = softmax(teacher / temperature), softmax(student / temperature)
        rest_p, rest_q = np.delete(p, label), np.delete(q, label)
        tckd = kl(np.array([p[label], rest_p.sum()]), np.array([q[label], rest_q.sum()]))
        nckd = kl(rest_p / rest_p.sum(), rest_q / rest_q.sum())
        total += temperature**2 * (weights[0] * tckd + weights[1] * nckd)
    return total / len(y)


def naive_correlation(
    s: Floats, t: Floats, temperature: float, weights: tuple[float, float]
) -> float:
    q, p = softmax(s / temperature, 1), softmax(t / temperature, 1)
    inter = [1 - np.corrcoef(q[i], p[i])[0, 1] for i in range(len(s))]
    intra = [1 - np.corrcoef(q[:, k], p[:, k])[0, 1] for k in range(s.shape[1])]
    return temperature**2 * float(weights[0] * np.mean(inter) + weights[1] * np.mean(intra))


def confusion_weights(z: Floats, temperature: float) -> Floats:
    weights = []
    for row in z:
        p = softmax(row / temperature)
        weights.append(1 + np.exp(sum(v * np.log(v) for v in p)))
    return len(z) * np.array(weights) / sum(weights)


def naive_confusion(z: Floats, temperature: float, weights: Floats) -> float:
    classes = z.shape[1]
    p = softmax(z / temperature, 1)
    matrix = np.zeros((classes, classes))
    for i in range(len(z)):
        for j in range(classes):
            for k in range(classes):
                matrix[j, k] += weights[i] * p[i, j] * p[i, k]
    total = 0.0
    for j in range(classes):
        for k in range(classes):
            if j != k:
                total += matrix[j, k] / matrix[j].sum()
    return total / classes


def naive_focal(z: Floats, wanted: Floats, gamma: float) -> float:
    result = [
        -sum(w * (1 - p) ** gamma * np.log(p) for w, p in zip(row, softmax(logits), strict=True))
        for row, logits in zip(wanted, z, strict=True)
    ]
    return float(np.mean(result))


def sure(y: Tensor, classes: int) -> Tensor:
    return F.one_hot(y, classes).double()


@both_sizes
def test_standardize_is_the_z_score_of_each_row(classes: int) -> None:
    z, _, _ = drawn(classes)
    result = standardize(torch.tensor(z)).numpy()
    for row, expected in zip(result, z, strict=True):
        assert row == pytest.approx((expected - expected.mean()) / (expected.std() + 1e-6), 1e-8)


def test_standardize_keeps_only_the_sign_of_two_classes() -> None:
    result = standardize(torch.tensor([[0.02, -0.01], [-40.0, 50.0]], dtype=torch.float64))
    assert result.tolist() == [pytest.approx([1, -1], rel=1e-4), pytest.approx([-1, 1], rel=1e-4)]


@both_sizes
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_soft_targets_are_the_formula(classes: int, temperature: float) -> None:
    s, t, _ = drawn(classes)
    result = soft_targets(*tensors(s, t), temperature=temperature)
    assert float(result) == pytest.approx(naive_soft_targets(s, t, temperature), rel=1e-8)


@both_sizes
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 8.0), (2.0, 0.5)])
def test_decoupled_is_the_formula(
    classes: int, temperature: float, weights: tuple[float, float]
) -> None:
    s, t, y = drawn(classes)
    result = decoupled(
        *tensors(s, t, y),
        temperature=temperature,
        target_weight=weights[0],
        non_target_weight=weights[1],
    )
    assert float(result) == pytest.approx(naive_decoupled(s, t, y, temperature, weights), rel=1e-8)


def test_decoupled_of_two_classes_is_soft_targets() -> None:
    s, t, y = tensors(*drawn(2))
    others = decoupled(s, t, y, temperature=2.0, target_weight=0.0, non_target_weight=1.0)
    assert float(others) == 0
    result = decoupled(s, t, y, temperature=2.0)
    assert float(result) == pytest.approx(float(soft_targets(s, t, temperature=2.0)), rel=1e-12)


def test_decoupled_adds_up_to_soft_targets() -> None:
    s, t, y = drawn(5, size=1)
    rest = 1 - float(softmax(t[0] / 2.0)[y[0]])
    result = decoupled(*tensors(s, t, y), temperature=2.0, non_target_weight=rest)
    expected = soft_targets(*tensors(s, t), temperature=2.0)
    assert float(result) == pytest.approx(float(expected), rel=1e-10)


@both_sizes
@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (2.0, 0.5)])
def test_correlation_is_the_formula(
    classes: int, temperature: float, weights: tuple[float, float]
) -> None:
    s, t, _ = drawn(classes)
    result = correlation(
        *tensors(s, t), temperature=temperature, inter_weight=weights[0], intra_weight=weights[1]
    )
    assert float(result) == pytest.approx(naive_correlation(s, t, temperature, weights), rel=1e-8)


@pytest.mark.parametrize("sure", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("sign", "expected"), [(1, 0), (-1, 2)])
def test_correlation_over_two_classes_only_counts_agreement(
    sure: float, sign: int, expected: int
) -> None:
    s = torch.tensor([[sure, 0.0]], dtype=torch.float64, requires_grad=True)
    t = torch.tensor([[sign * 0.7, 0.0]], dtype=torch.float64)
    result = correlation(s, t, temperature=1.0, intra_weight=0.0)
    assert result.item() == pytest.approx(expected, abs=1e-12)
    (gradient,) = torch.autograd.grad(result, s)
    assert float(gradient.abs().max()) < 1e-12


def test_correlation_with_what_is_constant_is_none() -> None:
    t = torch.tensor(drawn(5)[1])
    result = correlation(torch.zeros_like(t), t, temperature=2.0)
    assert float(result) == pytest.approx(2.0**2 * 2)


@both_sizes
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_class_confusion_is_the_formula(classes: int, temperature: float) -> None:
    z, _, _ = drawn(classes)
    result = class_confusion(torch.tensor(z), temperature=temperature)
    expected = naive_confusion(z, temperature, confusion_weights(z, temperature))
    assert float(result) == pytest.approx(expected, rel=1e-8)


def test_class_confusion_sends_no_gradient_through_its_weights() -> None:
    z, _, _ = drawn(3, size=4)
    logits = torch.tensor(z, requires_grad=True)
    (gradient,) = torch.autograd.grad(class_confusion(logits, temperature=2.5), logits)
    weights, step = confusion_weights(z, 2.5), 1e-5
    expected = np.zeros_like(z)
    for at in np.ndindex(z.shape):
        up, down = z.copy(), z.copy()
        up[at] += step
        down[at] -= step
        rise = naive_confusion(up, 2.5, weights) - naive_confusion(down, 2.5, weights)
        expected[at] = rise / (2 * step)
    assert gradient.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-9)


@both_sizes
def test_class_Confusion_equal_predictions_is_the_same_for_all(classes: int) -> None:
    for row in drawn(classes)[0]:
        result = class_confusion(torch.tensor(np.tile(row, (8, 1))), temperature=1.0)
        assert float(result) == pytest.approx(1 - 1 / classes, rel=1e-10)


def test_class_Confusion_sure_predictions_of_all_classes_is_none() -> None:
    result = class_confusion(50 * torch.eye(4, dtype=torch.float64), temperature=1.0)
    assert float(result) == pytest.approx(0, abs=1e-12)


@both_sizes
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_focal_is_the_formula(classes: int, gamma: float) -> None:
    z, t, y = drawn(classes)
    for wanted in (np.eye(classes)[y], softmax(t, axis=1)):
        result = focal(*tensors(z, wanted), gamma=gamma)
        assert float(result) == pytest.approx(naive_focal(z, wanted, gamma), rel=1e-8)


@both_sizes
def test_focal_without_gamma_is_cross_entropy(classes: int) -> None:
    z, t, _ = drawn(classes)
    logits, wanted = tensors(z, softmax(t, axis=1))
    result, expected = focal(logits, wanted, gamma=0.0), F.cross_entropy(logits, wanted)
    assert float(result) == pytest.approx(float(expected), rel=1e-12)


Teaching = Callable[[Tensor, Tensor, Tensor], Tensor]

TEACHING: dict[str, Teaching] = {
    "soft": lambda s, t, _: soft_targets(s, t, temperature=3.0),
    "lskd": lambda s, t, _: soft_targets(standardize(s), standardize(t), temperature=3.0),
    "dkd": lambda s, t, y: decoupled(s, t, y, temperature=3.0),
    "dist": lambda s, t, _: correlation(s, t, temperature=3.0),
}

EXTREME: dict[str, Teaching] = {
    **TEACHING,
    "soft, T=1": lambda s, t, _: soft_targets(s, t, temperature=1.0),
    "dkd, T=1": lambda s, t, y: decoupled(s, t, y, temperature=1.0),
    "dist, T=1": lambda s, t, _: correlation(s, t, temperature=1.0),
    "mcc": lambda s, _t, _y: class_confusion(s, temperature=1.0),
    "mcc, probabilities of 0": lambda s, _t, _y: class_confusion(s, temperature=0.5),
    "focal": lambda s, _t, y: focal(s, sure(y, s.shape[1]).to(s), gamma=2.0),
    "focal, gamma < 1": lambda s, _t, y: focal(s, sure(y, s.shape[1]).to(s), gamma=0.5),
}


@both_sizes
@pytest.mark.parametrize("name", TEACHING)
def test_a_student_that_is_its_teacher_has_no_loss(name: str, classes: int) -> None:
    _, t, y = tensors(*drawn(classes))
    assert float(TEACHING[name](t, t, y)) == pytest.approx(0, abs=1e-12)


@both_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("batch", ["extreme", "one class", "zero", "constant"])
@pytest.mark.parametrize("name", EXTREME)
def test_gradients_are_finite(name: str, batch: str, dtype: torch.dtype, classes: int) -> None:
    s, t, y = tensors(*drawn(classes))
    one_class = torch.full_like(s, -50.0)
    one_class[:, 0] = 50.0
    student = {
        "extreme": s.sign() * 50,
        "one class": one_class,
        "zero": torch.zeros_like(s),
        "constant": torch.full_like(s, 50.1),
    }[batch]
    teachers = [t, t.sign() * 50, torch.zeros_like(t), student]
    for teacher in teachers:
        logits = student.to(dtype, copy=True).requires_grad_()
        loss = EXTREME[name](logits, teacher.to(dtype), y)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.shape == ()
        assert loss.dtype == dtype
        assert bool(loss.isfinite())
        assert bool(gradient.isfinite().all())


def naive_relational(s: np.ndarray, t: np.ndarray) -> float:
    def huber(a: float, b: float) -> float:
        d = abs(a - b)
        return 0.5 * d * d if d < 1 else d - 0.5

    n = len(s)

    def distance(x: np.ndarray) -> np.ndarray:
        result = np.array([[np.linalg.norm(x[i] - x[j]) for j in range(n)] for i in range(n)])
        return result / (result.sum() / (n * (n - 1)))

    def angle(x: np.ndarray, i: int, j: int, k: int) -> float:
        a, b = x[j] - x[i], x[k] - x[i]
        if i in (j, k):
            return 0.0
        return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))

    ds, dt = distance(s), distance(t)
    apart = np.mean([huber(ds[i, j], dt[i, j]) for i in range(n) for j in range(n)])
    triples = [(i, j, k) for i in range(n) for j in range(n) for k in range(n)]
    angles = np.mean([huber(angle(s, *x), angle(t, *x)) for x in triples])
    return float(25 * apart + 50 * angles)


def test_relational_is_the_formula() -> None:
    draws = np.random.default_rng(0)
    s, t = draws.normal(size=(6, 4)), draws.normal(size=(6, 7))
    result = losses.relational(torch.tensor(s), torch.tensor(t))
    assert float(result) == pytest.approx(naive_relational(s, t), rel=1e-5)


def test_a_single_image_has_no_relations() -> None:
    features = torch.randn(1, 4, requires_grad=True)
    result = losses.relational(features, torch.randn(1, 7))
    (gradient,) = torch.autograd.grad(result, features)
    assert float(result.detach()) == 0
    assert bool(gradient.isfinite().all())


def test_relations_do_not_depend_on_scale_or_rotation() -> None:
    x = torch.randn(6, 4, dtype=torch.float64)
    rotation, _ = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))
    assert float(losses.relational(x, 3 * x @ rotation)) == pytest.approx(0, abs=1e-6)


def test_relations_of_equal_images_have_finite_gradients() -> None:
    x = torch.zeros(5, 3, requires_grad=True)
    losses.relational(x, torch.randn(5, 4)).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
