"""The report and the model card, from the metrics and pictures of all stages."""

import base64
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from stages.core.results.champion import History
from stages.core.results.escape import markdown_cell
from stages.core.results.every_stage import Reports
from stages.core.results.gates import LEAST_GROUP, meaning
from stages.core.results.schema.base import Difference, intervals_note
from stages.core.results.schema.data import ValidateMetrics
from stages.core.results.schema.verdict import CheckMetrics, Gate, Offer
from stages.core.runner.text import counted


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
    if validate.leaks.leaking:
        return (
            f"{images}; the split is random and separates near duplicates: the figures are too good"
        )
    if not validate.groups_given:
        return (
            f"{images} that training never saw; no groups are given, so training may have seen "
            "others of the same object"
        )
    return f"{images} of {groups} that training never saw"


def _near_duplicates(validate: ValidateMetrics) -> str:
    """How many pairs validation found, as one sentence."""
    counts = validate.duplicates
    pairs = counts.near + counts.identical
    if not pairs:
        return "Validation found no near duplicates."
    across = f", {counts.across_groups} across groups" if validate.groups_given else ""
    return (
        f"Validation found {counted(pairs, 'pair')} of near duplicates{across}, "
        f"{counts.contradicting} with two labels."
    )


def _sides(validate: ValidateMetrics) -> str:
    """Whether the split keeps together what shows the same, as one sentence."""
    if validate.split_tears_groups or validate.leaks.leaking:
        torn = "groups" if validate.split_tears_groups else "near duplicates"
        return f"The split is random and separates {torn}: the figures below are too good."
    if not validate.groups_given:
        return (
            "No groups are given: near duplicates are on one side of the split, but other images "
            "of one object may be on both."
        )
    return (
        "Each group, and each pair of near duplicates, is on one side of the split: the figures "
        "below are for other groups than it learned from."
    )


def _auroc(over_chance: Difference | None) -> str:
    """A gain over a model that knows nothing as an AUROC, with its interval."""
    if over_chance is None:
        return ""
    auroc, low, high = (
        None if x is None else min(max(0.5 + x, 0.0), 1.0)
        for x in (over_chance.gain, over_chance.low, over_chance.high)
    )
    interval = "no interval: too few groups" if low is None else f"{low:.3f}, {high:.3f}"
    return f"{auroc:.3f} [{interval}]"


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
        "auroc": _auroc,
        "cell": markdown_cell,
        "counted": counted,
        "intervals_note": intervals_note,
        "meaning": meaning,
        "near_duplicates": _near_duplicates,
        "over_groups": _over_groups,
        "sides": _sides,
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


def group_accuracies(parts: Parts) -> list[float]:
    """The accuracies in groups that are large enough to have one, the lowest first."""
    return sorted(
        float(row["accuracy"])
        for row in parts.get("group", ())
        if int(row["images"]) >= LEAST_GROUP
    )


def _over_groups(parts: Parts) -> str:
    """How accuracy differs between groups, without their names: these may be patients."""
    count, each = len(parts.get("group", ())), group_accuracies(parts)
    if not count:
        return "The test split has a single group."
    if not each:
        return f"Accuracy by group: none of {count} has {LEAST_GROUP} test images, too few to say."
    return (
        f"Accuracy by group, over {len(each)} of {count}, those with {LEAST_GROUP} test images or "
        f"more: lowest {each[0]:.3f}, median {median(each):.3f}, highest {each[-1]:.3f}."
    )


@dataclass(frozen=True)
class Choice:
    """A model in one engine and number format: how good and how fast it is.

    Attributes:
        ms: median latency at batch 1 on the CPU.
        is_best: whether no other one is better in one and as good in the other.
    """

    name: str
    ms: float
    auroc: float
    is_best: bool


def choices(reports: Reports) -> list[Choice]:
    """All that was timed on the CPU and has an AUROC, the fastest first."""
    export, teacher = reports.export, reports.teacher.finetuned.auroc
    known = {
        ("teacher", "fp32"): teacher,
        ("student", "fp32"): export.auroc,
        **{
            ("student", name): export.auroc + variant.on["cpu"].gain.gain
            for name, variant in export.variants.items()
        },
    }
    points = [
        (f"{r.model}, {r.engine}, {r.precision}", r.p50_ms, known[r.model, r.precision])
        for r in reports.benchmark.rows.values()
        if r.provider == "cpu" and r.batch == 1 and r.threads == reports.benchmark.threads
        and r.p50_ms is not None and (r.model, r.precision) in known
    ]  # fmt: skip
    return [
        Choice(
            name, ms, auroc,
            not any(
                fast <= ms and good >= auroc and (fast, good) != (ms, auroc)
                for _, fast, good in points
            ),
        )
        for name, ms, auroc in sorted(points, key=lambda point: point[1])
    ]  # fmt: skip


def report_page(
    folders: Mapping[str, Path],
    reports: Reports,
    parts: Parts,
    history: History,
    check: CheckMetrics,
    advice: Mapping[str, str],
    unset: Mapping[str, Gate],
    fault: str = "",
) -> str:
    """The whole report as one HTML page without outside references.

    Args:
        advice: what to try, by the names of the gates that failed.
        unset: gates that could be set and are not, by name; their limits mean nothing.
        fault: of the params, which keeps a gate from being checked.
    """
    pictures = {
        f"{stage}_{path.stem}": _picture(path)
        for stage, folder in folders.items()
        for path in sorted(folder.glob("*.png"))
    }
    template = _environment().get_template("report.html.j2")
    return template.render(
        vars(reports),
        check=check,
        pictures=pictures,
        parts=parts,
        history=history,
        advice=advice,
        unset=unset,
        fault=fault,
        choices=choices(reports),
    )


def model_card(
    reports: Reports, parts: Parts, gates: Mapping[str, Gate], offers: Mapping[str, Offer]
) -> str:
    """The model card of a release, as Markdown."""
    template = _environment().get_template("model_card.md.j2")
    return template.render(vars(reports), parts=parts, gates=gates, offers=offers)
