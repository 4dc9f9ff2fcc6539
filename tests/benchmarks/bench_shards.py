"""Tracking 20,000 small images with DVC: as files in class folders against as WebDataset shards.

`dvc add` and then `dvc status`, as a user types them, each a process of its own; Python's and
DVC's start-up (about a second each) is in both. The images are the same (JPEGs of 96 px), once in
four class folders, once in two shards with their labels. Every run has a repository, a cache and a
site cache of its own, all empty; the files lie in the page cache. Copying them there is not
measured.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import synthetic
from tests.benchmarks.record import Result, interleaved, ratios, seconds

IMAGES, PX, ROUNDS = 20_000, 96, 3


def dvc(repository: Path, *arguments: str) -> None:
    """Run one DVC command quietly. Raises: CalledProcessError."""
    environment = os.environ | {
        "DVC_NO_ANALYTICS": "1",
        "DVC_SITE_CACHE_DIR": str(repository / "site"),
        "DVC_GLOBAL_CONFIG_DIR": str(repository / "global"),
        "DVC_SYSTEM_CONFIG_DIR": str(repository / "system"),
    }
    subprocess.run(
        [sys.executable, "-m", "dvc", *arguments, "--quiet"],
        cwd=repository, env=environment, check=True,
    )  # fmt: skip


def track(images: Path, work: Path) -> float:
    """Seconds of `dvc add` and `dvc status` in a new repository."""
    with tempfile.TemporaryDirectory(dir=work) as folder:
        repository = Path(folder)
        dvc(repository, "init", "--no-scm")
        shutil.copytree(images, repository / "images")

        def both() -> None:
            dvc(repository, "add", "images")
            dvc(repository, "status")

        return seconds(both)


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    count = round(IMAGES * scale)
    synthetic.class_folders(work / "folders", range(count), PX)
    synthetic.shards(work / "shards", range(count), PX)
    files, shards = interleaved(
        ROUNDS, lambda: track(work / "folders", work), lambda: track(work / "shards", work)
    )
    what = f"`dvc add` and `dvc status` of {count:,} images of {PX} px: files over shards"
    return [Result("shards", what, ratios(files, shards), 5.0)]
