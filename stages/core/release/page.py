"""The report and the model card, from the metrics and pictures of all stages."""

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.core.results.champion import History
from stages.core.results.escape import markdown_cell
from stages.core.results.report import Reports
from stages.core.results.schema import CheckMetrics, Gate, Offer, ValidateMetrics, intervals_note


def _picture(path: Path) -> str:
    """A PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _test_split(validate: ValidateMetrics) -> str:
    """What the test split asks about, as one sentence."""
    test = validate.splits["test"]
    images = f"{test.images:,} image" + "s" * (test.images != 1)
    groups = f"{test.groups:,} group" + "s" * (test.groups != 1)
    if validate.split_tears_groups:
        return (
            f"{images} of {groups}; the split is random, and training saw images of the same "
            "groups: the figures are too good"
        )
    if not validate.groups_given:
        return (
            f"{images} that training never saw; no groups are given, so training may have seen "
            "others of the same object"
        )
    return f"{images} of {groups} that training never saw"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=lambda name: bool(name and ".html" in name),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "cell": markdown_cell,
        "intervals_note": intervals_note,
        "test_split": _test_split,
        "verdict": lambda is_shown: "shown" if is_shown else "not shown",
    }
    return environment


# The rows of export's parts.csv, as text, by kind.
Parts = Mapping[str, Sequence[Mapping[str, str]]]


def read_parts(folder: Path) -> Parts:
    """How good the model is in each group and domain, from export's reports."""
    by_kind: dict[str, list[dict[str, str]]] = {}
    with (folder / "parts.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            by_kind.setdefault(row["kind"], []).append(row)
    return by_kind


def report_page(
    folders: Mapping[str, Path],
    reports: Reports,
    parts: Parts,
    history: History,
    check: CheckMetrics,
) -> str:
    """The whole report as one HTML page without outside references."""
    pictures = {
        f"{stage}_{path.stem}": _picture(path)
        for stage, folder in folders.items()
        for path in sorted(folder.glob("*.png"))
    }
    template = _environment().get_template("report.html.j2")
    return template.render(
        vars(reports), check=check, pictures=pictures, parts=parts, history=history
    )


def model_card(reports: Reports, gates: Mapping[str, Gate], offers: Mapping[str, Offer]) -> str:
    """The model card of a release, as Markdown."""
    template = _environment().get_template("model_card.md.j2")
    return template.render(vars(reports), gates=gates, offers=offers)
