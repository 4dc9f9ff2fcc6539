"""How often the 95 % intervals of a gain hold the true difference, which is 0 here."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from stages.core.results import predictions
from stages.core.results.metrics import Paired, mean_paired_gain
from stages.core.results.schema.base import Difference
from tests.conftest import ROOT

Module = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
Draw = Callable[[np.random.Generator, int], Paired]

# Groups in the test split, folds, simulations; those of the default run, all modules, a study.
DESIGNS = [(11, 1, 3000), (44, 1, 1500), (11, 4, 1500)]


def modules() -> list[Module]:
    """Labels of each of ELPV's modules, with the margins of a student and of its control."""
    table = pd.read_parquet(ROOT / "data/reports/studies/elpv.parquet")
    table = table[table["trial"].str.startswith("grouped-")]
    each = []
    for _, module in table.groupby(["trial", "group"]):
        margins = [predictions.logits(module, name) for name in ("student", "control")]
        label = module["label"].to_numpy(np.int64)
        each.append((label, *(m[:, 1] - m[:, 0] for m in margins)))
    return each


def paired(rows: list[Module]) -> Paired:
    labels, *margins = (np.concatenate(parts) for parts in zip(*rows, strict=True))
    groups = np.repeat(np.arange(len(rows)), [len(row[0]) for row in rows])
    better, worse = (np.stack([-m, m], 1).astype(np.float32) for m in margins)
    return Paired(better, worse, labels, groups)


def measured(every: list[Module]) -> Draw:
    """Modules as measured; which model is which is tossed up for each."""

    def draw(generator: np.random.Generator, groups: int) -> Paired:
        rows = [every[i] for i in generator.integers(len(every), size=groups)]
        swap = generator.random(groups) < 0.5
        return paired(
            [(y, b, a) if s else (y, a, b) for s, (y, a, b) in zip(swap, rows, strict=True)]
        )

    return draw


def modelled(every: list[Module], common: float, own: float, noise: float) -> Draw:
    """Normal margins with offsets per module, common to both models and of their own."""

    def draw(generator: np.random.Generator, groups: int) -> Paired:
        rows = []
        for i in generator.integers(len(every), size=groups):
            label = every[i][0]
            offsets = generator.normal(0, common) + generator.normal(0, own, (2, 1))
            images = generator.normal(size=len(label))
            a, b = 1.8 * label + offsets + images + generator.normal(0, noise, (2, len(label)))
            rows.append((label, a, b))
        return paired(rows)

    return draw


@pytest.mark.slow
@pytest.mark.parametrize(("groups", "folds", "simulations"), DESIGNS)
@pytest.mark.parametrize("how", ["measured", "offsets", "few offsets", "no offsets"])
def test_the_intervals_cover(how: str, groups: int, folds: int, simulations: int) -> None:
    every = modules()
    draw = {
        "measured": measured(every),
        "offsets": modelled(every, 1.0, 0.5, 0.5),
        "few offsets": modelled(every, 1.0, 0.2, 0.7),
        "no offsets": modelled(every, 0.5, 0.0, 0.7),
    }[how]
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(simulations):
        pairs = []
        for fold in range(folds):
            pair = draw(generator, groups)
            pairs.append(Paired(pair.better, pair.worse, pair.labels, pair.groups + fold * groups))
        gain = mean_paired_gain(pairs)
        covered.append([holds_zero(gain), holds_zero(gain.within_groups)])
    overall, within = np.mean(covered, axis=0)
    print(f"{how}, {groups} groups, {folds} folds: {overall:.3f}, within groups {within:.3f}")
    assert overall >= 0.94
    assert within >= 0.94


def holds_zero(gain: Difference | None) -> bool:
    assert gain is not None
    assert gain.low is not None
    assert gain.high is not None
    return gain.low <= 0 <= gain.high
