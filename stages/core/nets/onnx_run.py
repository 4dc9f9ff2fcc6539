"""ONNX Runtime sessions that run on the provider that was asked for, or not at all."""

import ctypes
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from stages.core.dataset.data import Rows
from stages.core.runner.errors import Unavailable

VERSION: str = ort.__version__
# Names of an exported model's inputs, as far as it takes them, and of its outputs, as far as it has
# them.
INPUTS, OUTPUT, EVIDENCE = ("images", "backgrounds"), "probabilities", "evidence"
Provider = Literal["cpu", "cuda", "tensorrt"]
NAMES = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
Inputs = tuple[NDArray[np.uint8], ...]


def has_cuda_device() -> bool:
    """Whether the driver is there and has a device; without loading CUDA itself."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int(0)
    return (
        not driver.cuInit(0)
        and not driver.cuDeviceGetCount(ctypes.byref(count))
        and count.value > 0
    )


def providers() -> tuple[Literal["cpu", "cuda"], ...]:
    """What models are run on: the CPU, and CUDA where there is a device."""
    return ("cpu", "cuda") if has_cuda_device() else ("cpu",)


def _provider_options(provider: Provider, cuda_graph: bool, cache: Path | None) -> list[Any]:
    """As ONNX Runtime takes them."""
    cuda = (NAMES["cuda"], {"use_tf32": "0", "enable_cuda_graph": "1" if cuda_graph else "0"})
    if provider == "cpu":
        return [NAMES["cpu"]]
    if provider == "cuda":
        return [cuda]
    built: dict[str, str] = {}
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
        built = {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(cache),
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(cache),
        }
    return [(NAMES["tensorrt"], built), cuda]


def session(
    model: Path | bytes,
    provider: Provider,
    *,
    threads: int,
    cuda_graph: bool = False,
    cache: Path | None = None,
    profile: Path | None = None,
) -> ort.InferenceSession:
    """A session of a model file, or of its content, with every node on `provider`.

    What TensorRT cannot run, CUDA runs.

    Args:
        threads: of the CPU.
        cuda_graph: whether CUDA replays the first run; its inputs and outputs must stay in place.
        cache: a folder for what TensorRT builds.
        profile: how the name of the profile begins that the session's end_profiling writes.

    Raises: Unavailable when ONNX Runtime would fall back to another provider.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    # 4 = fatal: a missing CUDA library is our error below, not a line on the terminal.
    ort.set_default_logger_severity(4)
    options.log_severity_level = 4
    if provider != "cpu":
        if not has_cuda_device():
            raise Unavailable(f"ONNX Runtime on {provider}: this machine has no CUDA device")
        ort.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    content = model if isinstance(model, bytes) else str(model)
    try:
        inference = ort.InferenceSession(
            content, options, providers=_provider_options(provider, cuda_graph, cache)
        )
    except Exception as error:  # onnxruntime's own classes differ by provider and version
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(f"ONNX Runtime on {provider}: {reason}") from error
    if inference.get_providers()[0] != NAMES[provider]:
        raise Unavailable(f"ONNX Runtime on {provider}: not on this machine")
    return inference


def placement(
    model: Path, provider: Provider, inputs: Inputs, *, threads: int, cache: Path | None = None
) -> dict[str, int]:
    """How many nodes each provider runs, by ONNX Runtime's name of it, in a session for `provider`.

    From a profile of one run: what a session says of its providers is who may run nodes.
    """
    with tempfile.TemporaryDirectory() as folder:
        running = session(
            model, provider, threads=threads, cache=cache, profile=Path(folder) / "run"
        )
        running.run(None, feed(inputs))
        events = json.loads(Path(running.end_profiling()).read_text())
    ran = [e["args"].get("provider") for e in events if e.get("cat") == "Node"]
    return dict(Counter(name for name in ran if name))


def feed(inputs: Inputs) -> dict[str, NDArray[np.uint8]]:
    """The inputs of an exported model by their names."""
    return dict(zip(INPUTS, inputs, strict=False))  # not all models take all of them


def probabilities(
    model: ort.InferenceSession, inputs: Callable[[Rows], Inputs], rows: Rows, *, batch: int = 64
) -> NDArray[np.float32]:
    """Probabilities (len(rows), K) of `inputs(rows)`, a batch at a time."""
    return np.concatenate(
        [model.run(None, feed(inputs(rows[i : i + batch])))[0] for i in range(0, len(rows), batch)]
    )
