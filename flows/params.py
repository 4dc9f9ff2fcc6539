"""Refuses a bad params.yaml before the first stage runs; only here do flows look at stages."""

import importlib
from pathlib import Path

from stages.core.dataset.data import Data
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import Section, load_yaml, parse_section
from stages.core.runner.runtime import Resources

SHARED: dict[str, type[Section]] = {"data": Data, "resources": Resources}


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


def check(path: Path) -> None:
    """Hold every section of a params file against its class, and the device against the machine.

    Raises: ParamsError; Unavailable for a device that is not here.
    """
    content = load_yaml(path)
    for section in {**dict.fromkeys(SHARED), **content}:
        parsed = parse_section(content, section, section_class(section), source=path.name)
        if isinstance(parsed, Resources):
            parsed.torch_device()
