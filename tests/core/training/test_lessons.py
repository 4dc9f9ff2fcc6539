import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from stages.core.dataset.data import Dataset, Rows
from stages.core.dataset.views import Mix, Views
from stages.core.nets import net as nets
from stages.core.nets import weights
from stages.core.runner.errors import ParamsError, TrainingDiverged
from stages.core.training import losses
from stages.core.training.inputs import Inputs
from stages.core.training.student import Lesson, distillation_loss, label_loss
from stages.core.training.supplement import Supplement
from stages.core.training.targets import Targets, load_targets, save_targets
from stages.refine import with_supplement
from stages.teacher import fit_probe
from tests.conftest import dataset, outputs
from tests.helpers.lessons import VIEWS, lesson, targets_of, teacher_logits

pytestmark = pytest.mark.usefixtures("one_thread")

LITE = "tf_efficientnet_lite0"


def student(data: Dataset, *, frozen: int = 0) -> nets.Net:
    network = nets.build(LITE, weights.packaged(LITE), out_indices=[0, 1], data=data)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.head.linear.weight, std=0.1)
    torch.nn.init.normal_(network.head.mean)
    torch.nn.init.uniform_(network.head.std, 0.5, 2)
    network.freeze_lowest(frozen)
    return network.eval()


def loss_of(
    folder: Path, data: Dataset, how: Lesson, *, seed: int = 0, frozen: int = 0, **options: Any
) -> tuple[Callable[[Rows, int], float], nets.Net, Targets]:
    net = student(data, frozen=frozen)
    targets = targets_of(folder / f"targets {seed}", data, seed=seed)
    train = data.rows("train")
    prefix = Inputs(net, targets.views, train, VIEWS, folder, plain=train[:0], most_gb=1)
    loss = distillation_loss(data, targets, prefix, how, **options)
    return lambda rows, epoch: float(loss(net, rows, epoch).detach()), net, targets


def naive_kd(logits: Any, teacher: Any, labels: Any, *, temperature: float, alpha: float) -> float:
    """Hinton et al. 2015 in float64, image by image."""
    soft, hard = [], []
    for z, t, y in zip(logits, teacher, labels, strict=True):
        log_p = log_softmax(np.asarray(z, np.float64) / temperature)
        log_q = log_softmax(np.asarray(t, np.float64) / temperature)
        soft.append(temperature**2 * (np.exp(log_q) * (log_q - log_p)).sum())
        if y >= 0:
            hard.append(-log_softmax(np.asarray(z, np.float64))[y])
    return float((1 - alpha) * np.mean(hard) + alpha * np.mean(soft))


def test_targets_are_found_by_the_datasets_rows(tmp_path: Path) -> None:
    data = dataset(n=20, classes=3)
    train = data.rows("train")
    assert not np.array_equal(train, np.arange(train[0], train[0] + len(train)))
    logits = teacher_logits(data)
    features = np.random.default_rng(1).normal(size=(VIEWS, len(train), 5)).astype(np.float16)
    plain = np.random.default_rng(2).normal(size=(20, 3)).astype(np.float32)
    views = Views(data.pixels, 4, 0.3, "all")
    save_targets(tmp_path / "targets", views, VIEWS, outputs(logits, features), plain)
    result = load_targets(tmp_path / "targets", data)

    assert result.view_count == VIEWS
    assert result.has_features
    assert (result.views.seed, result.views.jitter) == (4, 0.3)
    assert result.views.pixels is data.pixels
    assert result.plain.dtype == np.float32
    assert np.array_equal(result.plain, plain)
    rows = train[[7, 2, 2, 11]]
    assert not np.array_equal(rows, [7, 2, 2, 11])
    for view in range(VIEWS):
        assert np.array_equal(
            result.logits(rows, view), logits[view][[7, 2, 2, 11]].astype(np.float16)
        )
        assert np.array_equal(result.features(rows, view), features[view][[7, 2, 2, 11]])
    assert result.logits(rows, 0).dtype == result.features(rows, 0).dtype == torch.float32


def test_targets_without_features(tmp_path: Path) -> None:
    data = dataset(n=20)
    plain = np.zeros((20, 2), np.float32)
    save_targets(
        tmp_path / "targets",
        Views(data.pixels, 0, 0, "all"),
        VIEWS,
        outputs(teacher_logits(data)),
        plain,
    )
    assert not load_targets(tmp_path / "targets", data).has_features


@pytest.mark.parametrize("wrong", [70_000.0, -70_000.0, np.nan])
def test_logits_too_large_to_be_stored_are_named(tmp_path: Path, wrong: float) -> None:
    data = dataset(n=20)
    logits, plain = teacher_logits(data), np.zeros((20, 2), np.float32)
    logits[1, 2, 0] = wrong
    views = Views(data.pixels, 0, 0, "all")
    with pytest.raises(TrainingDiverged, match=r"^the teacher's logits: .*at most 65504"):
        save_targets(tmp_path / "targets", views, VIEWS, outputs(logits), plain)


@pytest.mark.parametrize("frozen", [0, 2])
@pytest.mark.parametrize("epoch", [0, 2, 4])
def test_kd_shows_both_the_same_view(tmp_path: Path, epoch: int, frozen: int) -> None:
    data = dataset(n=20, classes=3)
    rows, how = data.rows("train")[[9, 4, 1, 6, 0]], lesson()
    value, net, _ = loss_of(tmp_path, data, how, frozen=frozen)

    def naive(students: int, teachers: int) -> float:
        images = Views(data.pixels, 4, 0.3, "all").batch(rows, students)
        with torch.inference_mode():
            logits = net(images).double().numpy()
        # As it is stored.
        teacher = teacher_logits(data)[teachers][[9, 4, 1, 6, 0]].astype(np.float16)
        return naive_kd(logits, teacher, data.labels[rows], temperature=3.0, alpha=0.3)

    view = epoch % VIEWS
    others = [naive(s, t) for s in range(VIEWS) for t in range(VIEWS) if (s, t) != (view, view)]
    # Frozen layers' output, where there are any, is stored as float16.
    tolerance = 1e-3 if frozen else 1e-5
    assert min(abs(other / naive(view, view) - 1) for other in others) > 5 * tolerance
    assert value(rows, epoch) == pytest.approx(naive(view, view), rel=tolerance)


@pytest.mark.parametrize("method", ["kd", "dkd"])
def test_of_an_unlabelled_image_only_the_teacher_speaks(method: str) -> None:
    draws = np.random.default_rng(0)
    logits, teacher = (torch.from_numpy(draws.normal(0, 2, (6, 3))) for _ in range(2))
    labels = torch.tensor([0, -1, 2, -1, -1, 1])
    how = lesson(method=method)
    hard = F.cross_entropy(logits[labels >= 0], labels[labels >= 0], reduction="sum")
    assert label_loss(logits, labels) == pytest.approx(float(hard))
    shares = torch.tensor([0.5, 0.3, 0.5, 0.3, 0.3, 0.5], dtype=torch.float64)
    assert label_loss(logits, labels, shares) == pytest.approx(float(hard / 2))
    named = torch.where(labels < 0, teacher.argmax(1), labels)
    assert (named != labels).any()
    soft = {
        "kd": losses.soft_targets(logits, teacher, temperature=3.0),
        "dkd": losses.decoupled(logits, teacher, named, temperature=3.0),
    }
    result = how.mixed(hard / 3, how.soft_loss(logits, teacher, labels))
    assert result == pytest.approx(float(0.7 * hard / 3 + 0.3 * soft[method]))
    if method == "kd":
        naive = naive_kd(logits, teacher, labels.numpy(), temperature=3.0, alpha=0.3)
        assert result == pytest.approx(naive)


@pytest.mark.parametrize("control", [False, True])
@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_the_labels_of_mixed_images_are_mixed_alike(
    tmp_path: Path, mix: Mix, control: bool
) -> None:
    data = dataset(n=20, classes=3)
    rows = data.rows("train")
    targets, net = targets_of(tmp_path / "targets", data), student(data)
    views = Views(data.pixels, 4, 0.3, "all", mix, rows)
    targets = replace(targets, views=views)
    inputs = Inputs(net, views, rows, VIEWS, tmp_path, plain=rows[:0], most_gb=1)
    loss = distillation_loss(data, targets, inputs, lesson(), control=control)
    mixture = views.mixture(rows, 1)
    assert mixture is not None
    with torch.inference_mode():
        logits = net(views.batch(rows, 1)).double().numpy()
        result = float(loss(net, rows, 1))
    log_p = log_softmax(logits, axis=1)
    shares, each = mixture.shares.numpy(), np.arange(len(rows))
    own, other = (log_p[each, data.labels[named]] for named in (rows, mixture.partners))
    hard = -(shares * own + (1 - shares) * other).mean()
    soft = float(
        losses.soft_targets(
            torch.from_numpy(logits), targets.logits(rows, 1).double(), temperature=3.0
        )
    )
    expected = hard if control else 0.7 * hard + 0.3 * soft
    assert result == pytest.approx(expected, rel=1e-5)


def with_three_labels() -> tuple[Dataset, Dataset]:
    """A dataset, and the same with labels for three of its training images."""
    data = dataset(n=20, classes=3)
    rows = data.rows("train")
    labels, splits = data.labels.copy(), data.splits.copy()
    labels[rows[3:]], splits[rows[3:]] = -1, "unlabelled"
    return data, replace(data, labels=labels, splits=splits)


def test_mixed_labels_weigh_as_much_where_few_have_one(tmp_path: Path) -> None:
    """An unlabelled image learns nothing from the label of the one that it is mixed with."""
    data, few = with_three_labels()
    rows = data.rows("train")
    targets_of(tmp_path / "targets", data)
    how = json.dumps({"seed": 4, "jitter": 0.3, "mix": "cutmix"})
    (tmp_path / "targets" / "views.json").write_text(how)
    targets, net = load_targets(tmp_path / "targets", few), student(data)
    inputs = Inputs(net, targets.views, rows, VIEWS, tmp_path, plain=rows[:0], most_gb=1)
    mixture = targets.views.mixture(rows, 1)
    assert mixture is not None
    assert set(mixture.partners) <= set(rows[:3])
    with torch.inference_mode():
        log_p = log_softmax(net(targets.views.batch(rows, 1)).double().numpy(), axis=1)
        control = distillation_loss(few, targets, inputs, lesson(), control=True)
        result = float(control(net, rows, 1)) * len(rows)
    shares, each = mixture.shares.numpy(), np.arange(3)
    own, other = (log_p[each, few.labels[named]] for named in (rows[:3], mixture.partners[:3]))
    assert result == pytest.approx(-(shares[:3] * own + (1 - shares[:3]) * other).sum(), rel=1e-5)


def test_few_labels_weigh_as_much_as_many(tmp_path: Path) -> None:
    data, few = with_three_labels()
    rows = data.rows("train")
    value, net, targets = loss_of(tmp_path, data, lesson())
    inputs = Inputs(net, targets.views, rows, VIEWS, tmp_path, plain=rows[:0], most_gb=1)
    loss = distillation_loss(few, targets, inputs, lesson())
    with torch.inference_mode():
        logits = net(targets.views.batch(rows, 1)).double().numpy()
        result = float(loss(net, rows, 1))
        halves = [float(loss(net, half, 1)) * len(half) for half in (rows[:4], rows[4:])]
    teacher = targets.logits(rows, 1)
    assert result == pytest.approx(
        naive_kd(logits, teacher, few.labels[rows], temperature=3.0, alpha=0.3), rel=1e-5
    )
    assert sum(halves) / len(rows) == pytest.approx(result, rel=1e-5)
    assert value(rows, 1) != pytest.approx(result, rel=1e-2)


@pytest.mark.parametrize("method", ["kd", "feature"])
def test_the_control_learns_from_labels_alone(tmp_path: Path, method: str) -> None:
    data = dataset(n=20, classes=3)
    rows = data.rows("train")[[9, 4, 1]]
    result = []
    for seed, alpha in [(0, 0.3), (1, 0.9)]:
        how = lesson(method=method, alpha=alpha)
        value, net, targets = loss_of(tmp_path, data, how, seed=seed, control=True)
        result.append(value(rows, 4))
    logits = net(targets.views.batch(rows, 4 % VIEWS)).detach().double().numpy()
    naive = -log_softmax(logits, 1)[np.arange(3), data.labels[rows]].mean()
    assert result[0] == result[1] == pytest.approx(naive, rel=1e-5)


METHODS = [*((m, s) for m in ("kd", "dkd", "dist") for s in (False, True)), ("feature", False)]


@pytest.mark.parametrize(("method", "standardized"), METHODS)
def test_every_method_is_its_own_loss(tmp_path: Path, method: str, standardized: bool) -> None:
    data = dataset(n=20, classes=4)
    rows = data.rows("train")[[9, 4, 1, 6, 0]]
    how = lesson(method=method, standardize_logits=standardized)
    value, net, targets = loss_of(tmp_path, data, how)
    labels = torch.from_numpy(data.labels[rows])
    soft = {}
    with torch.inference_mode():
        features = net.features(targets.views.batch(rows, 1))
        logits, teacher = net.head(features), targets.logits(rows, 1)
        for flat in (False, True):
            z, t = (losses.standardize(x) if flat else x for x in (logits, teacher))
            soft["kd", flat] = losses.soft_targets(z, t, temperature=3.0)
            soft["dkd", flat] = losses.decoupled(z, t, labels, temperature=3.0)
            soft["dist", flat] = losses.correlation(z, t, temperature=3.0)
        standard = (features - net.head.mean) / net.head.std
        soft["feature", False] = losses.relational(standard, targets.features(rows, 1))
        hard = F.cross_entropy(logits, labels)
    expected = {which: float(0.7 * hard + 0.3 * part) for which, part in soft.items()}
    assert np.diff(sorted(expected.values())).min() > 1e-2
    assert value(rows, 1) == pytest.approx(expected[method, standardized], rel=1e-4)


def test_relations_alone_teach_the_head_nothing() -> None:
    with pytest.raises(ParamsError, match=r"'feature' with alpha = 1: .*lower alpha"):
        lesson(method="feature", alpha=1.0).check_method(3)
    lesson(method="feature", alpha=0.99).check_method(3)
    lesson(method="kd", alpha=1.0).check_method(2)


@pytest.mark.parametrize("method", ["dist", "feature"])
def test_relations_need_whole_batches(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lesson(method=method).check_method(4)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = rf"^method '{method}' needs whole batches: .*\(now 2\)"
    with pytest.raises(ParamsError, match=words):
        lesson(method=method).check_method(4)
    for other in ("kd", "dkd"):
        lesson(method=other).check_method(4)


class Mixed:
    """What `with_supplement` makes of a batch: the real rows, what was drawn, the value."""

    def __init__(self, *, share: float, seed: int = 3) -> None:
        self.data = dataset(n=20, classes=3)
        self.net, self.real_rows = student(self.data), np.array([])
        self.drawn: list[Any] = []
        draws = np.random.default_rng(8)
        pixels = draws.integers(0, 256, (50, 32, 32, 1), dtype=np.uint8)
        self.pixels = torch.from_numpy(pixels)
        self.logits = draws.normal(0, 3, (1, 50, 3)).astype(np.float32)
        self.labels = draws.integers(3, size=50)
        added = Supplement(Views(pixels, 0, 0, "none"), self.labels, self.logits)
        self.net.register_forward_pre_hook(self._see)
        self.loss = with_supplement(self._real, added, lesson(), share, seed)

    def _see(self, _: Any, seen_images: tuple[Tensor]) -> None:
        same = (seen_images[0][:, None] == self.pixels).flatten(2).all(2)
        assert (same.sum(1) == 1).all()
        self.drawn = same.int().argmax(1).tolist()

    def _real(self, net: nets.Net, rows: Rows, epoch: int) -> Tensor:
        assert net is self.net
        self.real_rows, self.epoch = rows, epoch
        return torch.tensor(10.0 + float(rows.mean()))

    def value(self, rows: Rows, epoch: int) -> float:
        self.real_rows, self.drawn = np.array([]), []
        with torch.inference_mode():
            return float(self.loss(self.net, rows, epoch))

    def naive(self, count: int) -> float:
        pixels, labels = self.pixels[self.drawn], torch.from_numpy(self.labels[self.drawn])
        teacher = torch.from_numpy(self.logits[0, self.drawn])
        with torch.inference_mode():
            logits = self.net.head(self.net.features(pixels)).double().numpy()
        network = naive_kd(logits, teacher, labels, temperature=3.0, alpha=0.3)
        real = 10.0 + float(self.real_rows.mean())
        return (real * count + network * len(self.drawn)) / (count + len(self.drawn))


@pytest.mark.parametrize(
    ("share", "batch", "added"),
    [(0.25, 8, 2), (0.25, 7, 2), (0.25, 1, 1), (0.9, 10, 9), (0.5, 8, 4), (2.0, 4, 8)],
)
def test_images_are_added_to_the_batch(share: float, batch: int, added: int) -> None:
    """All real images stay."""
    mixed = Mixed(share=share)
    rows = mixed.data.rows("train")[::-1][:batch]
    result = mixed.value(rows, 2)
    assert len(mixed.drawn) == added
    assert np.array_equal(mixed.real_rows, rows)
    assert mixed.epoch == 2
    assert result == pytest.approx(mixed.naive(batch), rel=1e-4)


def test_added_images_are_drawn_anew_and_the_same_again() -> None:
    rows = dataset(n=20).rows("train")

    def drawn(rows: Rows, epoch: int, seed: int = 3) -> list[int]:
        mixed = Mixed(share=0.5, seed=seed)
        mixed.value(rows, epoch)
        return mixed.drawn

    first = drawn(rows, 0)
    assert first == drawn(rows, 0)
    assert first not in (drawn(rows, 1), drawn(rows[::-1], 0), drawn(rows, 0, seed=4))


@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns_regression(classes: int) -> None:
    labels = np.arange(60) % 5 % classes
    net = student(dataset(n=60, classes=classes))
    draws = np.random.default_rng(3)
    width = net.head.linear.in_features
    features = (5 + 3 * draws.normal(size=(60, width))).astype(np.float32)
    features[:, :classes] += 4 * np.eye(classes, dtype=np.float32)[labels]
    net.head.fit_statistics(torch.from_numpy(features))
    fit_probe(net, features, labels, None, 0.05)

    standard = (features - features.mean(0)) / features.std(0, ddof=1)
    expected = LogisticRegression(C=0.05, max_iter=3000).fit(standard, labels)
    logits = net.head(torch.from_numpy(features)).detach().double().numpy()
    assert logits.shape == (60, classes)
    decision = expected.decision_function(standard)
    result = logits[:, 1] - logits[:, 0] if classes == 2 else logits
    assert np.abs(decision).max() > 0.5
    assert np.allclose(result, decision, atol=2e-3)
    probabilities = np.exp(log_softmax(logits, 1))
    assert np.allclose(probabilities, expected.predict_proba(standard), atol=1e-3)
