"""The project's own stages, run in this process on folders of our choice."""

import dataclasses
import shutil
import sys
from pathlib import Path
from typing import TypeVar

import numpy as np

from stages import validate
from stages.core.dataset.data import Dataset, load_dataset
from stages.core.runner import stage
from stages.core.runner.params import Section, load_section
from stages.core.runner.runtime import Resources
from tests.benchmarks.record import quiet

Kind = TypeVar("Kind", bound=Section)
SomePaths = TypeVar("SomePaths", bound=stage.Paths)
VALIDATED, TEACHER = Path("data/validated"), Path("data/models/teacher")


def section(name: str, kind: type[Kind], **changed: object) -> Kind:
    """A section of the project's params.yaml, with some values changed."""
    return load_section(Path("params.yaml"), name, kind).model_copy(update=changed)


def resources(device: str = "cpu") -> Resources:
    """The project's resources, on this device."""
    return section("resources", Resources, device=device)


def paths(root: Path, images: Path) -> validate.Paths:
    """The validate stage's paths, all of them below `root` but for the images; old outputs go."""
    root.mkdir(exist_ok=True)
    expectations, accepted = root / "expectations.yaml", root / "accepted.json"
    expectations.write_text("[]\n")
    accepted.write_text("{}\n")
    written = {name: root / name for name in validate.Paths.outputs()}
    for path in written.values():
        if path.is_dir():
            shutil.rmtree(path)
    return validate.Paths(
        dir=images,
        expectations=expectations,
        accepted=accepted,
        cache=root / "cache",
        **written,
    )


def validate_stage(where: validate.Paths, **changed: object) -> None:
    """Run the validate stage with the project's params, some of them changed."""
    params = section("validate", validate.Params, **changed)
    with quiet():
        validate.run(params, paths=where, resources=resources())


def work_paths(kind: type[SomePaths], root: Path) -> SomePaths:
    """A stage's paths on the default run's data: what it writes, and its caches, below `root`."""
    inputs = {"validated": VALIDATED, "teacher": TEACHER, "weights": Path("data/weights")}
    inputs = {name: path for name, path in inputs.items() if name not in kind.outputs()}
    options = {name: inputs.get(name, root / name) for name in kind.options()}
    return kind(scratch=root / "scratch", **options)


def default_run(share: float = 1.0) -> Dataset:
    """The default run's data, with about this share of its training images: whole groups."""
    if not (VALIDATED.exists() and TEACHER.exists()):
        sys.exit("error: this benchmark needs the default run's data and teacher: `make run` first")
    data = load_dataset(VALIDATED)
    train = data.splits == "train"
    groups = np.unique(data.groups[train])
    chosen = groups[np.linspace(0, len(groups) - 1, max(round(share * len(groups)), 1)).astype(int)]
    splits = np.where(train & ~np.isin(data.groups, chosen), "left out", data.splits)
    return dataclasses.replace(data, splits=splits)
