"""The metrics of every stage, each by the class that says what stands in its metrics.json."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from stages.core.results.report import read_metrics
from stages.core.results.schema.base import Metrics
from stages.core.results.schema.data import IngestMetrics, ValidateMetrics
from stages.core.results.schema.shipped import ExportMetrics
from stages.core.results.schema.speed import BenchmarkMetrics
from stages.core.results.schema.synthetic import AugmentMetrics, RefineMetrics
from stages.core.results.schema.training import DistillMetrics, TargetsMetrics, TeacherMetrics
from stages.core.results.schema.verdict import CheckMetrics

SCHEMA: dict[str, type[Metrics]] = {
    "ingest": IngestMetrics,
    "validate": ValidateMetrics,
    "teacher": TeacherMetrics,
    "targets": TargetsMetrics,
    "distill": DistillMetrics,
    "augment": AugmentMetrics,
    "refine": RefineMetrics,
    "export": ExportMetrics,
    "benchmark": BenchmarkMetrics,
    "check": CheckMetrics,
}


@dataclass(frozen=True)
class Reports:
    """The metrics of all stages that the check stage judges."""

    validate: ValidateMetrics
    teacher: TeacherMetrics
    targets: TargetsMetrics
    distill: DistillMetrics
    augment: AugmentMetrics
    refine: RefineMetrics
    export: ExportMetrics
    benchmark: BenchmarkMetrics


STAGES = tuple(field.name for field in fields(Reports))


def read_reports(folders: Mapping[str, Path]) -> Reports:
    """The metrics in the folders of `STAGES`. Raises: DataError."""
    each: dict[str, Any] = {
        name: read_metrics(folders[name] / "metrics.json", SCHEMA[name]) for name in STAGES
    }
    return Reports(**each)
