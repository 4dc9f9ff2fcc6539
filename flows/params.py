"""Checks params.yaml before the first stage runs; only this module of flows loads stages."""

import hashlib
import importlib
import json
from pathlib import Path
from typing import Any

from flows import workspace
from stages.core.dataset.folder import Data
from stages.core.runner.code import digest_of
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import Section, load_yaml, parse_section
from stages.core.runner.runtime import Resources

SHARED: dict[str, type[Section]] = {"data": Data, "resources": Resources}

# Digests of params that have passed, with the code that checked them: the last ones, one per line.
CHECKED = Path("data/scratch/params.checked")
REMEMBERED = 20


def section_class(name: str) -> type[Section]:
    """The class that a section of params.yaml must fit. Raises: ParamsError if there is none."""
    if name in SHARED:
        return SHARED[name]
    try:
        module = importlib.import_module(f"stages.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"stages.{name}":
            raise
        raise ParamsError(f"params.yaml: {name}: no stage has this name") from None
    params: type[Section] = module.Params
    return params


def check(path: Path, changes: dict[str, Any] | None = None, *, source: str | None = None) -> None:
    """Check every section of a params file against its class, and the device against the machine.

    If the same code has passed the same params before, the stages' sections are not checked again:
    importing the stages takes longer than the rest of a run in which nothing has changed.

    Args:
        path: the file.
        changes: keys that differ from it.
        source: what errors name: where `changes` come from, or else the file.

    Raises: ParamsError; Unavailable for a device that the machine lacks.
    """
    content, source = load_yaml(path), source or path.name
    workspace.merge(content, changes or {}, source=source)
    for section, kind in SHARED.items():
        parsed = parse_section(content, section, kind, source=source)
        if isinstance(parsed, Resources):
            parsed.check_device()
    sections = [section for section in content if section not in SHARED]
    code = digest_of("flows.params", *(f"stages.{section}" for section in sections))
    key = hashlib.md5(f"{json.dumps(content, default=str)} {code}".encode()).hexdigest()
    record = path.parent / CHECKED
    passed = record.read_text(encoding="utf-8").split() if record.exists() else []
    if key in passed:
        return
    for section in sections:
        parse_section(content, section, section_class(section), source=source)
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text("\n".join([*passed[-REMEMBERED:], key]), encoding="utf-8")
