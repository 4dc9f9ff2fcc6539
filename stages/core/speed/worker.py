"""One engine in a process of its own, so that no other one's threads are in its way.

The parent writes a job, then a question per line; each is answered by a line of JSON. Questions:
{"batch": B, "seconds": S}, timed calls; {"rate": R, "seconds": S, "seed": N}, requests that arrive
by themselves; {"end": true}. The process ends with the parent.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from stages.core.runner.errors import AtelierError
from stages.core.runner.parent import kill_me_with_parent
from stages.core.speed import engines, protocol
from stages.core.speed.engines import Arrays, Job, Request


class Answering:
    """Answers questions about one engine."""

    def __init__(self, job: Job) -> None:
        with np.load(job.images) as images:
            self._images: Arrays = tuple(images[name] for name in images.files)
        self._running = engines.start(job)
        self._requests: dict[int, Request] = {}
        request = self._request(1)
        self._first_ms = protocol.timed(request.whole)
        self._peak_mb = peak_mb()
        # The files are in the page cache now, and so are the libraries.
        again = engines.start(job)
        self._starts = {"cold_start_ms": self._running.start_ms, "warm_start_ms": again.start_ms}

    def _request(self, batch: int) -> Request:
        if batch not in self._requests:
            inputs = tuple(np.ascontiguousarray(values[:batch]) for values in self._images)
            self._requests[batch] = self._running.request(inputs)
        return self._requests[batch]

    def first(self) -> dict[str, Any]:
        """What starting took, the first call, and the most memory until then."""
        return {**self._starts, "first_ms": self._first_ms, "peak_mb": self._peak_mb}

    def calls(self, batch: int, seconds: float) -> dict[str, Any]:
        """Latencies of `seconds` of calls; without copies, too, where there are any."""
        request = self._request(batch)
        is_stable = protocol.warm_up(request.whole)
        latencies_ms = protocol.time_calls(request.whole, seconds)
        inner = request.computation
        inner_ms = protocol.time_calls(inner, seconds / 2) if inner else []
        return {"latencies_ms": latencies_ms, "computation_ms": inner_ms, "is_stable": is_stable}

    def load(self, rate: float, seconds: float, seed: int) -> dict[str, Any]:
        """Latencies of single images that arrive `rate` times per second."""
        request = self._request(1)
        protocol.warm_up(request.whole)
        times = protocol.arrivals(rate, seconds, seed)
        return {"latencies_ms": protocol.answer_arrivals(request.whole, times)}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


def peak_mb() -> float:
    """The most memory that this program has had, in MB, as Linux counts it.

    Not getrusage's figure, in which the process that started this one counts, too.
    """
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Answer until the parent has no more questions."""
    kill_me_with_parent()
    # Libraries may print; the answers alone go to the parent.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(content: dict[str, Any]) -> None:
        print(json.dumps(content), file=answers, flush=True)

    job = Job.model_validate_json(sys.stdin.readline())
    try:
        answering = Answering(job)
    except AtelierError as error:
        answer({"unavailable": str(error)})
        return
    except Exception as error:  # whatever an engine or its driver raises: a row of the table
        answer({"unavailable": _reason(error)})
        return
    answer(answering.first())
    for line in sys.stdin:
        question = json.loads(line)
        if question.get("end"):
            break
        try:
            answer((answering.load if "rate" in question else answering.calls)(**question))
        except Exception as error:  # as above
            answer({"unavailable": _reason(error)})
    answer({})


if __name__ == "__main__":
    main()
