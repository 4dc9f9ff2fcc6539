"""The shipped model's latency, as the benchmark stage measures it.

Beside it are its teacher's in PyTorch, that of the file with evidence maps, and that of a bare
loop, which shows what measuring adds.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stages.core.nets.files import load_teacher
from stages.core.nets.onnx_export import export
from stages.core.results.schema.speed import Engine
from stages.core.runner import runtime
from stages.core.speed.engines import Job
from stages.core.speed.process import Process
from tests.benchmarks.project import TEACHER, default_run, resources
from tests.benchmarks.record import Result

STUDENT = Path("data/models/onnx/fp32.onnx")
EVIDENCE = Path("data/models/onnx/evidence.onnx")
# Blocks of all alternate: a virtual machine may be three times as slow a second later.
ROUNDS, BLOCKS, SECONDS = 7, 10, 0.2
# What anybody would write, in a process of its own.
BARE = """
import sys, time
import numpy as np, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[3])
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
inputs = {"images": np.load(sys.argv[2])["arr_0"][:1]}
for _ in range(100):
    session.run(None, inputs)
for line in sys.stdin:
    times = []
    end = time.perf_counter() + float(line)
    while time.perf_counter() < end:
        start = time.perf_counter()
        session.run(None, inputs)
        times.append(time.perf_counter() - start)
    print(1e3 * sorted(times)[len(times) // 2], flush=True)
"""


def run(work: Path, scale: float) -> Iterator[Result]:
    """Time them in turn."""
    data, threads = default_run(), runtime.threads(resources())
    images = work / "images.npz"
    np.savez(images, *data.model_inputs(data.rows("test")[:1]))
    export(load_teacher(TEACHER), work / "teacher.onnx", temperature=1.0, metadata={})
    engines: dict[str, tuple[Engine, Path]] = {
        "student": ("ort", STUDENT),
        "evidence": ("ort", EVIDENCE),
        "teacher": ("torch", TEACHER),
        "teacher in ONNX Runtime": ("ort", work / "teacher.onnx"),
    }
    jobs = {
        name: Job(
            engine=engine, provider="cpu", model=model, background=data.rules.background,
            threads=threads, images=images, cache=work,
        )
        for name, (engine, model) in engines.items()
    }  # fmt: skip
    processes = {name: Process(job) for name, job in jobs.items()}
    bare = subprocess.Popen(
        [sys.executable, "-c", BARE, STUDENT, images, str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert bare.stdin is not None
    assert bare.stdout is not None
    # Of each block, by name; one list per round.
    medians: dict[str, list[list[float]]] = {name: [] for name in (*jobs, "bare")}
    try:
        for _ in range(max(round(ROUNDS * scale), 1)):
            for each in medians.values():
                each.append([])
            for _ in range(BLOCKS):
                for name, process in processes.items():
                    answer = process.ask(batch=1, seconds=SECONDS)
                    medians[name][-1].append(statistics.median(answer["latencies_ms"]))
                bare.stdin.write(f"{SECONDS}\n")
                bare.stdin.flush()
                medians["bare"][-1].append(json.loads(bare.stdout.readline()))
            last = {name: statistics.median(each[-1]) for name, each in medians.items()}
            print(f"  {', '.join(f'{name} {ms:.2f} ms' for name, ms in last.items())}", flush=True)
    finally:
        for process in processes.values():
            process.kill()
        bare.kill()
        bare.communicate()

    def over(name: str) -> list[float]:
        """How many times as long as the student it takes: of each round, the middle block."""
        return [
            statistics.median(slow / fast for slow, fast in zip(*blocks, strict=True))
            for blocks in zip(medians[name], medians["student"], strict=True)
        ]

    what = "median latency at batch 1: the teacher in"
    yield Result("latency", f"{what} PyTorch over the student in ONNX Runtime", over("teacher"), 20)
    yield Result("latency_ort", f"{what} ONNX Runtime over it", over("teacher in ONNX Runtime"))
    cost = [100 * (ratio - 1) for ratio in over("evidence")]
    yield Result(
        "latency_evidence", "median latency: with evidence maps over without", cost, 5, "%"
    )
    more = [100 * (1 / ratio - 1) for ratio in over("bare")]
    yield Result("latency_bare", "median latency: the benchmark over a bare loop", more, 5, "%")
