"""Checks the user's images before DVC reads them: `python -m flows.look [FOLDER]`.

DVC reads the folder before any stage runs, and with `dvc add` before any of our code does. All that
it says of a name that is not UTF-8, or of a broken link, is "codec can't encode" or "errno 2". The
flows check first; people who use DVC alone can call this.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from flows import ROOT, workspace
from stages.core.dataset.folder import Data
from stages.core.intake.listing import list_folder
from stages.core.runner.errors import AtelierError, DataError
from stages.core.runner.params import load_yaml, parse_section
from stages.core.runner.text import terminal


def check_images(
    root: Path, changes: dict[str, Any] | None = None, *, source: str = "params.yaml"
) -> None:
    """Check the folder that `data.dir` names, if it exists; a stage may still write it.

    Args:
        root: the project.
        changes: the keys of params.yaml that differ.
        source: where they come from, for messages.

    Raises: ParamsError; DataError that names what DVC cannot read.
    """
    values = load_yaml(root / "params.yaml")
    workspace.merge(values, changes or {}, source=source)
    folder = root / parse_section(values, "data", Data, source=source).dir
    if folder.is_dir():
        list_folder(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.look", description=check_images.__doc__)
    parser.add_argument("folder", nargs="?", help="default: data.dir of params.yaml")
    folder = parser.parse_args().folder or load_yaml(ROOT / "params.yaml")["data"]["dir"]
    try:
        check_images(ROOT, {"data": {"dir": folder}}, source=folder)
        if not (ROOT / folder).is_dir():
            raise DataError(f"{folder}: no such folder in the project; expected one with images")
        print(terminal(f"DVC can read {folder}: {len(list_folder(ROOT / folder).files)} files"))
    except AtelierError as error:
        sys.exit(terminal(f"error: {error}"))


if __name__ == "__main__":
    main()
