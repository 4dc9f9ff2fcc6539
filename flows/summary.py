"""The end of a run: a short table of results, and where everything lies."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows import ROOT
from stages.core.intake.sources import EXTENSIONS
from stages.core.runner.params import load_yaml


def _gain(gain: dict[str, float]) -> str:
    return f"{gain['gain']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def rows(metrics: dict[str, dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What, how much and compared with what; from every stage's metrics by its name."""
    teacher, distill, export = metrics["teacher"], metrics["distill"], metrics["export"]
    refine, benchmark, check = metrics["refine"], metrics["benchmark"], metrics["check"]
    fast = benchmark["rows"]["student_ort_cpu_b1"]["p50_ms"]
    passed = sum(gate["passed"] for gate in check["gates"].values())
    return [
        (
            "teacher, fine-tuned: AUROC",
            f"{teacher['finetuned']['auroc']:.3f}",
            f"linear probe {teacher['probe']['auroc']:.3f}",
        ),
        (
            "student: AUROC",
            f"{distill['student']['auroc']:.3f}",
            f"without teacher {distill['control']['auroc']:.3f}, "
            f"gain {_gain(distill['gain_over_control'])}",
        ),
        (
            "student: parameters",
            f"{distill['parameters']:,}",
            f"teacher {teacher['parameters']:,}",
        ),
        (
            "synthetic images",
            "accepted" if refine["accepted"] else "left out",
            f"validation {refine['val_auroc']['synthetic']:.3f}, "
            f"real alone {refine['val_auroc']['real']:.3f}",
        ),
        (
            "shipped model: AUROC, size",
            f"{export['auroc']:.3f}, {export['bytes'] / 1e6:.2f} MB",
            f"teacher {benchmark['bytes']['teacher'] / 1e6:.1f} MB",
        ),
        (
            "an image on CPU, median",
            f"{fast:.2f} ms",
            f"teacher in PyTorch {benchmark['rows']['teacher_torch_cpu_b1']['p50_ms']:.1f} ms, "
            f"in ONNX Runtime {benchmark['rows']['teacher_ort_cpu_b1']['p50_ms']:.1f} ms",
        ),
        ("gates", f"{passed} of {len(check['gates'])} passed", ""),
    ]


def show(root: Path, message: str) -> None:
    """Print the results of the workspace `root`."""
    console = Console(highlight=False)
    console.print(message, style="green")
    reports = root / "data" / "reports"
    metrics = {p.parent.name: json.loads(p.read_text()) for p in reports.glob("*/metrics.json")}
    if "check" not in metrics:
        return
    table = Table("", "", "compared with", show_edge=False, box=None, pad_edge=False)
    for row in rows(metrics):
        table.add_row(*row)
    console.print(table)
    here = root.relative_to(ROOT) if root != ROOT else Path()
    release = here / "data" / "release"
    folder = root / load_yaml(root / "params.yaml")["data"]["dir"]
    images = (p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS)
    example = next((p.relative_to(ROOT) for p in images), Path("IMAGE"))
    console.print(f"report   {here / 'data' / 'reports' / 'index.html'}", soft_wrap=True)
    console.print(f"model    {release / 'model.onnx'}", soft_wrap=True)
    console.print(f"try it   .venv/bin/python {release / 'predict.py'} {example}", soft_wrap=True)
