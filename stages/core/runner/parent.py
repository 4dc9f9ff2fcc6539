"""A stage ends when whoever started it ends, even by kill -9."""

import ctypes
import os
import signal
import threading
import time

import psutil

PR_SET_PDEATHSIG = 1


def kill_me_with_parent() -> None:
    """Ask the kernel for SIGKILL when the thread that started this process ends (Linux)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def is_alive(process: psutil.Process) -> bool:
    """Whether the process runs; one that has ended and waits for its parent to notice does not."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        # It ended between the two questions.
        return False


def die_with_parent(*, every_s: float = 0.5) -> None:
    """Kill this process when its parent, or the DVC process above that, is gone.

    DVC starts a stage through a shell, and killing DVC leaves that shell alive: so the kernel's
    signal is not enough and the grandparent is watched too. Outside DVC only the parent counts.
    """
    kill_me_with_parent()
    above = psutil.Process().parents()
    watched = above[:2] if "DVC_STAGE" in os.environ else above[:1]

    def watch() -> None:
        while all(map(is_alive, watched)):
            time.sleep(every_s)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="parent-watch").start()
