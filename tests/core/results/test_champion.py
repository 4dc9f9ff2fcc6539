import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stages.core.results.champion import Champion, fingerprint, load, pack, parse
from stages.core.results.predictions import logits
from stages.core.runner.errors import DataError

FILES = "d" * 32


def table(seed: int = 0, groups: int = 1) -> pd.DataFrame:
    draws = np.random.default_rng(seed)
    number = np.arange(60)
    return pd.DataFrame({
        "file_name": [f"{n}.png" for n in number], "group": [f"g{n % groups}" for n in number],
        "label": number % 2, "shipped/a": draws.normal(size=60), "shipped/b": draws.normal(size=60),
    })  # fmt: skip


def champion(of: pd.DataFrame, **changes: Any) -> Champion:
    values: dict[str, Any] = {
        "version": "1.0.0", "release": "x", "before": None, "auroc": 0.5,
        "test_split": fingerprint(of, FILES), "logits": pack(logits(of, "shipped")),
    }  # fmt: skip
    return Champion(**values | changes)


@pytest.mark.parametrize("seed", range(20))
def test_a_model_is_as_good_as_itself(seed: int) -> None:
    """Also where rounding to float16 makes ties, and there is no interval to hide in."""
    own = table(seed)
    assert champion(own).gain_of(own).gain == 0


def test_only_the_same_images_and_labels_are_compared() -> None:
    own = table()
    assert champion(own).has_seen(own, FILES)
    assert not champion(own).has_seen(own.assign(label=1 - own["label"]), FILES)
    assert not champion(own).has_seen(own.iloc[:-1], FILES)
    # Another file under one of the names.
    assert not champion(own).has_seen(own, "e" * 32)


@pytest.mark.parametrize(
    "text",
    ["", "AAAA", "no base64!", base64.b64encode(np.full(120, np.nan, "<f2").tobytes()).decode()],
)
def test_logits_that_do_not_fit_are_refused(text: str) -> None:
    own = table()
    with pytest.raises(DataError, match="do not fit the test split"):
        champion(own, logits=text).gain_of(own)


def test_logits_beyond_float16_stay_numbers() -> None:
    assert np.isfinite(np.frombuffer(base64.b64decode(pack(np.array([[1e9, -1e9]]))), "<f2")).all()


def test_a_release_of_version_0_2_0_is_known_but_not_compared(tmp_path: Path) -> None:
    old = {"version": "1.0.0", "release": "x", "before": None, "auroc": 0.9,
           "auroc_within_groups": 0.8}  # fmt: skip
    (tmp_path / "accepted.json").write_text(json.dumps({"champion": old}))
    known = load(tmp_path / "accepted.json")
    assert known is not None
    assert known.version == "1.0.0"
    assert not known.has_seen(table(), FILES)


@pytest.mark.parametrize(
    "change",
    [{"version": "1.0"}, {"version": "01.0.0"}, {"version": "\u0663.0.0"}, {"auroc": "0.5"},
     {"auroc": 7}, {"decisions": 0}, {"decisions": True}, {"release": None}],
)  # fmt: skip
def test_what_no_release_writes_is_refused(change: dict[str, Any]) -> None:
    entry = champion(table()).model_dump() | change
    with pytest.raises(DataError, match=f"accepted: champion.{next(iter(change))}: "):
        parse(json.dumps({"champion": entry}), "accepted")


def test_deep_json_is_refused() -> None:
    with pytest.raises(DataError, match="accepted: "):
        parse("[" * 100_000, "accepted")
