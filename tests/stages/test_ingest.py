from pathlib import Path

import pandas as pd

from stages import ingest
from tests.conftest import ROOT

FIRST = pd.read_csv(ROOT / "data" / "elpv_modules.csv")["start"].tolist()


def cells() -> pd.DataFrame:
    probabilities = [0.0, 1 / 3, 2 / 3, 1.0] * 656
    return pd.DataFrame(
        {
            "path": [f"images/cell{i + 1:04d}.png" for i in range(2624)],
            "probability": probabilities,
            "type": ["mono"] * 1074 + ["poly"] * 1550,
        }
    )


PARAMS = {"classes": "defect", "defective_above": 0.5, "max_cells": None}


def label(**changes: object) -> pd.DataFrame:
    params = ingest.Params.model_validate(PARAMS | changes)
    return ingest.label_cells(cells(), FIRST, params)


def test_threshold() -> None:
    assert label()["label"].tolist()[:4] == ["functional", "functional", "defective", "defective"]
    strict = label(defective_above=0.7)["label"].tolist()[:4]
    assert strict == ["functional", "functional", "functional", "defective"]


def test_types_may_have_classes_of_their_own() -> None:
    table = label(classes="type_and_defect")
    assert table["label"].tolist()[1073:1075] == ["mono functional", "poly defective"]
    assert table["label"].nunique() == 4


def test_groups_are_whole_modules() -> None:
    table = label()
    assert table["group"].nunique() == len(FIRST) == 44
    assert table["group"].is_monotonic_increasing
    assert table["group"].iloc[[59, 60]].tolist() == ["module_00", "module_01"]
    few = label(max_cells=420)
    assert 360 <= len(few) <= 480
    whole = table["group"].value_counts()
    assert all(whole[group] == n for group, n in few["group"].value_counts().items())
    assert set(few["domain"]) == {"mono", "poly"}


def test_modules_file_is_sound() -> None:
    modules = pd.read_csv(Path(ROOT) / "data" / "elpv_modules.csv")
    assert modules["module"].tolist() == list(range(44))
    assert modules["start"].is_monotonic_increasing
