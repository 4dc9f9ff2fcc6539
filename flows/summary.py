"""The end of a run: a short table of results, and where everything is."""

import os
import shlex
from collections.abc import Collection
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import ROOT
from stages.core.intake.listing import list_folder
from stages.core.release.predict import READABLE
from stages.core.results.report import read_metrics
from stages.core.results.schema.base import Auroc, Difference, Gain, count_intervals
from stages.core.results.schema.data import ValidateMetrics
from stages.core.results.schema.shipped import ExportMetrics
from stages.core.results.schema.speed import BenchmarkMetrics
from stages.core.results.schema.synthetic import RefineMetrics
from stages.core.results.schema.training import DistillMetrics, TeacherMetrics
from stages.core.results.schema.verdict import CheckMetrics
from stages.core.runner.errors import DataError
from stages.core.runner.params import load_yaml
from stages.core.runner.text import terminal

WITHIN = "  within groups"


def _aurocs(
    name: str, model: Auroc, reference: str, other: Auroc, gain: Gain | None = None
) -> list[tuple[str, str, str]]:
    """AUROC of a model beside another's, and within groups where there is such a figure."""
    compared = "" if gain is None else f", gain {gain}"
    lines = [(f"{name}: AUROC", f"{model.auroc:.3f}", f"{reference} {other.auroc:.3f}{compared}")]
    if model.auroc_within_groups is not None and other.auroc_within_groups is not None:
        compared = "" if gain is None else f", gain {gain.within_groups}"
        within = f"{reference} {other.auroc_within_groups:.3f}{compared}"
        lines.append((WITHIN, f"{model.auroc_within_groups:.3f}", within))
    return lines


def _decision(name: str, accepted: str, is_shown: bool, gain: Difference) -> tuple[str, str, str]:
    """What validation decides, and the gain there by which it does."""
    words = "shown" if is_shown else "not shown"
    return name, accepted if is_shown else "left out", f"validation {gain}: {words} to help"


REPORT = Path("data/reports/index.html")


def rows(reports: Path, stages: Collection[str]) -> list[tuple[str, str, str]]:
    """Name, value and comparison of the results of some stages.

    Args:
        reports: the folder of all stages' reports.
        stages: the stages that are up to date, together with all that they need.

    Raises: DataError if other code wrote a stage's metrics.
    """
    lines = []
    if "validate" in stages:
        validate = read_metrics(reports / "validate" / "metrics.json", ValidateMetrics)
        splits = [f"{name} {split.images:,}" for name, split in validate.splits.items()]
        if validate.unlabelled:
            splits.append(f"unlabelled {validate.unlabelled:,}")
        lines.append(("images", f"{validate.images:,}", ", ".join(splits)))
    if "teacher" in stages:
        teacher = read_metrics(reports / "teacher" / "metrics.json", TeacherMetrics)
        lines += _aurocs("teacher, fine-tuned", teacher.finetuned, "linear probe", teacher.probe)
    if "distill" in stages:
        distill = read_metrics(reports / "distill" / "metrics.json", DistillMetrics)
        gain = distill.gain_over_control
        lines += _aurocs("student", distill.student, "without teacher", distill.control, gain)
        if intervals := count_intervals([gain]):
            lines.append(("number of 95 % intervals", str(intervals), ""))
        size = f"{distill.parameters:,}"
        lines.append(("student: parameters", size, f"teacher {teacher.parameters:,}"))
    if "refine" in stages:
        refine = read_metrics(reports / "refine" / "metrics.json", RefineMetrics)
        if refine.val_gain is None:
            lines.append(("synthetic images", "refused", "see the report"))
        else:
            how = (refine.accepted, refine.val_gain)
            lines.append(_decision("synthetic images", "accepted", *how))
    benchmark = None
    if "benchmark" in stages:
        benchmark = read_metrics(reports / "benchmark" / "metrics.json", BenchmarkMetrics)
    if "export" in stages:
        export = read_metrics(reports / "export" / "metrics.json", ExportMetrics)
        lower, accepted = export.val_calibration_gain, f"temperature {export.temperature:.2f}"
        lines.append(_decision("calibration", accepted, lower.is_shown, lower))
        size = f"{export.auroc:.3f}, {export.bytes / 1e6:.2f} MB"
        other = f"teacher {benchmark.bytes['teacher'] / 1e6:.1f} MB" if benchmark else ""
        lines.append(("shipped model: AUROC, size", size, other))
        if export.auroc_within_groups is not None:
            lines.append((WITHIN, f"{export.auroc_within_groups:.3f}", ""))
    if benchmark:
        torch, ort, student = (
            benchmark.rows[f"{model}_cpu_b1"].p50_ms
            for model in ("teacher_torch", "teacher_ort", "student_ort")
        )
        lines.append(
            (
                "median per image on CPU",
                f"{student:.2f} ms",
                f"teacher in PyTorch {torch:.1f} ms, in ONNX Runtime {ort:.1f} ms",
            )
        )
    if "check" in stages:
        check = read_metrics(reports / "check" / "metrics.json", CheckMetrics)
        passed = sum(gate.passed for gate in check.gates.values())
        lines.append(("gates", f"{passed} of {len(check.gates)} passed", ""))
    return lines


def show(root: Path, stages: Collection[str], message: str) -> None:
    """Print the results of a run in the workspace `root`: those of its stages, and no others."""
    console = Console(highlight=False)
    console.print(message, style="green", markup=False)
    table = Table("", "", "compared with", show_edge=False, box=None, pad_edge=False)
    for row in rows(root / "data" / "reports", stages):
        table.add_row(*map(Text, row))
    if table.row_count:
        console.print(table)
    reports, release = root / "data" / "reports", root / "data" / "release"
    if "check" in stages:
        example = _example(root / load_yaml(root / "params.yaml")["data"]["dir"])
        lines = [
            f"report   {_shell_path(root / REPORT)}",
            f"model    {_shell_path(release / 'model.onnx')}",
            f"try it   .venv/bin/python {_shell_path(release / 'predict.py')} {example}",
        ]
    elif "validate" in stages:
        lines = [f"pictures {_shell_path(reports / 'validate')}"]
    else:
        lines = []
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _shell_path(path: Path) -> str:
    """A path as a user types it in the project's folder."""
    return terminal(shlex.quote(os.path.relpath(path, ROOT)))


def _example(folder: Path) -> str:
    """An image that a user can type; IMAGE if there is none."""
    try:
        names = list_folder(folder).files
    except DataError:  # The folder is gone, or was changed after the run.
        names = []
    images = (n for n in names if n.lower().endswith(READABLE) and n.isprintable())
    name = next(images, None)
    return "IMAGE" if name is None else _shell_path(folder / name)
