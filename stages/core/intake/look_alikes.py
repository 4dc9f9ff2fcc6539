"""Classes that take each other's place when their images are mirrored or turned: 6 and 9, b and d.

Training would show both under either label, and no network could tell them apart.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from stages.core.dataset.data import Rows
from stages.core.dataset.symmetries import NAMES, NUMBERS, Symmetries, inverse, turned
from stages.core.runner.text import listed, say

# Side in pixels at which images are compared: shapes are seen, noise is not.
SIDE = 16
# Images per class and in all, at most: seconds and 100 MB, however many there are. A class with
# fewer than LEAST is left out, since its shares would say little.
PER_CLASS, IN_ALL, LEAST = 100, 4096, 10
# Of turned images of one class, this share must look more like the other class, and the other way
# round: where a turn only spoils what tells two classes apart, it is a half. The same share of the
# images as they are must look more like their own class, or a turn has nothing to exchange.
EXCHANGED = 0.75
# Of all classes, the other must be the first choice for turned images at least so often as for its
# own, times this: with many classes, something else entirely may be nearer to one than to another.
CHOSEN = 0.5
# What the model learns its tolerance from: images moved by a pixel, in four directions.
SHIFTS = ((0, 0), (0, 1), (0, -1), (1, 0), (-1, 0))

Shares = NDArray[np.float64]


class LookAlike(NamedTuple):
    """Two classes that a symmetry exchanges.

    Attributes:
        one, other: classes, as numbers.
        symmetry: its number; it makes `one` look like `other`.
        share: of the turned images of either class, those that look more like the other; the lower.
    """

    one: int
    other: int
    symmetry: int
    share: float


def look_alikes(
    pixels: NDArray[np.uint8], labels: NDArray[np.int64], rows: Rows, symmetries: Symmetries
) -> list[LookAlike]:
    """The pairs of classes that one of the symmetries exchanges, the clearest first.

    A linear discriminant analysis with shrinkage (Ledoit and Wolf 2004) learns the classes from one
    half of a sample of small images, as they are, and judges the other half, turned; then the other
    way round. It finds shapes that lie much alike in all images of a class, as those of characters,
    signs and X-rays do, and misses what stands anywhere in a picture.

    Args:
        pixels: (N, P, P, C), P a multiple of `SIDE`.
        labels: (N,).
        rows: the training images.
    """
    numbers = NUMBERS[symmetries]
    chosen, classes = _sample(labels, rows)
    if len(numbers) == 1 or len(classes) < 2:
        return []
    images = np.stack([_small(pixels[row]) for row in chosen])
    y = np.searchsorted(classes, labels[chosen])
    scores = _scores(images, y, numbers)
    nearer, first = ({s: share(x, y) for s, x in scores.items()} for share in (_nearer, _first))
    confused = np.maximum(nearer[0], nearer[0].T)
    own = np.diag(first[0])
    pairs = []
    for s in numbers[1:]:
        there, back = nearer[s], nearer[inverse(s)].T
        exchanged = np.minimum(there, back)
        hits = (exchanged >= EXCHANGED) & (confused <= 1 - EXCHANGED)
        hits &= (first[s] >= CHOSEN * own) & (CHOSEN * own[:, None] <= first[inverse(s)].T)
        for a, b in np.argwhere(np.triu(hits, 1)).tolist():
            pairs.append(LookAlike(int(classes[a]), int(classes[b]), s, float(exchanged[a, b])))
    return sorted(pairs, key=lambda pair: -pair.share)


def _sample(labels: NDArray[np.int64], rows: Rows) -> tuple[Rows, NDArray[np.int64]]:
    """Images spread evenly over each class's, and the classes that have enough of them."""
    classes, counts = np.unique(labels[rows], return_counts=True)
    classes = classes[counts >= LEAST]
    most = max(LEAST, min(PER_CLASS, IN_ALL // max(1, len(classes))))
    sample = []
    for k in classes:
        members = rows[labels[rows] == k]
        places = np.linspace(0, len(members) - 1, min(most, len(members)))
        sample.append(members[places.astype(int)])
    return np.concatenate([*sample, rows[:0]]), classes


def _small(image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """An image (P, P, C), averaged to (SIDE, SIDE, C)."""
    side, _, channels = image.shape
    squares = image.reshape(SIDE, side // SIDE, SIDE, side // SIDE, channels)
    small: NDArray[np.float32] = squares.mean((1, 3), dtype=np.float32)
    return small


def _scores(
    images: NDArray[np.float32], y: NDArray[np.int64], numbers: Iterable[int]
) -> dict[int, NDArray[np.float64]]:
    """By symmetry: (n, K) scores of the turned images, by a model that has seen other images."""
    n, count = len(y), int(y.max()) + 1
    scores = {s: np.empty((n, count)) for s in numbers}
    # The images of a class stand together, so that each half has half of them.
    halves = np.arange(n) % 2
    for half in (0, 1):
        seen, judged = halves != half, halves == half
        moved = [np.roll(images[seen], shift, (1, 2)) for shift in SHIFTS]
        model = LinearDiscriminantAnalysis(
            solver="lsqr", shrinkage="auto", priors=np.full(count, 1 / count)
        )
        model.fit(_flat(np.concatenate(moved)), np.tile(y[seen], len(SHIFTS)))
        for s, all_scores in scores.items():
            x = model.decision_function(_flat(turned(images[judged], s)))
            # Of two classes, scikit-learn gives the difference.
            all_scores[judged] = x if x.ndim == 2 else np.stack([-x, x], 1) / 2
    return scores


def _flat(images: NDArray[np.generic]) -> NDArray[np.generic]:
    return images.reshape(len(images), -1)


def _nearer(scores: NDArray[np.float64], y: NDArray[np.int64]) -> Shares:
    """(K, K): of class a's images, the share that looks more like b than like a."""
    own = scores[np.arange(len(y)), y][:, None]
    return np.stack([(scores > own)[y == a].mean(0) for a in range(scores.shape[1])])


def _first(scores: NDArray[np.float64], y: NDArray[np.int64]) -> Shares:
    """(K, K): of class a's images, the share that looks like b more than like any other class."""
    is_first = scores.argmax(1)[:, None] == np.arange(scores.shape[1])
    return np.stack([is_first[y == a].mean(0) for a in range(scores.shape[1])])


def warn(
    pixels: NDArray[np.uint8], table: pd.DataFrame, classes: list[str], symmetries: Symmetries
) -> dict[str, str]:
    """Warn of classes that a symmetry exchanges; gives it by their names, the clearest 20."""
    number = {name: k for k, name in enumerate(classes)} | {"": -1}
    labels = table["label"].map(number).to_numpy(np.int64)
    train = np.flatnonzero(table["split"] == "train")
    exchanged = look_alikes(pixels, labels, train, symmetries)
    if not exchanged:
        return {}
    pairs: dict[str, str] = {}
    for x in exchanged:
        pairs.setdefault(f"{classes[x.one]} and {classes[x.other]}", NAMES[x.symmetry])
    words = [f"{pair} ({name})" for pair, name in pairs.items()]
    exchanging = {x.symmetry for x in exchanged}
    safe = [name for name, numbers in NUMBERS.items() if not exchanging & set(numbers)]
    say(
        f"warning: with symmetries = {symmetries}, training shows these classes as each other: "
        f"{listed(words, 5)}; set validate.symmetries to {' or '.join(safe)}, unless something "
        "else tells them apart"
    )
    return dict(list(pairs.items())[:20])
