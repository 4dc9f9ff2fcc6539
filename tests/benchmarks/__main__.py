"""Runs all benchmarks, or those named: `python -m tests.benchmarks [NAME ...] [--scale SHARE]`."""

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from flows.docs import benchmark_table
from tests.benchmarks import (
    bench_accelerator,
    bench_decode,
    bench_distill,
    bench_gan,
    bench_latency,
    bench_memory,
    bench_pipeline,
    bench_pointing,
    bench_revalidate,
    bench_shards,
    bench_suite,
    bench_transfer,
    record,
)

OUT = Path("data/reports/bench.json")

Benchmark = Callable[[Path, float], Iterable[record.Result]]

BENCHMARKS: dict[str, Benchmark] = {
    "decode": bench_decode.run,
    "revalidate": bench_revalidate.run,
    "memory": bench_memory.run,
    "suite": bench_suite.run,
    "shards": bench_shards.run,
    "distill": bench_distill.run,
    "transfer": bench_transfer.run,
    "pipeline": bench_pipeline.run,
    "accelerator": bench_accelerator.run,
    "pointing": bench_pointing.run,
    "latency": bench_latency.run,
    "gan": bench_gan.run,
}


def main() -> None:
    """Measure, write down, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--scale", type=float, default=1.0, help="share of the images; to try out")
    arguments = parser.parse_args()
    if unknown := sorted(set(arguments.names) - set(BENCHMARKS)):
        parser.error(f"{', '.join(unknown)}: no such benchmark; there are {', '.join(BENCHMARKS)}")
    # So that an ended run deletes its files, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    for name in arguments.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix=f"atelier-bench-{name}-") as folder:
            results = []
            for result in BENCHMARKS[name](Path(folder), arguments.scale):
                results.append(result)
                if arguments.scale == 1:
                    record.merge(OUT, [result])
        print(f"  took {time.monotonic() - started:.0f} s", flush=True)
        print(benchmark_table({r.name: r.entry() for r in results}), flush=True)
    if arguments.scale == 1:
        print(benchmark_table(record.merge(OUT, [])), flush=True)


if __name__ == "__main__":
    main()
