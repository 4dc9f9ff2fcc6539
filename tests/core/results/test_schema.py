import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from stages.core.results.every_stage import SCHEMA
from stages.core.results.report import read_metrics, write_metrics
from stages.core.results.schema.data import IngestMetrics
from tests.conftest import ROOT

COUNTS: dict[str, Any] = {"images": 3, "groups": 2, "classes": {"a": 3}, "domains": {"": 3}}


def test_every_stage_has_a_class() -> None:
    stages = {p.stem for p in (ROOT / "stages").glob("*.py")} - {"__init__"}
    assert set(SCHEMA) == stages


@pytest.mark.parametrize("stage", SCHEMA)
def test_what_is_read_is_written_again_byte_for_byte(stage: str, tmp_path: Path) -> None:
    committed = ROOT / "data" / "reports" / stage / "metrics.json"
    write_metrics(tmp_path / "metrics.json", read_metrics(committed, SCHEMA[stage]))
    assert (tmp_path / "metrics.json").read_text() == committed.read_text()


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"image": 3}, "image"), ({"groups": None}, "groups"), ({"groups": 2.5}, "groups")],
)
def test_a_wrong_key_cannot_be_written(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        IngestMetrics(**COUNTS | changes)


def test_a_missing_key_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="domains"):
        IngestMetrics(**{k: v for k, v in COUNTS.items() if k != "domains"})
    write_metrics(tmp_path / "metrics.json", IngestMetrics(**COUNTS))
    assert json.loads((tmp_path / "metrics.json").read_text()) == COUNTS


def test_what_is_no_number_is_not_written(tmp_path: Path) -> None:
    metrics = read_metrics(ROOT / "data/reports/export/metrics.json", SCHEMA["export"])
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_metrics(tmp_path / "m.json", metrics.model_copy(update={"auroc": float("nan")}))
