from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from stages.core.results import pictures


@pytest.mark.parametrize("count", [0, 3, 12])
def test_every_training_has_a_curve_of_its_own(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(pictures, "_save", lambda figure, path: drawn.append(figure))
    series = {f"net {n}": pd.Series([0.5, 0.6], index=[1, 2]) for n in range(count)}
    pictures.curves(tmp_path / "curves.png", series, x="epoch", y="AUROC")
    (axis,) = drawn[0].axes
    looks = {(line.get_color(), line.get_linestyle()) for line in axis.lines}
    assert len(looks) == len(axis.lines) == count
    legend = axis.get_legend()
    assert [text.get_text() for text in (legend.texts if legend else [])] == list(series)
