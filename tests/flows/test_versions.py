"""The walk of data/README.md: version 1 of a folder, version 2, what differs, and back."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from tests.helpers.tiny import TRAIN, Workspace, make, marks

DVC = [sys.executable, "-m", "dvc"]


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[Workspace]:
    yield from make(tmp_path)


def commit(workspace: Workspace, message: str) -> str:
    who = ["-c", "user.name=Test", "-c", "user.email=test@example.org"]
    workspace.run(["git", "add", "--all"])
    workspace.run(["git", *who, "commit", "--quiet", "-m", message])
    return workspace.run(["git", "rev-parse", "HEAD"]).strip()


def copy_cells(source: Path, target: Path, modules: int) -> None:
    """The cells of the first modules, as a user would bring them."""
    table = pd.read_csv(source / "metadata.csv")
    table = table[table["group"].isin(table["group"].unique()[:modules])]
    (target / "images").mkdir(parents=True, exist_ok=True)
    for name in table["file_name"]:
        shutil.copy(source / name, target / name)
    table.to_csv(target / "metadata.csv", index=False)


@pytest.mark.slow
def test_two_versions_and_back(fresh: Workspace) -> None:
    fresh.run([*TRAIN, "--target", "ingest"])
    elpv, mine = fresh.root / "data" / "elpv", fresh.root / "data" / "mine"
    copy_cells(elpv, mine, modules=6)
    fresh.run([*DVC, "add", "-q", "data/mine"])
    fresh.set("data", "dir", "data/mine")
    first = marks(fresh.run(TRAIN))
    assert "ingest" not in first
    assert first.pop("data/mine.dvc") == "cached"
    assert set(first.values()) == {"done"}
    v1 = commit(fresh, "v1")

    copy_cells(elpv, mine, modules=7)
    second = marks(fresh.run(TRAIN))
    assert second["data/mine.dvc"] == second["validate"] == second["teacher"] == "done"
    changed = fresh.run([*DVC, "diff", v1])
    assert "data/mine/images/" in changed
    assert "data/models/teacher" in changed
    assert "finetuned.auroc" in fresh.run([*DVC, "metrics", "diff", v1])
    commit(fresh, "v2")

    fresh.run(["git", "checkout", "--quiet", v1])
    fresh.run([*DVC, "checkout", "-q"])
    back = marks(fresh.run(TRAIN))
    assert back == dict.fromkeys(back, "cached")
    fresh.run([*DVC, "status", "-q"])
    subprocess.run([*DVC, "push", "-q"], cwd=fresh.root, env=fresh.environment, check=True)
    assert (fresh.root.parent / "atelier-remote").is_dir()
