"""How fast teacher and student are, by engine, provider and batch size, side by side.

The rounds are interleaved, so that a busy moment of the machine hits every row alike. A provider
that is not on this machine is a row that says so. The teacher's file is an output that git does not
bring, so that a fresh clone measures itself instead of taking the committed figures for its own.

Reads:  data/models/onnx/, data/models/refined/, data/models/teacher/, data/validated/
Writes: data/models/teacher.onnx, metrics, a picture
Params: benchmark
Run:    dvc repro benchmark
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import BackgroundKind, Dataset, load_dataset
from stages.core.nets.net import AnyNet, load_net, load_teacher
from stages.core.nets.onnx_export import export, released
from stages.core.nets.onnx_run import Inputs, Provider, feed, session
from stages.core.results import pictures, report
from stages.core.results.schema import BenchmarkMetrics, Engine, Latency, Model
from stages.core.runner import runtime, stage
from stages.core.runner.errors import Unavailable
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress
from stages.core.runner.runtime import Resources


class Params(Section):
    """Section `benchmark`."""

    batches: list[Annotated[int, Field(ge=1)]]
    rounds: int = Field(ge=1, le=100)
    seconds_per_round: float = Field(gt=0, le=60)
    warm_up: int = Field(ge=0, le=1000)

    @field_validator("batches")
    @classmethod
    def _single_images_too(cls, batches: list[int]) -> list[int]:
        if 1 not in batches:
            raise PydanticCustomError("batches", "expected 1 among them")
        return batches


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


Run = Callable[[Inputs], object]


@dataclass(frozen=True)
class Contender:
    """One engine with one model on one provider; `start` makes it ready to take uint8 batches."""

    model: Model
    engine: Engine
    provider: Provider
    start: Callable[[], Run]


def torch_engine(
    load: Callable[[], AnyNet], background: BackgroundKind | None, provider: Provider
) -> Run:
    """PyTorch, eager. Raises: Unavailable."""
    if provider == "cuda" and not torch.cuda.is_available():
        raise Unavailable("PyTorch finds no CUDA device")
    device = torch.device(provider)
    net = released(load(), 1.0, background).to(device)

    def run(inputs: Inputs) -> object:
        with torch.inference_mode():
            # Back to the CPU, as the other engine's answer: the copy waits for the device.
            return net(*(torch.from_numpy(values).to(device) for values in inputs)).cpu()

    return run


def ort_engine(model: Path, provider: Provider, threads: int) -> Run:
    """ONNX Runtime. Raises: Unavailable."""
    running = session(model, provider, threads=threads)
    return lambda inputs: running.run(None, feed(inputs))


def time_round(run: Run, inputs: Inputs, seconds: float) -> list[float]:
    """Latencies in milliseconds of at least 5 calls, for about `seconds`."""
    latencies_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(latencies_ms) < 5 or time.perf_counter() < end:
        start = time.perf_counter()
        run(inputs)
        latencies_ms.append((time.perf_counter() - start) * 1e3)
    return latencies_ms


def measure(contenders: list[Contender], data: Dataset, params: Params) -> dict[str, Latency]:
    """One row for each contender and batch size."""
    test = data.rows("test")
    inputs = {
        b: tuple(np.ascontiguousarray(values) for values in data.model_inputs(np.resize(test, b)))
        for b in params.batches
    }
    times: dict[tuple[Contender, int], list[float]] = {}
    missing: dict[Contender, str] = {}
    progress = Progress("timing", params.rounds * len(contenders))
    for _ in range(params.rounds):
        for contender in contenders:
            try:
                run = contender.start()
            except Unavailable as error:
                missing[contender] = str(error)
                progress.step()
                continue
            for batch, values in inputs.items():
                for _ in range(params.warm_up):
                    run(values)
                latencies_ms = time_round(run, values, params.seconds_per_round)
                times.setdefault((contender, batch), []).extend(latencies_ms)
            progress.step(where=f"{contender.model} {contender.engine} {contender.provider}")
    rows = {}
    for contender in contenders:
        for batch in params.batches:
            name = f"{contender.model}_{contender.engine}_{contender.provider}_b{batch}"
            figures: dict[str, Any] = (
                {"unavailable": missing[contender]}
                if contender in missing
                else percentiles(times[contender, batch], batch)
            )
            rows[name] = Latency(
                model=contender.model,
                engine=contender.engine,
                provider=contender.provider,
                precision="fp32",
                batch=batch,
                **figures,
            )
    return rows


def percentiles(latencies_ms: list[float], batch: int) -> dict[str, float]:
    """Figures of `Latency` over all calls, none left out; throughput from the median."""
    p50, p90, p99 = np.percentile(latencies_ms, [50, 90, 99])
    return {
        "calls": len(latencies_ms),
        "p50_ms": float(p50),
        "p90_ms": float(p90),
        "p99_ms": float(p99),
        "images_per_s": float(batch / p50 * 1e3),
    }


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Time everything, write the rows and the ratios that the check stage looks at."""
    data = load_dataset(paths.validated)
    threads = runtime.threads(resources)
    nets: dict[str, Callable[[], AnyNet]] = {
        "teacher": partial(load_teacher, paths.teacher),
        "student": partial(load_net, paths.refined),
    }
    files = {"student": paths.onnx / "fp32.onnx", "teacher": paths.teacher_onnx}
    teacher, background = load_teacher(paths.teacher), data.rules.background
    export(teacher, files["teacher"], temperature=1.0, metadata={}, background=background)

    providers: tuple[Provider, ...] = ("cpu", "cuda")
    models: tuple[Model, ...] = ("teacher", "student")
    contenders = []
    for provider in providers:
        for model in models:
            in_torch = partial(torch_engine, nets[model], background, provider)
            in_ort = partial(ort_engine, files[model], provider, threads)
            contenders += [
                Contender(model, "torch", provider, in_torch),
                Contender(model, "ort", provider, in_ort),
            ]
    rows = measure(contenders, data, params)

    median_ms = {name: row.p50_ms for name, row in rows.items() if row.p50_ms is not None}

    def ratio(slow: str, fast: str) -> float:
        return median_ms[slow] / median_ms[fast]

    speed_up = {}
    for batch in params.batches:
        fast = f"student_ort_cpu_b{batch}"
        speed_up[f"student_ort_over_teacher_torch_b{batch}"] = ratio(
            f"teacher_torch_cpu_b{batch}", fast
        )
        speed_up[f"student_ort_over_teacher_ort_b{batch}"] = ratio(
            f"teacher_ort_cpu_b{batch}", fast
        )
    per_image = {
        f"{row.model}, {row.engine}, {row.provider}, batch {row.batch}": median_ms[name] / row.batch
        for name, row in rows.items()
        if name in median_ms
    }
    pictures.bars(paths.latency, per_image, label="median ms per image")
    report.write_metrics(
        paths.metrics,
        BenchmarkMetrics(
            threads=threads,
            device=runtime.device_name(),
            speed_up=speed_up,
            bytes={name: file.stat().st_size for name, file in files.items()},
            rows=rows,
        ),
    )


if __name__ == "__main__":
    stage.main("benchmark", Params, Paths, run)
