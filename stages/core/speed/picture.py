"""How latencies are distributed, as a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import FuncFormatter, NullFormatter
from numpy.typing import NDArray

from stages.core.results.pictures import COLOURS, save

STYLES = ("-", ":", "--", "-.")
# Powers as plain numbers: pictures have no mathematical text.
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def latencies(
    path: Path,
    samples: Mapping[str, NDArray[np.float64]],
    load: Sequence[tuple[float, float, float]],
    limit_ms: float,
) -> None:
    """How latencies are distributed; and, where it was measured, how they grow with the load.

    Args:
        samples: milliseconds in rising order, by whose they are.
        load: rate, p50 and p99.
        limit_ms: of p99.
    """
    figure, axes = plt.subplots(
        1, 2 if load else 1, figsize=(10 if load else 6.5, 4), squeeze=False
    )
    axis = axes[0, 0]
    for number, (name, values) in enumerate(samples.items()):
        style, colour = divmod(number, len(COLOURS))
        slower = 1 - np.arange(len(values)) / len(values)
        axis.plot(values, slower, label=name, color=COLOURS[colour], ls=STYLES[style % len(STYLES)])
    axis.set(xscale="log", yscale="log", xlabel="ms per call, batch 1")
    axis.set_ylabel("share of calls that take at least this long")
    for part in (axis.xaxis, axis.yaxis):
        part.set_major_formatter(PLAIN)
        part.set_minor_formatter(NullFormatter())
    if 0 < len(samples) <= len(STYLES) * len(COLOURS):
        axis.legend(frameon=False, fontsize=7, loc="lower left")
    if load:
        rates, medians, tails = zip(*load, strict=True)
        axes[0, 1].plot(rates, medians, color=COLOURS[0], marker="o", ms=3, label="p50")
        axes[0, 1].plot(rates, tails, color=COLOURS[1], marker="o", ms=3, label="p99")
        axes[0, 1].axhline(limit_ms, color="#999999", lw=1, ls=":")
        axes[0, 1].set(
            yscale="log", xlabel="images per second that arrive", ylabel="ms to the answer"
        )
        axes[0, 1].legend(frameon=False)
        axes[0, 1].yaxis.set_major_formatter(PLAIN)
        axes[0, 1].yaxis.set_minor_formatter(NullFormatter())
    for each in axes[0]:
        each.spines[["top", "right"]].set_visible(False)
        each.grid(alpha=0.25)
    figure.tight_layout()
    save(figure, path)
