"""Is the model good enough to ship? Gates, the release folder, and the report that people read.

Reads:  data/reports/STAGE/ of every stage before, data/models/onnx/
Writes: data/release/ (model.onnx, labels.json, MODEL_CARD.md, predict.py), data/reports/index.html,
        metrics; report and metrics are written also when a gate fails
Params: check
Run:    dvc repro check
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from stages.core.release import page, predict
from stages.core.results import report
from stages.core.runner import stage
from stages.core.runner.errors import GateFailed
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources


class Params(Section):
    """Section `check`: the gates."""

    min_auroc: float = Field(ge=0, le=1)
    min_finetuning_gain: float = Field(ge=-1, le=1)
    min_retention: float = Field(ge=0, le=2)
    min_gain_over_control: float = Field(ge=-1, le=1)
    max_parameter_share: float = Field(gt=0, le=1)
    max_parity: float = Field(ge=0, le=1)
    max_decisions_changed: int = Field(ge=0)
    max_megabytes: float = Field(gt=0)
    min_speed_up: float = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validate: Path = stage.reads()
    teacher: Path = stage.reads()
    targets: Path = stage.reads()
    distill: Path = stage.reads()
    augment: Path = stage.reads()
    refine: Path = stage.reads()
    export: Path = stage.reads()
    benchmark: Path = stage.reads()
    onnx: Path = stage.reads()
    release: Path = stage.writes()
    page: Path = stage.writes(even_on_failure=True)
    metrics: Path = stage.writes(even_on_failure=True)


REPORTS = (
    "validate", "teacher", "targets", "distill", "augment", "refine", "export", "benchmark",
)  # fmt: skip


def at_least(value: float, limit: float) -> dict[str, Any]:
    """A gate that needs a value of `limit` or more; `margin` is what is to spare."""
    margin = value - limit
    return {"value": value, "limit": limit, "margin": margin, "passed": margin >= 0}


def at_most(value: float, limit: float) -> dict[str, Any]:
    """A gate that needs a value of `limit` or less."""
    margin = limit - value
    return {"value": value, "limit": limit, "margin": margin, "passed": margin >= 0}


def gates(params: Params, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Every gate by name, from the metrics of each stage by its name."""
    teacher, distill, export = found["teacher"], found["distill"], found["export"]
    speed = found["benchmark"]["speed_up"]["student_ort_over_teacher_torch_b1"]
    shipped = export["auroc"]
    return {
        "auroc": at_least(shipped, params.min_auroc),
        "finetuning_gain": at_least(
            teacher["finetuned"]["auroc"] - teacher["probe"]["auroc"], params.min_finetuning_gain
        ),
        "retention": at_least(shipped / teacher["finetuned"]["auroc"], params.min_retention),
        "gain_over_control_low": at_least(
            distill["gain_over_control"]["low"], params.min_gain_over_control
        ),
        "parameter_share": at_most(
            distill["parameters"] / teacher["parameters"], params.max_parameter_share
        ),
        "parity_max_abs": at_most(export["parity"]["max_abs"], params.max_parity),
        "decisions_changed": at_most(
            export["parity"]["decisions_changed"], params.max_decisions_changed
        ),
        "megabytes": at_most(export["bytes"] / 1e6, params.max_megabytes),
        "speed_up": at_least(speed, params.min_speed_up),
    }


def release(paths: Paths, found: dict[str, dict[str, Any]], checked: dict[str, Any]) -> None:
    """Write the folder that is handed on."""
    paths.release.mkdir()
    shutil.copyfile(paths.onnx / "fp32.onnx", paths.release / "model.onnx")
    shutil.copyfile(Path(predict.__file__), paths.release / "predict.py")
    classes = list(found["export"]["calibrated"]["recall"])
    (paths.release / "labels.json").write_text(json.dumps(classes, indent=1) + "\n")
    (paths.release / "MODEL_CARD.md").write_text(page.model_card(found, checked))


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Judge, report, release. Raises: GateFailed, after report and metrics are written."""
    folders = {name: getattr(paths, name) for name in REPORTS}
    found = {name: report.read_metrics(f / "metrics.json") for name, f in folders.items()}
    judged = gates(params, found)
    failed = [name for name, gate in judged.items() if not gate["passed"]]
    checked = {"passed": not failed, "gates": judged}
    for name, gate in judged.items():
        print(
            f"{'passed' if gate['passed'] else 'FAILED'}  {name}: {gate['value']:.4g} "
            f"(limit {gate['limit']:.4g}, margin {gate['margin']:+.4g})",
            flush=True,
        )
    report.write_metrics(paths.metrics, checked)
    paths.page.write_text(page.report_page(folders, found, checked))
    if failed:
        raise GateFailed(
            "; ".join(
                f"{name} = {judged[name]['value']:.4g}, limit {judged[name]['limit']:.4g}, "
                f"margin {judged[name]['margin']:+.4g}"
                for name in failed
            )
        )
    release(paths, found, checked)


if __name__ == "__main__":
    stage.main("check", Params, Paths, run)
