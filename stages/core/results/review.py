"""What a model's answers on the test split look like: where it errs, and in whose images."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import confusion_matrix, precision_recall_curve, roc_curve

from stages.core.results import pictures
from stages.core.results.escape import spreadsheet_cell
from stages.core.results.metrics import Labels, auroc
from stages.core.results.pictures import Images, Mark
from stages.core.runner.errors import DataError

Probabilities = NDArray[np.floating[Any]]

# Classes that a picture has a line for.
MOST_LINES = len(pictures.COLOURS)
# Images in the picture of mistakes.
MOST_MISTAKES = 12
# Among decisions, in place of a class: a person has to look. No class has such a number or name.
ASKED, ASKED_NAME = -1, ""


class Cut(NamedTuple):
    """An operating point: a class's number, and the thresholds on its probability.

    See `schema.shipped.Thresholds`.
    """

    number: int
    low: float
    high: float


def decide(probabilities: Probabilities, cut: Cut | None) -> Labels:
    """What images (N, K) are answered with: numbers of classes, and ASKED (N,).

    The most probable class where there is no operating point.
    """
    if cut is None:
        decided: Labels = probabilities.argmax(1)
        return decided
    score = probabilities[:, cut.number].astype(np.float64)  # float32 would round the thresholds
    others = probabilities.copy()
    others[:, cut.number] = -1
    decided = np.where(score < cut.low, others.argmax(1), ASKED)
    return np.where(score >= cut.high, cut.number, decided)


def confusion(
    probabilities: Probabilities, labels: Labels, classes: list[str], cut: Cut | None = None
) -> dict[str, Any]:
    """By true class and decision, the number of images; at an operating point, ASKED_NAME last."""
    numbers, names = [*range(len(classes))], classes
    if cut is not None:
        numbers, names = [*numbers, ASKED], [*classes, ASKED_NAME]
    counts = confusion_matrix(labels, decide(probabilities, cut), labels=numbers)
    return {
        truth: dict(zip(names, row, strict=True))
        for truth, row in zip(classes, counts[: len(classes)].tolist(), strict=True)
    }


def by_part(
    probabilities: Probabilities, labels: Labels, parts: Mapping[str, NDArray[np.object_]]
) -> pd.DataFrame:
    """How good a model is in each part of the images, the least accurate first.

    Args:
        probabilities: (N, K).
        labels: (N,).
        parts: by kind (`domain`, `group`), the name of each image's part (N,).

    Returns: one row per part: kind, name (as `spreadsheet_cell` has it), images, accuracy, and
        auroc, which is empty where all images are of one class.
    """
    correct = probabilities.argmax(1) == labels
    logits = np.log(probabilities + 1e-12)
    rows = []
    for kind, names in parts.items():
        for name, inside in pd.Series(range(len(names))).groupby(names).indices.items():
            try:
                area: float | None = auroc(logits[inside], labels[inside])
            except DataError:
                area = None
            accuracy = float(correct[inside].mean())
            rows.append((kind, spreadsheet_cell(str(name)), len(inside), accuracy, area))
    table = pd.DataFrame(rows, columns=["kind", "name", "images", "accuracy", "auroc"])
    return table.sort_values(["kind", "accuracy", "name"], ignore_index=True)


def mistakes(probabilities: Probabilities, labels: Labels) -> NDArray[np.int64]:
    """Images that are decided wrongly, the most confident first: up to MOST_MISTAKES numbers."""
    wrong = np.flatnonzero(probabilities.argmax(1) != labels)
    order = np.argsort(-probabilities[wrong].max(1), kind="stable")
    return wrong[order][:MOST_MISTAKES]


def draw_mistakes(
    path: Path,
    images: Images,
    evidence: NDArray[np.float32],
    probabilities: Probabilities,
    labels: Labels,
    classes: list[str],
    files: NDArray[np.object_],
) -> None:
    """The images of `mistakes`, with what they are, what they are taken for, and why.

    Args:
        images: (N, P, P, C).
        evidence: (N, K, S, S), which sums to the logits; what it has for the answer and against the
            truth is drawn, in cells of about a sixteenth of the image's side.
    """
    at = np.arange(len(labels))
    maps = evidence[at, probabilities.argmax(1)] - evidence[at, labels]
    cell = max(maps.shape[1] // 16, 1)
    whole = maps.shape[1] // cell * cell
    maps = maps[:, :whole, :whole].reshape(len(maps), whole // cell, cell, whole // cell, cell)
    captions = [
        f"{pictures.short(classes[label])}, taken for\n"
        f"{pictures.short(classes[answer.argmax()])} ({answer.max():.2f})\n"
        f"{pictures.short(file)}"
        for label, answer, file in zip(labels, probabilities, files, strict=True)
    ]
    pictures.captioned(path, images, maps.sum((2, 4)), captions)


def _mark(chosen: NDArray[np.bool_], positive: NDArray[np.bool_], **look: str) -> Mark:
    """Where it is on the curves of a class to answer `chosen` images with it."""
    return Mark(
        false_alarms=float((chosen & ~positive).sum() / (~positive).sum()),
        recall=float((chosen & positive).sum() / positive.sum()),
        precision=float((chosen & positive).sum() / max(chosen.sum(), 1)),
        **look,
    )


def _thresholds(score: NDArray[np.float64], positive: NDArray[np.bool_], cut: Cut) -> list[Mark]:
    """Where the thresholds of an operating point are on the curves of its class.

    A threshold that no image of the test split reaches has no precision, and so no place.
    """
    named = {"low": (cut.low, "v"), "high": (cut.high, "^")}
    return [
        _mark(score >= at, positive, marker=marker, name=f"{name} threshold, {at:.3f}")
        for name, (at, marker) in named.items()
        if (score >= at).any()
    ]


def draw_ranking(
    path: Path,
    probabilities: Probabilities,
    labels: Labels,
    classes: list[str],
    cut: Cut | None = None,
) -> None:
    """ROC and precision-recall curves: of the last class for two, else of each against the rest.

    Of more than MOST_LINES classes, those with the most images are drawn. A dot marks what deciding
    for the most probable class gives. At an operating point, its class is the first one and has
    marks at both thresholds; dots of other classes are what is decided below the low one.
    """
    numbers = [1] if len(classes) == 2 else list(np.argsort(-np.bincount(labels), kind="stable"))
    if cut is not None:
        others = [] if len(classes) == 2 else [k for k in numbers if k != cut.number]
        numbers = [cut.number, *others]
    decided = decide(probabilities, cut)
    curves = {}
    for k in numbers[:MOST_LINES]:
        positive = labels == k
        if not 0 < positive.sum() < len(labels):
            continue
        false_alarms, recall, _ = roc_curve(positive, probabilities[:, k])
        precision, recall_again, _ = precision_recall_curve(positive, probabilities[:, k])
        if cut is not None and k == cut.number:
            marks = _thresholds(probabilities[:, k].astype(np.float64), positive, cut)
        else:
            marks = [_mark(decided == k, positive)]
        curves[classes[k]] = ((false_alarms, recall), (recall_again, precision), marks)
    pictures.ranking_curves(path, curves)


def draw_reliability(
    path: Path, probabilities: Probabilities, labels: Labels, *, bins: int = 10
) -> None:
    """Accuracy against confidence, in `bins` equal parts of 0 to 1."""
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    filled = counts > 0
    stated, reached = (
        np.bincount(place, weights=x, minlength=bins)[filled] / counts[filled]
        for x in (confidence, correct)
    )
    pictures.reliability(path, stated, reached, counts[filled])
