"""The table of logits on single images."""

from pathlib import Path

import numpy as np
import pandas as pd

from stages.core.results import predictions
from tests.conftest import dataset


def test_no_file_name_is_a_formula(tmp_path: Path) -> None:
    data = dataset(n=3)
    data.files[:] = ["=1+1.png", "@x.png", "a=b.png"]
    path = tmp_path / "predictions.csv"
    predictions.write(path, data, np.arange(3), {"net": np.zeros((3, 2), np.float32)})
    assert pd.read_csv(path)["file_name"].tolist() == ["'=1+1.png", "'@x.png", "a=b.png"]
