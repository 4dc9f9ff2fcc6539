"""Where the work runs: device, threads, determinism. Never what is computed.

PyTorch is imported by what needs it, when it is called: a stage that trains nothing starts without.
"""

import ctypes
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from stages.core.runner import processes
from stages.core.runner.errors import Unavailable
from stages.core.runner.params import Section

if TYPE_CHECKING:
    import torch


class Resources(Section):
    """Section `resources`. DVC does not track it: it must not change a result."""

    device: Literal["auto", "cpu", "cuda"]
    threads: int | None = Field(ge=1, le=1024)
    processes: int = Field(ge=1, le=64)
    cache_gb: float = Field(ge=0)

    def apply(self) -> None:
        """Set up this process: as many threads as asked for, and the same result every time."""
        if "torch" not in sys.modules:
            return
        import torch

        _keep_freed_memory()
        torch.set_num_threads(threads(self))
        # cuBLAS is deterministic only with a fixed workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # On a GPU some operations have no deterministic form; there it is no promise.
        torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
        # It would also fill each new tensor with NaN before it is written: a check, not a promise.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False

    def check_device(self) -> None:
        """Raises: Unavailable when a device is asked for that is not there."""
        if self.device == "cuda":
            self.torch_device()

    def torch_device(self) -> "torch.device":
        """The device to train on.

        Raises: Unavailable when `cuda` is asked for and not there, or not one for each process.
        """
        import torch

        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise Unavailable(
                "resources.device = 'cuda', but PyTorch finds no CUDA device here; "
                "set it to 'auto' or 'cpu'"
            )
        if not there or self.device == "cpu":
            return torch.device("cpu")
        if torch.cuda.device_count() < processes.size():
            raise Unavailable(
                f"resources.processes = {processes.size()}, but PyTorch finds "
                f"{torch.cuda.device_count()} CUDA devices here; expected one for each process"
            )
        return torch.device("cuda", processes.rank())


# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def _keep_freed_memory() -> None:
    """Have malloc reuse large blocks instead of mapping fresh pages for each activation.

    Measured on two cores: EfficientNet-Lite0's forward pass at 160 px 1.5 times faster, its
    training step 1.2 times. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def threads(resources: Resources) -> int:
    """How many CPU threads to use: as asked for, else this process's share of all it may use."""
    return resources.threads or max(1, len(os.sched_getaffinity(0)) // processes.size())


def device_name() -> str:
    """The GPU's name where PyTorch sees one, and the CPU's."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x for x in info.read_text().splitlines() if x.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return f"{torch.cuda.get_device_name()}, {cpu}" if torch.cuda.is_available() else cpu
