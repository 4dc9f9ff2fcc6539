"""What a benchmark ran on, for those who read its figures elsewhere."""

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

# What decides how fast int8 and bfloat16 are.
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
ARM_FLAGS = ("asimd", "asimddp", "i8mm", "bf16", "sve")
PACKAGES = ("torch", "onnxruntime-gpu", "numpy")
# What computes on a GPU, as far as it is installed.
GPU_PACKAGES = ("nvidia-cuda-runtime", "nvidia-cudnn-cu13", "nvidia-cublas", "tensorrt")


def _cpu_flags() -> str:
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    return " ".join(flag for flag in (*FLAGS, *ARM_FLAGS) if flag in words)


def _gpu() -> str:
    """Name and driver of the first GPU, as nvidia-smi has them, or ""."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        ended = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ended.stdout.splitlines()[0] if ended.returncode == 0 and ended.stdout else ""


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    versions = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def description() -> dict[str, str]:
    """The machine and its software, by what it is."""
    gpu = _gpu()
    return {
        "cores": str(len(os.sched_getaffinity(0))),
        "CPU flags": _cpu_flags(),
        **({"GPU, driver": gpu} if gpu else {}),
        "system": platform.system(),
        "Python": platform.python_version(),
        **_installed(PACKAGES),
        **(_installed(GPU_PACKAGES) if gpu else {}),
    }
