"""Figures of the report, as PNG."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from numpy.typing import NDArray

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Names of classes are no formulas, whatever dollar signs they have.
matplotlib.rcParams["text.parse_math"] = False

# Okabe & Ito's colours, which colour-blind readers can tell apart too.
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999"]

Images = NDArray[np.uint8]


def save(figure: Figure, path: Path) -> None:
    """Write and close a figure."""
    with warnings.catch_warnings():
        # A box stands for a letter that the font lacks; the text is in the tables.
        warnings.filterwarnings("ignore", r"Glyph \d+ [\s\S]* missing from", UserWarning)
        # No software version in the file: the same figure has the same bytes.
        figure.savefig(
            path, format="png", dpi=110, bbox_inches="tight", metadata={"Software": None}
        )
    plt.close(figure)


def grid(path: Path, rows: Mapping[str, Sequence[Images]]) -> None:
    """Images (S, S, C) in rows, each row with its name; empty rows are left out."""
    filled = {name: images for name, images in rows.items() if len(images)}
    columns = max((len(images) for images in filled.values()), default=1)
    figure, axis = plt.subplots(figsize=(1.1 * columns, 1.1 * max(len(filled), 1)))
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0, labelsize=9)
    axis.set_xticks([])
    axis.set_yticks(np.arange(len(filled)) + 0.48, list(filled))
    for number, images in enumerate(filled.values()):
        for column, image in enumerate(images):
            place = (column, column + 0.96, number + 0.96, number)
            axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, extent=place)
    axis.set_xlim(0, columns)
    axis.set_ylim(max(len(filled), 1), 0)
    if not filled:
        axis.text(0.5, 0.5, "none", ha="center", va="center")
    save(figure, path)


def short(text: str, most: int = 24) -> str:
    """`text` on one line of a caption: of a long one, the end."""
    line = "".join(char if char.isprintable() else "?" for char in text)
    return line if len(line) <= most else "\N{HORIZONTAL ELLIPSIS}" + line[1 - most :]


def captioned(
    path: Path,
    images: Images,
    maps: NDArray[np.float32],
    captions: Sequence[str],
    *,
    columns: int = 3,
) -> None:
    """Images (N, P, P, C), each with its map (N, S, S) beside it and a caption below.

    A map is drawn over the grey image: red above zero, blue below.
    """
    rows = max(-(-len(images) // columns), 1)
    figure, axes = plt.subplots(rows, columns, figsize=(3.2 * columns, 2.2 * rows), squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, values, caption in zip(axes.flat, images, maps, captions, strict=False):
        side = len(image)
        right = (1.04 * side, 2.04 * side, side, 0)
        axis.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255, extent=(0, side, side, 0))
        axis.imshow(image.mean(2), cmap="gray", vmin=0, vmax=255, extent=right)
        most = float(np.abs(values).max()) or 1.0
        look = {"cmap": "coolwarm", "vmin": -most, "vmax": most, "alpha": 0.5}
        axis.imshow(values, extent=right, interpolation="bilinear", **look)
        axis.set(xlim=(0, 2.04 * side), ylim=(side, 0))
        axis.text(0.5, -0.03, caption, transform=axis.transAxes, ha="center", va="top", fontsize=8)
    if not len(images):
        axes[0, 0].text(0.5, 0.5, "none", ha="center", va="center")
    save(figure, path)


Line = tuple[NDArray[np.float64], NDArray[np.float64]]


class Mark(NamedTuple):
    """A place on both curves of a class: rates 0 to 1; and how it is drawn.

    Attributes:
        name: in the legend; "" for none.
    """

    false_alarms: float
    recall: float
    precision: float
    marker: str = "o"
    name: str = ""


def ranking_curves(path: Path, by_class: Mapping[str, tuple[Line, Line, Sequence[Mark]]]) -> None:
    """ROC and precision-recall curves side by side.

    Args:
        by_class: false alarms and recall; recall and precision; and the decisions.
    """
    figure, (roc, precision_recall) = plt.subplots(1, 2, figsize=(8.2, 3.9))
    for number, (name, (first, second, marks)) in enumerate(by_class.items()):
        look = {"color": COLOURS[number % len(COLOURS)]}
        roc.plot(*first, label=short(name), **look)
        precision_recall.plot(*second, label=short(name), **look)
        for mark in marks:
            roc.plot(mark.false_alarms, mark.recall, mark.marker, label=mark.name or None, **look)
            precision_recall.plot(mark.recall, mark.precision, mark.marker, **look)
    roc.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
    roc.set(xlabel="false alarms", ylabel="recall")
    precision_recall.set(xlabel="recall", ylabel="precision")
    for axis in (roc, precision_recall):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    if by_class:
        roc.legend(frameon=False, loc="lower right", fontsize=9)
    save(figure, path)


def reliability(
    path: Path, stated: NDArray[np.float64], reached: NDArray[np.float64], counts: NDArray[np.int64]
) -> None:
    """Accuracy over confidence; the size of a dot is the number of images."""
    figure, axis = plt.subplots(figsize=(4.2, 3.9))
    axis.plot([0, 1], [0, 1], color="#999999", lw=1, ls=":")
    axis.plot(stated, reached, color=COLOURS[0], lw=1)
    axis.scatter(stated, reached, s=12 + 240 * counts / max(counts.sum(), 1), color=COLOURS[0])
    axis.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1.02), ylim=(0, 1.05))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    save(figure, path)


def beside_nearest(path: Path, synthetic: Images, real: Images, *, count: int = 10) -> None:
    """Synthetic images over the real images that are nearest to them, pixel by pixel (L2)."""
    chosen = synthetic[:count]
    flat = real.reshape(len(real), -1).astype(np.float32)
    nearest = [
        int(np.square(flat - image.reshape(-1).astype(np.float32)).sum(1).argmin())
        for image in chosen
    ]
    grid(path, {"synthetic": list(chosen), "nearest real": list(real[nearest])})


def curves(path: Path, series: Mapping[str, pd.Series], *, x: str, y: str) -> None:
    """Lines over their index; dashed where the colours begin again."""
    figure, axis = plt.subplots(figsize=(5.5, 3.2))
    for number, (name, line) in enumerate(series.items()):
        again, colour = divmod(number, len(COLOURS))
        look = {"color": COLOURS[colour], "ls": "--" if again else "-", "marker": "o", "ms": 3}
        axis.plot(line.index, line.to_numpy(), label=name, **look)
    axis.set_xlabel(x)
    axis.set_ylabel(y)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if series:
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    save(figure, path)


def histograms(path: Path, values: Mapping[str, NDArray[np.floating]], *, x: str) -> None:
    """Distributions of numbers from 0 to 1, as shares of each in ten equal bins."""
    figure, axis = plt.subplots(figsize=(5.5, 3.0))
    edges = np.linspace(0, 1, 11)
    for number, (name, numbers) in enumerate(values.items()):
        shares = np.histogram(numbers, edges)[0] / max(len(numbers), 1)
        axis.stairs(shares, edges, label=name, color=COLOURS[number % len(COLOURS)], lw=1.8)
    axis.set(xlabel=x, ylabel="share of the images", xlim=(0, 1))
    if values:
        axis.legend(frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def learning_curves(table: Path, picture: Path, histories: Sequence[pd.DataFrame]) -> None:
    """Write and draw the histories of several trainings: with epoch, net and val_auroc."""
    together = pd.concat(histories)
    together.to_csv(table, index=False)
    lines = {str(n): c.set_index("epoch")["val_auroc"] for n, c in together.groupby("net")}
    curves(picture, lines, x="epoch", y="AUROC, validation")


def bars(
    path: Path,
    values: Mapping[str, float],
    *,
    label: str,
    spread: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Horizontal bars with their value; `spread` gives low and high ends of an interval."""
    figure, axis = plt.subplots(figsize=(6.5, 0.45 * len(values) + 0.9))
    names = list(values)[::-1]
    heights = [values[n] for n in names]
    axis.barh(names, heights, color=COLOURS[0], height=0.6)
    for place, name in enumerate(names):
        end = values[name]
        if spread and name in spread:
            low, high = spread[name]
            axis.plot([low, high], [place, place], color="black", lw=1.2)
            end = max(end, high)
        axis.annotate(
            f"{values[name]:.3g}", (end, place), xytext=(4, 0), textcoords="offset points",
            va="center", fontsize=9,
        )  # fmt: skip
    axis.set_xlabel(label)
    axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)
