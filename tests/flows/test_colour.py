"""The whole chain on coloured photographs of three classes, as class folders of JPEGs."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from tests.flows.test_run import marks
from tests.helpers.tiny import TRAIN, make

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
    for made in make(tmp_path):
        cut_photographs(made.root / "data" / "photos")
        made.run([sys.executable, "-m", "dvc", "add", "-q", "data/photos"])
        made.set("data", "dir", "data/photos")
        found = marks(made.run(TRAIN))
        assert found.pop("data/photos.dvc") == "cached"
        assert set(found.values()) == {"done"}
        assert "ingest" not in found
        validated = made.metrics("validate")
        assert (validated["channels"], validated["layout"]) == (3, "class folders")
        recall = made.metrics("export")["calibrated"]["recall"]
        assert list(recall) == ["flower", "palace", "sky"]
        assert made.metrics("export")["parity"]["decisions_changed"] == 0
        assert made.metrics("distill")["student"]["auroc"] > 0.7
        predictions = pd.read_csv(made.root / "data/reports/distill/predictions.csv")
        assert {"student/flower", "student/palace", "student/sky"} <= set(predictions)
