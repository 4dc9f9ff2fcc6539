"""Drift: nothing where nothing has changed, much where much has."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stages.core.intake.drift import (
    NUMBERS,
    SMALLEST,
    compare,
    load_accepted,
    profile,
    stability_index,
)
from stages.core.runner.errors import DataError


def manifest(count: int = 2000, seed: int = 0) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "label": draws.choice(["a", "b", "c"], count, p=[0.5, 0.3, 0.2]),
            "width": draws.choice([300, 640], count),
            "height": np.full(count, 300),
            "mean": draws.normal(120, 20, count),
            "contrast": draws.gamma(4, 8, count),
            "sharpness": draws.lognormal(5, 0.5, count),
        }
    )


def naive(expected: list[float], actual: list[float]) -> float:
    total = 0.0
    for e, f in zip(expected, actual, strict=True):
        e, f = max(e, SMALLEST), max(f, SMALLEST)
        total += (f - e) * math.log(f / e)
    return total


@pytest.mark.parametrize(
    ("expected", "actual"),
    [
        ([0.1] * 10, [0.1] * 10),
        ([0.1] * 10, [0.05, 0.15] * 5),
        ([0.5, 0.5, 0.0], [0.2, 0.3, 0.5]),
        ([1.0, 0.0], [0.0, 1.0]),
    ],
)
def test_stability_index_is_the_formula(expected: list[float], actual: list[float]) -> None:
    index = stability_index(np.array(expected), np.array(actual))
    assert index == pytest.approx(naive(expected, actual))
    assert index == pytest.approx(stability_index(np.array(actual), np.array(expected)))
    assert (index == 0) == (expected == actual)


def test_the_same_data_has_not_drifted() -> None:
    actual = compare(manifest(), profile(manifest()))
    assert set(actual) == {"label", *NUMBERS}
    assert set(actual.values()) == {0.0}


def test_more_of_the_same_has_hardly_drifted() -> None:
    assert max(compare(manifest(seed=1), profile(manifest())).values()) < 0.05


def test_a_profile_survives_json() -> None:
    remaining = json.loads(json.dumps(profile(manifest())))
    assert remaining == profile(manifest())
    assert compare(manifest(), remaining)["mean"] == 0
    assert remaining["images"] == 2000
    assert remaining["label"]["a"] == pytest.approx(0.5, abs=0.05)
    for column in NUMBERS:
        assert len(remaining[column]["shares"]) == len(remaining[column]["edges"]) + 1
        assert sum(remaining[column]["shares"]) == pytest.approx(1)
    assert remaining["mean"]["shares"] == pytest.approx([0.1] * 10)


@pytest.mark.parametrize("column", ["mean", "contrast", "sharpness"])
@pytest.mark.parametrize("factor", [0.6, 1.6])
def test_shifted_numbers_have_drifted(column: str, factor: float) -> None:
    shifted = manifest(seed=1)
    shifted[column] *= factor
    actual = compare(shifted, profile(manifest()))
    assert actual.pop(column) > 0.25
    assert max(actual.values()) < 0.05


def test_the_index_of_a_number_is_that_of_its_bins() -> None:
    accepted = profile(manifest())
    shifted = manifest(seed=1).assign(mean=lambda t: t["mean"] + 10)
    edges = [-math.inf, *accepted["mean"]["edges"], math.inf]
    shares = [
        ((shifted["mean"] >= low) & (shifted["mean"] < high)).mean()
        for low, high in itertools.pairwise(edges)
    ]
    expected = naive(accepted["mean"]["shares"], shares)
    assert compare(shifted, accepted)["mean"] == pytest.approx(expected)


@pytest.mark.parametrize("height", [299, 301, 600, 10])
def test_a_number_that_was_always_the_same_has_drifted(height: int) -> None:
    actual = compare(manifest().assign(height=height), profile(manifest()))
    assert actual["height"] > 1


@pytest.mark.parametrize("width", [200, 400, 1000])
def test_a_value_that_was_never_there_has_drifted(width: int) -> None:
    """Between, below and above two common ones."""
    changed = manifest()
    changed.loc[::2, "width"] = width
    assert compare(changed, profile(manifest()))["width"] > 0.25


def test_shares_of_the_classes() -> None:
    accepted = profile(manifest())
    swapped = manifest().replace({"label": {"a": "c", "c": "a"}})
    assert compare(swapped, accepted)["label"] > 0.25
    without = manifest().query("label != 'b'")
    assert compare(without, accepted)["label"] > 0.25
    more = pd.concat([manifest(), manifest().assign(label="d")])
    assert compare(more, accepted)["label"] > 0.25


def test_a_single_image_has_a_profile() -> None:
    one = manifest().head(1)
    assert set(compare(one, profile(one)).values()) == {0.0}


def test_accepted_data_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "accepted.json"
    path.write_text("{}\n")
    assert load_accepted(path) == {}
    content = {"data": profile(manifest()), "model": {"auroc": 0.9}}
    path.write_text(json.dumps(content))
    assert load_accepted(path) == content


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"data": 3}', b'{"data": {"label": {}}}', b"\xff\xfe"]
)
def test_broken_accepted_data_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "accepted.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"accepted\.json: found no profile of accepted data"):
        load_accepted(path)
