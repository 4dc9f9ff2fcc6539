"""What a benchmark gives, and how it is kept in data/reports/bench.json."""

import io
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from stages.core.runner.runtime import device_name

Run = Callable[[], object]


@dataclass(frozen=True)
class Result:
    """One line of the table.

    Attributes:
        name: key in bench.json.
        what: what is compared, and at which size; goes into the table as it is.
        figures: one ratio for every pair of runs, or one value for every run.
        goal: the ratio at least, or the value at most; None where nothing was asked for.
        unit: of the values; "" for ratios.
        summary: which of the figures is the result: the middle one, or the worst.
    """

    name: str
    what: str
    figures: list[float]
    goal: float | None = None
    unit: str = ""
    summary: Literal["median", "largest"] = "median"

    def entry(self) -> dict[str, Any]:
        """As in bench.json."""
        middle = statistics.median(self.figures)
        figure = max(self.figures) if self.summary == "largest" else middle
        return {
            ("value" if self.unit else "ratio"): _rounded(figure),
            "low": _rounded(min(self.figures)),
            "high": _rounded(max(self.figures)),
            "goal": self.goal,
            "unit": self.unit,
            "what": self.what,
            "machine": f"{device_name()}, {len(os.sched_getaffinity(0))} cores",
        }


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def seconds(run: Run) -> float:
    """How long a call takes, once the disk has caught up with what was written before."""
    os.sync()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@contextmanager
def quiet() -> Iterator[None]:
    """Without the progress lines that the project's code prints."""
    with redirect_stdout(io.StringIO()):
        yield


def interleaved(rounds: int, *runs: Callable[[], float]) -> list[list[float]]:
    """What each of `runs` gives (its seconds), called in turn: A, B, A, B; one list per run."""
    times: list[list[float]] = [[] for _ in runs]
    for number in range(rounds):
        for place, run in zip(times, runs, strict=True):
            place.append(run())
        latest = ", ".join(f"{place[-1]:.2f} s" for place in times)
        print(f"  round {number + 1} of {rounds}: {latest}", flush=True)
    return times


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """How many times longer the first took, round by round."""
    return [a / b for a, b in zip(slow, fast, strict=True)]


def merge(path: Path, results: list[Result]) -> dict[str, dict[str, Any]]:
    """Put results into the file, beside what is there; gives all of it."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    together: dict[str, dict[str, Any]] = earlier | {r.name: r.entry() for r in results}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial.{path.name}")
    partial.write_text(json.dumps(together, indent=1) + "\n")
    partial.replace(path)
    return together
