"""Small images whose classes are shapes: handwritten digits, and arrows."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from stages.core.dataset.symmetries import turned

Shapes = tuple[NDArray[np.uint8], NDArray[np.int64]]


def digits(*wanted: int, count: int = 1000) -> Shapes:
    """scikit-learn's handwritten digits (UCI), enlarged to (N, 32, 32, 1); labels by `wanted`.

    Args:
        count: of each, at most.
    """
    data = load_digits()
    rows = [np.flatnonzero(data.target == digit)[:count] for digit in wanted]
    small = (data.images[np.concatenate(rows)] * 255 / 16).round().astype(np.uint8)
    large = [Image.fromarray(x).resize((32, 32), Image.Resampling.BICUBIC) for x in small]
    labels = np.repeat(np.arange(len(rows)), [len(each) for each in rows])
    return np.stack([np.asarray(image) for image in large])[..., None], labels


def arrows(
    *symmetries: int, count: int = 40, colours: Sequence[tuple[float, float, float]] = ()
) -> Shapes:
    """A class per symmetry of an arrow to the right, on noisy ground and never in one place.

    Args:
        symmetries: numbers, as in dataset/symmetries.py.
        count: images (32, 32, C) of each class.
        colours: of each class, factors of red, green and blue; grey images without.
    """
    draws = np.random.default_rng(0)
    images, labels = [], []
    for label, number in enumerate(symmetries):
        for _ in range(count):
            image = draws.normal(80, 20, (32, 32, 1))
            y, x = draws.integers(-2, 3, 2) + 16
            image[y - 1 : y + 2, x - 9 : x + 4] += 120
            for step in range(6):
                image[y - 5 + step : y + 6 - step, x + 3 + step] += 120
            if colours:
                image = image * colours[label]
            whole = image.clip(0, 255).astype(np.uint8)[None]
            images.append(np.asarray(turned(whole, number), np.uint8)[0])
            labels.append(label)
    return np.stack(images), np.array(labels)


def as_folder(root: Path, shapes: Shapes, names: Sequence[str]) -> None:
    """Class folders of such images."""
    for number, (image, label) in enumerate(zip(*shapes, strict=True)):
        path = root / names[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(path)
