"""The README's tables are what was measured: of what is committed, which a run does not change."""

import json
import subprocess
from pathlib import Path

import pytest

from flows.study import PARAMS, RESULTS, TRIAL, Results, load, summary
from tests.benchmarks import record
from tests.conftest import ROOT

STUDIES = sorted(path.stem for path in (ROOT / "flows" / "studies").glob("*.yaml"))


def committed(path: str) -> bytes:
    """A file's content in the last commit, empty if it is not there."""
    return subprocess.run(["git", "show", f"HEAD:{path}"], cwd=ROOT, capture_output=True).stdout


def missing(table: str) -> list[str]:
    """Lines of a table that the README does not have."""
    readme = committed("README.md").decode().splitlines()
    return [line for line in table.splitlines() if line.startswith("|") and line not in readme]


def test_benchmarks() -> None:
    table = record.table(json.loads(committed("data/reports/bench.json")))
    assert not missing(table)
    assert missing(table.replace("times", "hours"))


@pytest.mark.slow
@pytest.mark.parametrize("name", STUDIES)
def test_studies(name: str, tmp_path: Path) -> None:
    for suffix in ("csv", "parquet"):
        found = committed(f"{RESULTS.as_posix()}/{name}.{suffix}")
        if found:
            (tmp_path / f"{name}.{suffix}").write_bytes(found)
    results = Results(tmp_path, name)
    planned = dict(zip(results.rows[TRIAL], results.rows[PARAMS], strict=True))
    assert not missing(summary(load(ROOT / "flows/studies" / f"{name}.yaml"), results, planned))
