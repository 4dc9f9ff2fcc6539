"""Is the model good enough to ship? Gates, the release folder, and the report that people read.

Reads:  data/reports/STAGE/ of every stage before, data/models/onnx/, data/accepted.json (the model
        in use)
Writes: data/release/ (model.onnx, evidence.onnx, other formats that earned their place,
        labels.json, MODEL_CARD.md, predict.py, metrics.json, and manifest.json with their hashes),
        data/reports/index.html, metrics. When a gate fails, report and metrics say so, and
        data/release/ stays as it was
Params: check
Run:    dvc repro check
"""

import hashlib
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

from pydantic import Field

from stages.core.release import page, predict
from stages.core.release.page import Parts
from stages.core.results import every_stage, report
from stages.core.results.champion import History, compare
from stages.core.results.every_stage import Reports
from stages.core.results.gates import (
    CHAMPION,
    at_least,
    at_most,
    meaning,
    not_below,
    shortfall,
    surely,
)
from stages.core.results.schema.shipped import Disturbed, Promise, VariantOn
from stages.core.results.schema.speed import Provider
from stages.core.results.schema.verdict import CheckMetrics, Gate, Offer
from stages.core.runner import stage
from stages.core.runner.errors import GateFailed, ParamsError
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources


class Params(Section):
    """Section `check`: the gates."""

    min_auroc: float = Field(ge=0, le=1)
    min_auroc_within_groups: float | None = Field(ge=0, le=1)
    min_recall: dict[str, Annotated[float, Field(ge=0, le=1)]]
    min_worst_group_accuracy: float | None = Field(ge=0, le=1)
    max_ece: float = Field(ge=0, le=1)
    max_asked: float | None = Field(ge=0, le=1)
    min_promise_margin: float | None = Field(ge=-1, le=1)
    min_finetuning_gain: float = Field(ge=-1, le=1)
    min_gain_over_teacher: float = Field(ge=-1, le=1)
    min_gain_over_control: float = Field(ge=-1, le=1)
    min_gain_over_control_within_groups: float | None = Field(ge=-1, le=1)
    min_gain_under: dict[Disturbed, Annotated[float, Field(ge=-1, le=1)]]
    min_gain_over_champion: float | None = Field(ge=-1, le=1)
    max_parameter_share: float = Field(gt=0, le=1)
    max_parity: float = Field(ge=0, le=1)
    max_decisions_changed: int = Field(ge=0)
    max_megabytes: float = Field(gt=0)
    min_speed_up: float = Field(ge=0, allow_inf_nan=False)
    min_variant_speed_up: float = Field(ge=0, allow_inf_nan=False)
    max_variant_loss: float = Field(ge=0, le=1)


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
    accepted: Path = stage.reads()
    release: Path = stage.writes()
    page: Path = stage.writes(even_on_failure=True)
    metrics: Path = stage.writes(even_on_failure=True)


# Headroom in suggested limits: latencies differ between machines and nights.
HEADROOM, SPEED_MARGIN = 0.25, 0.5
# Classes that the report offers gates for, those recalled least.
MOST_CLASSES = 6
PROVIDERS: tuple[Provider, ...] = get_args(Provider)


def within_groups(params: Params, reports: Reports) -> dict[str, Gate]:
    """The gates on figures within groups: those that are set, where there are groups enough.

    Without an interval, a single pair of images could fail a sound model.
    """
    export, gain = reports.export, reports.distill.gain_over_control.within_groups
    auroc, over_chance = export.auroc_within_groups, export.gain_over_chance.within_groups
    by_name = {}
    if auroc is not None and over_chance is not None and over_chance.low is not None:
        limit = params.min_auroc_within_groups
        if limit is not None:
            suggested = surely(over_chance)
            by_name["auroc_within_groups"] = at_least(auroc, limit, suggested=suggested)
    limit = params.min_gain_over_control_within_groups
    if gain is not None and gain.low is not None and limit is not None:
        by_name["gain_over_control_within_groups"] = not_below(gain, limit)
    return by_name


def lenient(share: float) -> float:
    """A limit below a share of right answers: with HEADROOM for more wrong ones, rounded down."""
    return max(math.floor(100 - 100 * (1 - share) * (1 + HEADROOM)) / 100, 0.0)


def void_gates(params: Params, reports: Reports) -> str:
    """What is wrong with gates that have nothing to look at, or ""."""
    recall = reports.export.calibrated.recall
    if params.max_asked is not None and reports.export.operating_point is None:
        return (
            f"check.max_asked = {params.max_asked:g}: export.operating_point is null, so no image "
            "is left to a person; set both or none"
        )
    if unknown := sorted(params.min_recall.keys() - recall.keys()):
        return (
            f"check.min_recall: {', '.join(unknown)}: no such class; there are "
            f"{', '.join(list(recall)[:20])}"
        )
    return ""


def recalls(params: Params, recall: dict[str, float]) -> dict[str, Gate]:
    """The gates on single classes, for those that are there; see `void_gates`."""
    return {
        f"recall {name}": at_least(recall[name], limit, suggested=lenient(recall[name]))
        for name, limit in params.min_recall.items()
        if name in recall
    }


def worst_group(params: Params, parts: Parts) -> dict[str, Gate]:
    """The gate on the least accurate group, if it is set and a group is large enough."""
    accuracies = page.group_accuracies(parts)
    if params.min_worst_group_accuracy is None or not accuracies:
        return {}
    worst, limit = accuracies[0], params.min_worst_group_accuracy
    return {"worst_group_accuracy": at_least(worst, limit, suggested=lenient(worst))}


def promised(params: Params, point: Promise | None) -> dict[str, Gate]:
    """The gates on an operating point, if there is one: those that are set.

    Where a promise has no interval, a single image could fail a sound model.
    """
    if point is None:
        return {}
    by_name = {}
    if params.max_asked is not None:
        share = point.test.asked
        suggested = min(share * (1 + HEADROOM), 1.0)
        by_name["asked"] = at_most(share, params.max_asked, suggested=suggested)
    margins = {
        "recall_margin": point.recall_margin,
        "false_alarm_margin": point.false_alarm_margin,
    }
    for name, margin in margins.items():
        limit = params.min_promise_margin
        if limit is not None and margin is not None and margin.low is not None:
            by_name[name] = not_below(margin, limit)
    return by_name


def robustness(params: Params, reports: Reports) -> dict[str, Gate]:
    """The gates on images to which something has happened: those that are set."""
    gains = reports.export.robustness
    return {
        f"under {kind}": not_below(gains[kind], limit, suggested=gains[kind].low)
        for kind, limit in params.min_gain_under.items()
    }


def over_champion(params: Params, history: History) -> dict[str, Gate]:
    """The gate on the gain over the model in use, where both saw the same test split."""
    if params.min_gain_over_champion is None or history.gain is None:
        return {}
    return {CHAMPION: not_below(history.gain, params.min_gain_over_champion)}


def gates(params: Params, reports: Reports, parts: Parts, history: History) -> dict[str, Gate]:
    """Every gate by name."""
    teacher, distill, export = reports.teacher, reports.distill, reports.export
    speed = reports.benchmark.speed_up["student_ort_over_teacher_torch_b1"]
    megabytes, share = export.bytes / 1e6, distill.parameters / teacher.parameters
    ece = export.calibrated.ece
    return {
        "auroc": at_least(
            export.auroc, params.min_auroc, suggested=surely(export.gain_over_chance)
        ),
        **recalls(params, export.calibrated.recall),
        **worst_group(params, parts),
        **promised(params, export.operating_point),
        "ece": at_most(ece, params.max_ece, suggested=ece * (1 + HEADROOM)),
        "finetuning_gain": not_below(teacher.finetuning_gain, params.min_finetuning_gain),
        "gain_over_teacher": not_below(export.gain_over_teacher, params.min_gain_over_teacher),
        "gain_over_control": not_below(distill.gain_over_control, params.min_gain_over_control),
        **within_groups(params, reports),
        **robustness(params, reports),
        **over_champion(params, history),
        "parameter_share": at_most(
            share, params.max_parameter_share, suggested=share * (1 + HEADROOM)
        ),
        "parity_max_abs": at_most(
            max(export.parity.max_abs, export.evidence_parity.max_abs), params.max_parity
        ),
        "decisions_changed": at_most(
            max(export.parity.decisions_changed, export.evidence_parity.decisions_changed),
            params.max_decisions_changed,
        ),
        "megabytes": at_most(megabytes, params.max_megabytes, suggested=megabytes * (1 + HEADROOM)),
        "speed_up": at_least(speed, params.min_speed_up, suggested=speed * (1 - SPEED_MARGIN)),
    }


def unset_gates(
    params: Params, reports: Reports, parts: Parts, history: History
) -> dict[str, Gate]:
    """The gates that could be set and are not, by name, with any limit: what they would check."""
    limits: dict[str, Any] = {name: 0.0 for name, limit in params if limit is None}
    if not params.min_recall:
        recall = reports.export.calibrated.recall
        least = sorted(recall, key=recall.__getitem__)[:MOST_CLASSES]
        limits["min_recall"] = dict.fromkeys(least, 0.0)
    if not params.min_gain_under:
        limits["min_gain_under"] = dict.fromkeys(get_args(Disturbed), 0.0)
    known = gates(params, reports, parts, history)
    every = gates(params.model_copy(update=limits), reports, parts, history)
    return {name: gate for name, gate in every.items() if name not in known}


def _too_much_lost(params: Params, variant: VariantOn) -> str:
    """Why another format may not ship, if so: what it loses, or a gate that it fails itself."""
    lost, split = max((variant.val_loss, "validation"), (variant.loss, "test"))
    limit = f"check.max_variant_loss is {params.max_variant_loss:g}"
    if lost > params.max_variant_loss:
        return f"its accuracy on the {split} split is lower by {lost:.4f}; {limit}"
    if not not_below(variant.gain, -params.max_variant_loss).passed:
        return f"its AUROC on the test split changes by {variant.gain}; {limit}"
    own = recalls(params, variant.recall) | promised(params, variant.operating_point)
    return "; ".join(shortfall(name, gate) for name, gate in own.items() if not gate.passed)


def _why_not(params: Params, variant: VariantOn | None, speed_up: float | None) -> str:
    """Why another format may not ship for a provider, if so."""
    if variant is None:
        return "its answers there were not measured"
    if reason := _too_much_lost(params, variant):
        return reason
    if speed_up is None:
        return "it could not be timed"
    if speed_up < params.min_variant_speed_up:
        return (
            f"it is {speed_up:.2f} times as fast as float32; "
            f"check.min_variant_speed_up is {params.min_variant_speed_up:g}"
        )
    return ""


def offers(params: Params, reports: Reports) -> dict[str, Offer]:
    """Which other formats ship: for each provider the fastest of those that lose little there.

    A format has to lose little on the validation split, which chooses, and on the test split.
    """
    export = reports.export
    judged = [
        Offer(
            precision=name, provider="cpu", speed_up=None, val_loss=None, file=None,
            reason=f"not written: {reason}",
        )
        for name, reason in export.failed_variants.items()
    ]  # fmt: skip
    for provider in PROVIDERS:
        first: Offer | None = None
        for name, variant in export.variants.items():
            speed_up = reports.benchmark.variant_speed_ups(name).get(provider)
            answers = variant.on.get(provider)
            if speed_up is None and (answers is None or provider != "cpu"):
                continue
            reason = _why_not(params, answers, speed_up)
            offer = Offer(
                precision=name,
                provider=provider,
                speed_up=speed_up,
                val_loss=None if answers is None else answers.val_loss,
                file=None,
                reason=reason or "another is faster",
            )
            judged.append(offer)
            if not reason and (first is None or (speed_up or 0) > (first.speed_up or 0)):
                first = offer
        if first is not None:
            short = first.precision.partition("_")[0]
            shipped = {"file": f"model_{short}_{provider}.onnx", "reason": ""}
            judged[judged.index(first)] = first.model_copy(update=shipped)
    return {f"{offer.precision}_{offer.provider}": offer for offer in judged}


def release(paths: Paths, reports: Reports, parts: Parts, verdict: CheckMetrics) -> None:
    """Write the folder that is handed on."""
    paths.release.mkdir()
    shutil.copyfile(paths.onnx / "fp32.onnx", paths.release / "model.onnx")
    shutil.copyfile(paths.onnx / "evidence.onnx", paths.release / "evidence.onnx")
    for offer in verdict.offers.values():
        if offer.file is not None:
            shutil.copyfile(paths.onnx / f"{offer.precision}.onnx", paths.release / offer.file)
    shutil.copyfile(Path(predict.__file__), paths.release / "predict.py")
    classes = list(reports.export.calibrated.recall)
    (paths.release / "labels.json").write_text(
        json.dumps(classes, indent=1) + "\n", encoding="utf-8"
    )
    of_itself = {name: gate for name, gate in verdict.gates.items() if name != CHAMPION}
    (paths.release / "MODEL_CARD.md").write_text(
        page.model_card(reports, parts, of_itself, verdict.offers), encoding="utf-8"
    )
    shutil.copyfile(paths.export / "metrics.json", paths.release / "metrics.json")
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(paths.release.iterdir())
    }
    (paths.release / "manifest.json").write_text(json.dumps({"sha256": hashes}, indent=1) + "\n")


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Judge, report, release.

    Raises: ParamsError for a gate that has nothing to look at; GateFailed. Report and metrics
    are written before.
    """
    folders = {name: getattr(paths, name) for name in every_stage.STAGES}
    reports = every_stage.read_reports(folders)
    parts = page.read_parts(paths.export)
    history = compare(paths.accepted, paths.export / "predictions.csv", reports.export.test_files)
    verdicts = gates(params, reports, parts, history)
    failed = [name for name, gate in verdicts.items() if not gate.passed]
    void = void_gates(params, reports)
    verdict = CheckMetrics(
        passed=not (failed or void), gates=verdicts, offers=offers(params, reports)
    )
    for name, gate in verdicts.items():
        print(
            f"{gate.verdict:<8}{name}: {gate.value:.4g} "
            f"(limit {gate.limit:.4g}, margin {gate.margin:+.4g})",
            flush=True,
        )
    report.write_metrics(paths.metrics, verdict)
    advice = {name: meaning(name).advice for name in failed}
    unset = unset_gates(params, reports, parts, history)
    paths.page.write_text(
        page.report_page(folders, reports, parts, history, verdict, advice, unset, void),
        encoding="utf-8",
    )
    if void:
        raise ParamsError(void)
    if failed:
        raise GateFailed(
            f"{'; '.join(shortfall(name, verdicts[name]) for name in failed)}. No release was "
            "written, and an earlier one stays; the report shows what the model does. Train it "
            "better, or change the limit in params.yaml"
        )
    release(paths, reports, parts, verdict)


if __name__ == "__main__":
    stage.main("check", Params, Paths, run)
