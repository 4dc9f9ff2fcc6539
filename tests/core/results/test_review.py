from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stages.core.results import review
from stages.core.results.review import MOST_MISTAKES

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
