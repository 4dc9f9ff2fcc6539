import itertools
from collections.abc import Iterator

import numpy as np
import pytest

from stages.core.speed import protocol


class Clock:
    """Time that passes when somebody waits, works, or looks: a microsecond each."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(protocol, "time", clock)
    return clock


def taking(clock: Clock, seconds: Iterator[float]) -> protocol.Call:
    return lambda: clock.sleep(next(seconds))


def test_a_call_counts_whole(clock: Clock) -> None:
    assert protocol.timed(taking(clock, iter([0.25]))) == pytest.approx(250, abs=0.01)


def test_warm_up_ends_when_two_blocks_agree(clock: Clock) -> None:
    first = [0.1] * 5 + [0.05] * 5 + [0.02] * 5 + [0.0199] * 5
    assert protocol.warm_up(taking(clock, iter(first))) is True
    assert clock.now == pytest.approx(sum(first), abs=1e-3)


def test_slow_calls_have_two_blocks_to_become_stable(clock: Clock) -> None:
    assert protocol.warm_up(taking(clock, iter([1.0] * 10))) is True
    assert protocol.warm_up(taking(clock, iter([2.0] * 5 + [1.0] * 5))) is False


def test_warm_up_says_when_it_never_became_stable(clock: Clock) -> None:
    assert protocol.warm_up(taking(clock, (1 / 1.1**n for n in range(100)))) is False


def test_no_call_is_left_out(clock: Clock) -> None:
    times = itertools.chain([0.001] * 99, [2.0])
    latencies = protocol.time_calls(taking(clock, times), 0.5)
    assert len(latencies) == 100
    figures = protocol.percentiles(latencies)
    assert figures["p50_ms"] == pytest.approx(1, abs=0.01)
    assert figures["max_ms"] == pytest.approx(2000, abs=0.01)
    assert figures["p999_ms"] == pytest.approx(np.percentile(latencies, 99.9))
    assert list(figures) == ["p50_ms", "p90_ms", "p95_ms", "p99_ms", "p999_ms", "max_ms"]


def test_five_calls_are_timed_however_long_they_take(clock: Clock) -> None:
    assert len(protocol.time_calls(taking(clock, itertools.repeat(10.0)), 0.5)) == 5


def test_spread_tells_of_a_busy_round() -> None:
    assert protocol.spread([[1.0, 2.0, 3.0]]) == 0
    assert protocol.spread([[2.0, 2.0], [2.0, 9.0, 2.0], [3.0, 3.0]]) == pytest.approx(0.5)


def test_requests_arrive_at_random_and_at_the_rate() -> None:
    times = protocol.arrivals(200, 50, seed=0)
    gaps = np.diff(times)
    assert len(times) == pytest.approx(10_000, rel=0.05)
    assert times.max() < 50
    # Of an exponential distribution, the deviation is the mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (protocol.arrivals(200, 50, seed=0) == times).all()
    assert not (protocol.arrivals(200, 50, seed=1)[:100] == times[:100]).all()


def test_waiting_counts(clock: Clock) -> None:
    """A request that comes while another one is answered waits, and so does the one after it."""
    latencies = protocol.answer_arrivals(
        taking(clock, itertools.repeat(0.1)), np.array([0.0, 0.05, 0.06, 1.0])
    )
    assert latencies == pytest.approx([100, 150, 240, 100], abs=0.1)


def test_a_busy_server_has_longer_queues(clock: Clock) -> None:
    """Of a queue with fixed service time s and load r, the mean wait is s r / (2 (1 - r)).

    Pollaczek & Khinchine's formula for M/D/1.
    """
    for load in (0.3, 0.8):
        times = protocol.arrivals(load / 0.01, 200, seed=0)
        clock.now = 0
        latencies = protocol.answer_arrivals(taking(clock, itertools.repeat(0.01)), times)
        expected = 10 * (1 + load / (2 * (1 - load)))
        assert np.mean(latencies) == pytest.approx(expected, rel=0.05)
