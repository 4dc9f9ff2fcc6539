"""Reading params.yaml: sections are pydantic classes, and what does not fit is refused."""

from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.runner.errors import ParamsError


class Section(BaseModel):
    """Base of every section: unknown keys and wrong types are errors, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


S = TypeVar("S", bound=Section)


def load_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 mapping (as DVC reads it: `1e-4` is a number).

    Raises: ParamsError when the file is missing, unreadable, or no mapping.
    """
    try:
        content = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file") from None
    except YAMLError as error:
        reason = " ".join(str(error).replace('in "<unicode string>", ', "in ").split())
        raise ParamsError(f"{path}: not readable as YAML: {reason}") from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ParamsError(f"{path}: expected sections with keys, found {kind}")
    return content


def _explain(section: str, kind: type[Section], error: ErrorDetails) -> str:
    key = ".".join([section, *map(str, error["loc"])])
    if error["type"] == "extra_forbidden":
        return (
            f"{key} = {error['input']!r}: no such key; allowed are {', '.join(kind.model_fields)}"
        )
    if error["type"] == "missing":
        return f"{key}: is missing"
    return f"{key} = {error['input']!r}: {error['msg'].replace('Input s', 's')}"


def parse_section(content: dict[str, Any], section: str, kind: type[S], *, source: str) -> S:
    """The section as an instance of `kind`.

    Raises: ParamsError with one clause per wrong key: the key, its value, what is allowed.
    """
    if section not in content:
        raise ParamsError(f"{source}: section {section} is missing")
    try:
        return kind.model_validate(content[section])
    except ValidationError as error:
        problems = "; ".join(_explain(section, kind, e) for e in error.errors())
        raise ParamsError(f"{source}: {problems}") from None


def load_section(path: Path, section: str, kind: type[S]) -> S:
    """One section of a params file. Raises: ParamsError."""
    return parse_section(load_yaml(path), section, kind, source=path.name)
