"""The whole chain on coloured photographs of three classes, as class folders of JPEGs."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.helpers.tiny import TRAIN, make, marks

# Class -> photograph of scikit-learn, and the rows of it to cut pieces from.
PLACES = {
    "flower": ("flower.jpg", slice(60, 360)),
    "palace": ("china.jpg", slice(180, 427)),
    "sky": ("china.jpg", slice(0, 130)),
}


def cut_photographs(folder: Path, *, each: int = 60, px: int = 72) -> None:
    draws = np.random.default_rng(0)
    for label, (photo, rows) in PLACES.items():
        (folder / label).mkdir(parents=True)
        pixels = load_sample_image(photo)[rows]
        for i in range(each):
            y, x = (int(draws.integers(side - px)) for side in pixels.shape[:2])
            piece = Image.fromarray(pixels[y : y + px, x : x + px])
            piece.save(folder / label / f"{i:02d}.jpg", quality=95)


@pytest.mark.slow
def test_the_whole_chain(tmp_path: Path) -> None:
    for workspace in make(tmp_path):
        cut_photographs(workspace.root / "data" / "photos")
        workspace.run([sys.executable, "-m", "dvc", "add", "-q", "data/photos"])
        workspace.set("data", "dir", "data/photos")
        states = marks(workspace.run(TRAIN))
        assert states.pop("data/photos.dvc") == "cached"
        assert set(states.values()) == {"done"}
        assert "ingest" not in states
        validated = workspace.metrics("validate")
        assert (validated["channels"], validated["layout"]) == (3, "class folders")
        recall = workspace.metrics("export")["calibrated"]["recall"]
        assert list(recall) == ["flower", "palace", "sky"]
        assert workspace.metrics("export")["parity"]["decisions_changed"] == 0
        assert workspace.metrics("distill")["student"]["auroc"] > 0.7
        predictions = pd.read_csv(workspace.root / "data/reports/distill/predictions.csv")
        assert {"student/flower", "student/palace", "student/sky"} <= set(predictions)
