"""ONNX Runtime sessions that run on the provider that was asked for, or not at all."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime as ort
import torch
from numpy.typing import NDArray

from stages.core.dataset.data import Rows
from stages.core.nets.onnx_export import INPUTS
from stages.core.runner.errors import Unavailable

VERSION: str = ort.__version__
Provider = Literal["cpu", "cuda"]
NAMES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
Inputs = tuple[NDArray[np.uint8], ...]


def session(model: Path | bytes, provider: Provider, *, threads: int) -> ort.InferenceSession:
    """A session of a model file, or of its content, with every node on `provider`.

    Raises: Unavailable when ONNX Runtime would fall back to another provider.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    # 4 = fatal: a missing CUDA library is our error below, not a line on the terminal.
    ort.set_default_logger_severity(4)
    options.log_severity_level = 4
    if provider == "cuda":
        if not torch.cuda.is_available():
            raise Unavailable("ONNX Runtime on cuda: this machine has no CUDA device")
        ort.preload_dlls()
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    content = model if isinstance(model, bytes) else str(model)
    try:
        inference = ort.InferenceSession(content, options, providers=[NAMES[provider]])
    except Exception as error:  # onnxruntime's own classes differ by provider and version
        reason = " ".join(str(error).split())[:200]
        raise Unavailable(f"ONNX Runtime on {provider}: {reason}") from error
    if inference.get_providers()[0] != NAMES[provider]:
        raise Unavailable(f"ONNX Runtime on {provider}: not on this machine")
    return inference


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
