"""The metrics of the benchmark stage."""

from typing import Literal, get_args

from pydantic import Field

from stages.core.results.schema.base import Metrics

Model = Literal["teacher", "student"]
Engine = Literal["torch", "compile", "ort", "ort_graph", "tensorrt"]
Provider = Literal["cpu", "cuda"]

# Above this `Latency.spread`, something else was busy.
NOISY = 0.1


class Latency(Metrics):
    """One model, engine, provider, precision, batch size and number of threads.

    Attributes:
        calls: how many were timed.
        p50_ms, p90_ms, p95_ms, p99_ms, p999_ms, max_ms: percentiles of a call's time, from arrays
            in memory to the answer in memory; no call is left out.
        computation_ms: median without copies between host and device; left out on the CPU.
        images_per_s: from the median.
        rounds_ms: median of each round, by its number from 1.
        spread: how far these are apart, as a share of the least.
        is_stable: whether calls took the same time at the end of each warm-up.
        unavailable: why nothing was timed; then the rest is left out.
    """

    model: Model
    engine: Engine
    provider: Provider
    precision: str
    batch: int
    threads: int
    calls: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    computation_ms: float | None = None
    images_per_s: float | None = None
    rounds_ms: dict[str, float] = Field(default={})
    spread: float | None = None
    is_stable: bool | None = None
    unavailable: str | None = None

    @property
    def is_noisy(self) -> bool:
        """Whether something else was busy."""
        return self.spread is not None and (self.spread > NOISY or not self.is_stable)


class Start(Metrics):
    """What it takes to get an engine ready, in a process of its own.

    Attributes:
        cold_start_ms, warm_start_ms: making it ready the first time in its process (weights read,
            graph optimised, engine built; libraries are imported already), and once again.
        first_ms: the first call.
        peak_mb: the most memory that its process had until the first call was answered, with all
            that it imports.
    """

    cold_start_ms: float
    warm_start_ms: float
    first_ms: float
    peak_mb: float


class Load(Metrics):
    """Single images that arrive by themselves, at random (a Poisson process), on average so often.

    Attributes:
        rate: images per second.
        p50_ms, p99_ms, max_ms: from arrival to answer, waiting included.
    """

    rate: float
    images: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class BenchmarkMetrics(Metrics):
    """How fast the models are.

    Attributes:
        device: the GPU's name where there is one, and the CPU's.
        speed_up: ratios of medians, by `FAST_over_SLOW_bBATCH`.
        bytes: size of each model's ONNX file.
        machine: what else there is to know of it.
        starts: by `MODEL_ENGINE_PROVIDER`, with `_PRECISION` unless it is fp32, and `_tTHREADS`
            unless it is the first number of threads asked for.
        rows: the same with `_bBATCH` after the provider.
        load: latency against load, of the student in ONNX Runtime on the CPU, by the rate as a
            share of what it could answer without a pause; empty where none was measured.
        highest_rate: of those that keep the 99th percentile below the limit that was asked for.
    """

    threads: int
    device: str
    machine: dict[str, str]
    speed_up: dict[str, float]
    bytes: dict[str, int]
    starts: dict[str, Start]
    rows: dict[str, Latency]
    load: dict[str, Load]
    highest_rate: float | None

    def variant_speed_ups(self, name: str) -> dict[Provider, float]:
        """How many times as fast as float32 a format is at batch 1, by provider if measured.

        In the round where it is least ahead: one busy moment must not make a format fast.
        """
        ratios: dict[Provider, float] = {}
        providers: tuple[Provider, ...] = get_args(Provider)
        for provider in providers:
            usual, other = (
                self.rows.get(f"student_ort_{provider}_b1{end}") for end in ("", f"_{name}")
            )
            if usual and other and usual.rounds_ms and other.rounds_ms:
                ratios[provider] = min(
                    usual.rounds_ms[number] / ms for number, ms in other.rounds_ms.items()
                )
        return ratios
