"""The report and the model card, from the metrics and pictures of all stages."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

Found = Mapping[str, Mapping[str, Any]]


def _picture(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _interval(gain: Mapping[str, float]) -> str:
    return f"{gain['gain']:+.3f} (95 % interval {gain['low']:+.3f} to {gain['high']:+.3f})"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["interval"] = _interval
    return environment


def report_page(folders: Mapping[str, Path], found: Found, checked: Mapping[str, Any]) -> str:
    """The whole report as one HTML page without outside references."""
    pictures = {
        f"{stage}_{path.stem}": _picture(path)
        for stage, folder in folders.items()
        for path in sorted(folder.glob("*.png"))
    }
    template = _environment().get_template("report.html.j2")
    return template.render(**found, check=checked, pictures=pictures)


def model_card(found: Found, checked: Mapping[str, Any]) -> str:
    """The model card of a release, as Markdown."""
    return _environment().get_template("model_card.md.j2").render(**found, check=checked)
