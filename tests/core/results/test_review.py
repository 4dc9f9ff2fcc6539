from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from PIL import Image

from stages.core.release import predict
from stages.core.results import pictures, review
from stages.core.results.operating_point import decisions
from stages.core.results.review import ASKED, MOST_MISTAKES, Cut
from stages.core.results.schema.shipped import Thresholds

LABELS = np.array([0, 0, 0, 1, 1, 2])
PROBABILITIES = np.array([
    [0.8, 0.1, 0.1], [0.3, 0.6, 0.1], [0.05, 0.05, 0.9], [0.1, 0.7, 0.2], [0.2, 0.5, 0.3],
    [0.2, 0.45, 0.35],
])  # fmt: skip
CLASSES = ["a", "b", "c"]


def test_confusion_has_a_row_per_true_class() -> None:
    assert review.confusion(PROBABILITIES, LABELS, CLASSES) == {
        "a": {"a": 1, "b": 1, "c": 1}, "b": {"a": 0, "b": 2, "c": 0}, "c": {"a": 0, "b": 1, "c": 0},
    }  # fmt: skip


def test_confusion_counts_what_an_operating_point_leaves_to_a_person() -> None:
    cut = Cut(1, 0.3, 0.6)
    # Image 0 is below; 1 and 3 are answered with b, of which the first is on the threshold.
    assert review.decide(PROBABILITIES, cut).tolist() == [0, 1, 2, 1, ASKED, ASKED]
    assert review.confusion(PROBABILITIES, LABELS, CLASSES, cut) == {
        "a": {"a": 1, "b": 1, "c": 1, "": 0}, "b": {"a": 0, "b": 1, "c": 0, "": 1},
        "c": {"a": 0, "b": 0, "c": 0, "": 1},
    }  # fmt: skip


@pytest.mark.parametrize("cut", [Cut(1, 0.3, 0.6), Cut(0, 0.0, 0.5), Cut(2, 0.2, 2.0)])
def test_decisions_are_those_of_the_release(cut: Cut) -> None:
    probabilities = np.random.default_rng(0).dirichlet(np.ones(3), 200).astype(np.float32)
    model = SimpleNamespace(classes=CLASSES, thresholds=cut)
    released = [predict.decision(cast(Any, model), row) for row in probabilities]
    decided = review.decide(probabilities, cut)
    assert [None if k == ASKED else CLASSES[k] for k in decided] == released


def at_of(line: Line2D) -> NDArray[np.float64]:
    return np.array([line.get_xdata(), line.get_ydata()], dtype=np.float64)[:, 0]


@pytest.mark.parametrize(
    ("cut", "names"),
    [
        (Cut(1, 0.2, 0.6), ["low threshold, 0.200", "high threshold, 0.600"]),
        (Cut(0, 0.2, 0.6), ["low threshold, 0.200", "high threshold, 0.600"]),
        (Cut(1, 0.0, 2.0), ["low threshold, 0.000"]),
    ],
)
@pytest.mark.parametrize("count", [2, 3, 12])
def test_an_operating_point_is_marked_on_the_curves_of_its_class(
    cut: Cut, names: list[str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    labels = np.append(np.arange(600) % count, [0, 0, count - 1])
    probabilities = np.random.default_rng(0).dirichlet(np.full(count, 0.3), len(labels))
    classes = [f"c{k}" for k in range(count)]
    review.draw_ranking(tmp_path / "r.png", probabilities, labels, classes, cut)
    roc, precision_recall = drawn[0].axes
    legend = roc.get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.texts]
    assert texts[: 1 + len(names)] == [classes[cut.number], *names]
    assert len(texts) - len(names) == (1 if count == 2 else min(count, review.MOST_LINES))
    at = Thresholds(low=cut.low, high=cut.high)
    shares = decisions(probabilities, labels, cut.number, at)
    marks = {str(line.get_label()): at_of(line) for line in roc.lines}
    assert marks[names[0]][1] == pytest.approx(shares.recall)
    if cut.high <= 1:
        assert marks[names[1]][0] == pytest.approx(shares.false_alarms)
        chosen = probabilities[:, cut.number] >= cut.high
        low, high = [at_of(m) for m in precision_recall.lines if m.get_marker() in ("v", "^")]
        assert low[0] == pytest.approx(shares.recall)
        assert high[1] == pytest.approx((labels[chosen] == cut.number).mean())


def test_each_part_has_figures_of_its_own() -> None:
    groups = np.array(["=g", "h", "h", "=g", "h", "h"], object)
    domains = np.array(["mono"] * 3 + ["poly"] * 3, object)
    table = review.by_part(PROBABILITIES, LABELS, {"group": groups, "domain": domains})
    assert table[["kind", "name", "images"]].to_numpy().tolist() == [
        ["domain", "mono", 3], ["domain", "poly", 3], ["group", "h", 4], ["group", "'=g", 2],
    ]  # fmt: skip
    assert table["accuracy"].tolist() == pytest.approx([1 / 3, 2 / 3, 1 / 4, 1])
    # All images of "mono" are of one class.
    assert table["auroc"].isna().tolist() == [True, False, False, False]
    assert table["auroc"][3] == 1


def test_the_most_confident_mistakes_come_first() -> None:
    assert review.mistakes(PROBABILITIES, LABELS).tolist() == [2, 1, 5]
    many = np.tile(PROBABILITIES, (9, 1))
    assert len(review.mistakes(many, np.tile(LABELS, 9))) == MOST_MISTAKES
    assert len(review.mistakes(np.eye(3), np.arange(3))) == 0


@pytest.mark.parametrize("classes", [2, 3, 12])
@pytest.mark.parametrize("right", [False, True])
def test_pictures_are_drawn_whatever_the_answers_are(
    tmp_path: Path, classes: int, right: bool
) -> None:
    draws = np.random.default_rng(0)
    labels = np.arange(40) % classes
    probabilities = draws.dirichlet(np.ones(classes), 40)
    if right:
        probabilities = np.eye(classes)[labels]
    names = [f"class $ {k} " + "long" * 20 for k in range(classes)]
    files = np.array([f"a/{n}\n.png" for n in range(40)], object)
    images = draws.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    evidence = draws.normal(size=(40, classes, 20, 20)).astype(np.float32)
    review.draw_ranking(tmp_path / "ranking.png", probabilities, labels, names)
    review.draw_reliability(tmp_path / "reliability.png", probabilities, labels)
    worst = review.mistakes(probabilities, labels)
    review.draw_mistakes(
        tmp_path / "mistakes.png", images[worst], evidence[worst], probabilities[worst],
        labels[worst], names, files[worst],
    )  # fmt: skip
    for file in tmp_path.iterdir():
        with Image.open(file) as picture:
            assert picture.size > (100, 100)
