"""Writes the code that each stage consists of into dvc.yaml: `make deps`."""

from pathlib import Path

from ruamel.yaml import YAML

from flows import ROOT
from stages.core.runner.code import files_of


def write(root: Path) -> None:
    """Set every stage's code deps to what its module imports; its data deps stay as they are."""
    yaml = YAML()
    yaml.width = 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    path = root / "dvc.yaml"
    content = yaml.load(path)
    for name, stage in content["stages"].items():
        data = [dep for dep in stage["deps"] if not dep.startswith("stages/")]
        stage["deps"] = [*data, *sorted(files_of([f"stages.{name}"], root))]
    yaml.dump(content, path)


if __name__ == "__main__":
    write(ROOT)
