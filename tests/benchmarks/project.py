"""The project's own stages, run in this process on folders of our choice."""

import shutil
from pathlib import Path
from typing import TypeVar

from stages import validate
from stages.core.params import Section, load_section
from stages.core.runtime import Resources
from tests.benchmarks.record import quiet

Kind = TypeVar("Kind", bound=Section)


def section(name: str, kind: type[Kind], **changed: object) -> Kind:
    """A section of the project's params.yaml, with some values changed."""
    return load_section(Path("params.yaml"), name, kind).model_copy(update=changed)


def resources() -> Resources:
    """The project's resources, on the CPU."""
    return section("resources", Resources, device="cpu")


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
        images=images,
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
