"""How fast teacher and student are, by engine, provider, precision and batch size, side by side.

Each engine has a process of its own. The rounds are interleaved, so that a busy moment of the
machine hits every row alike. A provider that is not on this machine is a row that says so. Other
number formats, and the file with evidence, are timed too; on the CPU with single images alone. The
teacher's file is not in git, so a fresh clone has to run the benchmark itself.

Reads:  data/models/onnx/, data/models/refined/, data/models/teacher/, data/validated/
Writes: data/models/teacher.onnx, metrics, pictures
Params: benchmark
Run:    dvc repro benchmark
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import Dataset, load_dataset
from stages.core.nets.files import load_teacher
from stages.core.nets.onnx_export import export
from stages.core.nets.onnx_run import EVIDENCE
from stages.core.results import pictures, report
from stages.core.results.schema.speed import BenchmarkMetrics, Engine, Latency, Load, Model, Start
from stages.core.runner import digest, runtime, stage
from stages.core.runner.errors import Unavailable
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress
from stages.core.runner.runtime import Resources
from stages.core.speed import machine, protocol
from stages.core.speed.engines import Job, ProviderName
from stages.core.speed.picture import latencies
from stages.core.speed.process import Process

FP32 = "fp32"
# Shares of the rate that could be answered without a pause.
LOADS = (0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95)


class Params(Section):
    """Section `benchmark`."""

    engines: list[Engine] = Field(min_length=2)
    batches: list[Annotated[int, Field(ge=1)]]
    threads: list[Annotated[int, Field(ge=1, le=1024)] | None] = Field(min_length=1)
    rounds: int = Field(ge=1, le=100)
    seconds_per_round: float = Field(gt=0, le=60)
    load_seconds: float = Field(ge=0, le=600)
    max_p99_ms: float = Field(gt=0, allow_inf_nan=False)

    @field_validator("batches")
    @classmethod
    def _single_images_too(cls, batches: list[int]) -> list[int]:
        if 1 not in batches:
            raise PydanticCustomError("batches", "expected 1 among them")
        return batches

    @field_validator("engines")
    @classmethod
    def _what_is_compared(cls, engines: list[Engine]) -> list[Engine]:
        if not {"torch", "ort"} <= set(engines):
            raise PydanticCustomError("engines", "expected torch and ort among them")
        return engines


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    teacher: Path = stage.reads()
    refined: Path = stage.reads()
    onnx: Path = stage.reads()
    teacher_onnx: Path = stage.writes()
    metrics: Path = stage.writes()
    latency: Path = stage.writes()
    distribution: Path = stage.writes()
    cache: Path = stage.keeps()


@dataclass(frozen=True)
class Contender:
    """One engine with one model.

    Attributes:
        file: what the engine loads.
        is_usual: whether `threads` is the first number of threads asked for.
    """

    model: Model
    engine: Engine
    provider: ProviderName
    precision: str
    threads: int
    is_usual: bool
    file: Path

    def batches(self, params: Params) -> list[int]:
        """The batch sizes to time: on the CPU, other formats answer single images alone.

        `full` has 37 of them, each in a process that holds what its largest batch needs.
        """
        is_other = self.precision != FP32 and self.provider == "cpu"
        return [1] if is_other else params.batches

    def name(self, batch: int | None = None) -> str:
        """As in the metrics."""
        parts: list[str] = [self.model, self.engine, self.provider]
        parts += [] if batch is None else [f"b{batch}"]
        parts += [] if self.precision == FP32 else [self.precision]
        parts += [] if self.is_usual else [f"t{self.threads}"]
        return "_".join(parts)

    @property
    def words(self) -> str:
        """For people."""
        precision = "" if self.precision == FP32 else f", {self.precision}"
        threads = "" if self.is_usual else f", {self.threads} threads"
        return f"{self.model}, {self.engine}, {self.provider}{precision}{threads}"


# What the ratios are of; without others, there is a row with the reason.
NEEDED: tuple[Engine, ...] = ("torch", "ort")
# What only a GPU runs.
ON_CUDA: tuple[Engine, ...] = ("ort_graph", "tensorrt")


def contenders(params: Params, paths: Paths, all_threads: int) -> list[Contender]:
    """All that there is to time. Other formats are timed in ONNX Runtime, for the student."""
    files = {file.stem: file for file in sorted(paths.onnx.glob("*.onnx"))}
    variants = [name for name in files if name != FP32]
    in_onnx: dict[Model, Path] = {"teacher": paths.teacher_onnx, "student": files[FP32]}
    in_torch: dict[Model, Path] = {"teacher": paths.teacher, "student": paths.refined}
    providers: tuple[ProviderName, ...] = ("cpu", "cuda")
    threads = [number or all_threads for number in params.threads]
    listed = []
    for count, provider in product(threads, providers):
        if provider == "cuda" and count != threads[0]:
            continue
        for model, engine in product(in_onnx, params.engines):
            if engine in ON_CUDA and provider == "cpu":
                continue
            file = (in_torch if engine in ("torch", "compile") else in_onnx)[model]
            usual = count == threads[0]
            listed.append(Contender(model, engine, provider, FP32, count, usual, file))
    listed += [
        Contender("student", "ort", provider, name, threads[0], True, files[name])
        for provider, name in product(providers, variants)
    ]
    return listed


@dataclass(frozen=True)
class Timings:
    """What was measured of one contender, by batch size; one list per round.

    Attributes:
        missing: why nothing was.
    """

    start: Start | None
    rounds: Mapping[int, list[list[float]]]
    computation: Mapping[int, list[float]]
    stable: Mapping[int, bool]
    missing: str = ""


@contextlib.contextmanager
def _running(jobs: Mapping[Contender, Job]) -> Iterator[dict[Contender, Process | str]]:
    """A process for each job, or why there is none; all of them end with this."""
    processes: dict[Contender, Process | str] = {}
    progress = Progress("starting engines", len(jobs))
    try:
        for contender, job in jobs.items():
            try:
                processes[contender] = Process(job)
            except Unavailable as error:
                processes[contender] = str(error)
            progress.step(where=contender.words)
        yield processes
    finally:
        for process in processes.values():
            if isinstance(process, Process):
                process.kill()


def measure(jobs: Mapping[Contender, Job], params: Params) -> dict[Contender, Timings]:
    """Time all contenders, round by round."""
    rounds = {each: {b: list[list[float]]() for b in each.batches(params)} for each in jobs}
    inner = {each: {b: list[float]() for b in each.batches(params)} for each in jobs}
    stable = {each: dict.fromkeys(each.batches(params), True) for each in jobs}
    starts: dict[Contender, Start] = {}
    with _running(jobs) as processes:
        missing = {each: p for each, p in processes.items() if isinstance(p, str)}
        progress = Progress("timing", params.rounds * len(jobs))
        for _, (contender, process) in product(range(params.rounds), processes.items()):
            if not isinstance(process, Process) or contender in missing:
                progress.step()
                continue
            try:
                for batch in contender.batches(params):
                    answer = process.ask(batch=batch, seconds=params.seconds_per_round)
                    rounds[contender][batch].append(answer["latencies_ms"])
                    inner[contender][batch] += answer["computation_ms"]
                    stable[contender][batch] &= answer["is_stable"]
            except Unavailable as error:
                missing[contender] = str(error)
            progress.step(where=contender.words)
        for contender, process in processes.items():
            if isinstance(process, Process) and contender not in missing:
                starts[contender] = Start(**process.first)
    return {
        each: Timings(
            starts.get(each), rounds[each], inner[each], stable[each], missing.get(each, "")
        )
        for each in jobs
    }


def row(contender: Contender, batch: int, timings: Timings) -> Latency:
    """One row of the table."""
    known: dict[str, Any] = {
        "model": contender.model,
        "engine": contender.engine,
        "provider": contender.provider,
        "precision": contender.precision,
        "batch": batch,
        "threads": contender.threads,
    }
    if timings.missing:
        return Latency(**known, unavailable=timings.missing)
    rounds = timings.rounds[batch]
    together = [latency for each in rounds for latency in each]
    figures: dict[str, Any] = protocol.percentiles(together)
    if timings.computation[batch]:
        figures["computation_ms"] = float(np.median(timings.computation[batch]))
    return Latency(
        **known,
        calls=len(together),
        **figures,
        images_per_s=batch / figures["p50_ms"] * 1e3,
        rounds_ms={str(n): float(np.median(each)) for n, each in enumerate(rounds, 1)},
        spread=protocol.spread(rounds),
        is_stable=timings.stable[batch],
    )


def under_load(job: Job, p50_ms: float, seconds: float) -> dict[str, Load]:
    """Latency against load, by the rate as a share of 1 / p50."""
    process = Process(job)
    progress = Progress("load", len(LOADS))
    points = {}
    try:
        for number, share in enumerate(LOADS):
            rate = share / p50_ms * 1e3
            answer = process.ask(rate=rate, seconds=seconds, seed=number)
            p50, p99, most = np.percentile(answer["latencies_ms"], [50, 99, 100]).tolist()
            points[f"{share:g}"] = Load(
                rate=rate,
                images=len(answer["latencies_ms"]),
                p50_ms=p50,
                p99_ms=p99,
                max_ms=most,
            )
            progress.step(where=f"{rate:.0f} images per second")
    finally:
        process.kill()
    return points


def speed_ups(median_ms: Mapping[str, float], batches: list[int]) -> dict[str, float]:
    """The student in ONNX Runtime over the teacher, by engine and batch size."""
    return {
        f"student_ort_over_teacher_{engine}_b{batch}": median_ms[f"teacher_{engine}_cpu_b{batch}"]
        / median_ms[f"student_ort_cpu_b{batch}"]
        for batch in batches
        for engine in ("torch", "ort")
    }


def jobs_for(
    listed: list[Contender], params: Params, paths: Paths, data: Dataset
) -> dict[Contender, Job]:
    """What each contender's process is told; writes the images that they are timed on."""
    paths.scratch.mkdir(parents=True, exist_ok=True)
    images = paths.scratch / "images.npz"
    inputs = data.model_inputs(np.resize(data.rows("test"), max(params.batches)))
    np.savez(images, *inputs)
    # What an engine was built by and for.
    software = hashlib.md5(f"{machine.description()}{runtime.device_name()}".encode()).hexdigest()
    return {
        each: Job(
            engine=each.engine,
            provider=each.provider,
            model=each.file,
            background=data.rules.background,
            threads=each.threads,
            images=images,
            cache=paths.cache / f"{digest.md5(each.file)}-{software}",
        )
        for each in listed
    }


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Time everything, write the rows and the ratios that the check stage looks at."""
    data = load_dataset(paths.validated)
    teacher, background = load_teacher(paths.teacher), data.rules.background
    export(teacher, paths.teacher_onnx, temperature=1.0, metadata={}, background=background)
    listed = contenders(params, paths, runtime.threads(resources))
    jobs = jobs_for(listed, params, paths, data)
    timings = measure(jobs, params)
    rows = {
        each.name(batch): row(each, batch, timings[each])
        for each in listed
        for batch in each.batches(params)
    }
    for each in listed:
        is_needed = each.engine in NEEDED and each.provider == "cpu" and each.precision == FP32
        if is_needed and each.is_usual and timings[each].missing:
            raise Unavailable(f"{each.words}: {timings[each].missing}; the gates need its time")
    median_ms = {name: each.p50_ms for name, each in rows.items() if each.p50_ms is not None}
    per_image = {
        f"{each.words}, batch {batch}": median_ms[each.name(batch)] / batch
        for each in listed
        for batch in each.batches(params)
        if each.name(batch) in median_ms
    }
    pictures.bars(paths.latency, per_image, label="median ms per image")
    single = {
        each.words: np.sort(np.concatenate(timings[each].rounds[1]))
        for each in listed
        if not timings[each].missing and each.precision in (FP32, EVIDENCE)
    }
    load: dict[str, Load] = {}
    usual = next(each for each in listed if each.name() == "student_ort_cpu")
    if params.load_seconds and not timings[usual].missing:
        load = under_load(jobs[usual], median_ms[usual.name(1)], params.load_seconds)
    against_load = [(p.rate, p.p50_ms, p.p99_ms) for p in load.values()]
    latencies(paths.distribution, single, against_load, params.max_p99_ms)
    kept = [point.rate for point in load.values() if point.p99_ms <= params.max_p99_ms]
    report.write_metrics(
        paths.metrics,
        BenchmarkMetrics(
            threads=usual.threads,
            device=runtime.device_name(),
            machine=machine.description(),
            speed_up=speed_ups(median_ms, params.batches),
            bytes={
                "student": usual.file.stat().st_size,
                "teacher": paths.teacher_onnx.stat().st_size,
            },
            starts={each.name(): t.start for each, t in timings.items() if t.start is not None},
            rows=rows,
            load=load,
            highest_rate=max(kept, default=None),
        ),
    )


if __name__ == "__main__":
    stage.main("benchmark", Params, Paths, run)
