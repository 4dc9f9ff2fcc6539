"""How calls are timed: warm until stable, every call counts, nothing is clipped."""

import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], object]

# Warm-up goes on until the median of so many calls differs from that of as many before by at most
# this share, or until this time is over; two such blocks are run in any case.
BLOCK, STABLE, MOST_S = 5, 0.05, 2.0


def timed(call: Call) -> float:
    """Milliseconds that one call takes."""
    start = time.perf_counter()
    call()
    return (time.perf_counter() - start) * 1e3


def warm_up(call: Call) -> bool:
    """Call until the time of a call is stable; returns whether it became so."""
    end = time.perf_counter() + MOST_S
    medians: list[float] = []
    while len(medians) < 2 or time.perf_counter() < end:
        medians.append(float(np.median([timed(call) for _ in range(BLOCK)])))
        if len(medians) > 1 and abs(medians[-1] - medians[-2]) <= STABLE * medians[-2]:
            return True
    return False


def time_calls(call: Call, seconds: float) -> list[float]:
    """Milliseconds of each call, for about `seconds`, five calls at least."""
    latencies_ms: list[float] = []
    end = time.perf_counter() + seconds
    while len(latencies_ms) < 5 or time.perf_counter() < end:
        latencies_ms.append(timed(call))
    return latencies_ms


def percentiles(latencies_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99, p99.9 and the longest, in milliseconds, by the names of the metrics."""
    names = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms")
    values = np.percentile(latencies_ms, [50, 90, 95, 99, 99.9, 100])
    return dict(zip(names, values.tolist(), strict=True))


def spread(rounds: Sequence[Sequence[float]]) -> float:
    """How far the rounds' medians are apart, as a share of the least; 0 for one round."""
    medians = [float(np.median(each)) for each in rounds]
    return max(medians) / min(medians) - 1


def arrivals(rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """When requests come in `seconds`, if they know nothing of each other: a Poisson process.

    One comes at once, so there is always something to time.

    Args:
        rate: requests per second.
    """
    draws = np.random.default_rng(seed)
    gaps = draws.exponential(1 / rate, max(int(rate * seconds * 2), 10))
    times: NDArray[np.float64] = np.cumsum(gaps) - gaps[0]
    return times[times < seconds]


def answer_arrivals(call: Call, times: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Milliseconds from each request's arrival to its answer, one after the other.

    Requests arrive whether or not the one before is answered, so waiting counts.
    """
    start = time.perf_counter()
    latencies_ms = []
    for due in times:
        while (wait := start + due - time.perf_counter()) > 0:
            # Sleeping is coarse: the last half millisecond is waited for awake.
            if wait > 1e-3:
                time.sleep(wait - 5e-4)
        call()
        latencies_ms.append((time.perf_counter() - start - due) * 1e3)
    return latencies_ms
