from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from stages.core.results import pictures


@pytest.mark.parametrize("count", [0, 3, 12])
def test_every_training_has_a_curve_of_its_own(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "save", lambda figure, path: drawn.append(figure))
    series = {f"net {n}": pd.Series([0.5, 0.6], index=[1, 2]) for n in range(count)}
    pictures.curves(tmp_path / "curves.png", series, x="epoch", y="AUROC")
    (axis,) = drawn[0].axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
    assert len(looks) == len(axis.lines) == count
    legend = axis.get_legend()
    assert [text.get_text() for text in (legend.texts if legend else [])] == list(series)


@pytest.mark.parametrize("name", [r"$\foo$", "$10-$20", "\u8c93", "\u0915", "a\tb\0\n\x07"])
def test_names_of_all_kinds_are_drawn_as_they_are(tmp_path: Path, name: str) -> None:
    """Warnings are errors here."""
    pictures.grid(tmp_path / "grid.png", {name: [np.zeros((8, 8, 1), np.uint8)]})
    pictures.bars(tmp_path / "bars.png", {name: 1.0}, label=name)
    pictures.curves(tmp_path / "curves.png", {name: pd.Series([1.0])}, x=name, y=name)
    assert {path.stem for path in tmp_path.iterdir()} == {"grid", "bars", "curves"}
