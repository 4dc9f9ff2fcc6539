"""Gives each of several test processes a core of its own.

That has to be before PyTorch counts the cores: two threads that share one are ten times slower.
"""

import os

if number := os.environ.get("PYTEST_XDIST_WORKER", "").removeprefix("gw"):
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[int(number) % len(cores)]})
