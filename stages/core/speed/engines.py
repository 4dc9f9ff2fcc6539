"""The engines that a model can run in. Each is imported by the process that times it alone."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from stages.core.nets.onnx_run import has_cuda_device
from stages.core.results.schema.speed import Engine
from stages.core.runner.errors import Unavailable

Arrays = tuple[NDArray[np.uint8], ...]
ProviderName = Literal["cpu", "cuda"]


class Job(BaseModel):
    """What a process is to time.

    Attributes:
        engine: torch (eager), compile (torch.compile), ort (ONNX Runtime), ort_graph (as a CUDA
            graph), tensorrt (ONNX Runtime's provider of it).
        model: an ONNX file; or for torch a folder of `save_net` or `save_teacher`.
        background: what the network divides images by, see `FileRules`.
        threads: on the CPU.
        images: a .npz file with the largest batch of each input, in order.
        cache: a folder for what TensorRT has built, for this model and device.
    """

    model_config = ConfigDict(frozen=True)

    engine: Engine
    provider: ProviderName
    model: Path
    background: Literal["group", "both"] | None
    threads: int
    images: Path
    cache: Path


@dataclass(frozen=True)
class Request:
    """A batch, ready to be asked for.

    Attributes:
        whole: from arrays in memory to the answer in memory.
        computation: without copies between host and device; None on the CPU, which has none.
    """

    whole: Callable[[], object]
    computation: Callable[[], object] | None = None


@dataclass
class Running:
    """A model that runs; `request` prepares a batch."""

    request: Callable[[Arrays], Request]
    start_ms: float = field(default=0.0)


def _torch(job: Job) -> Running:
    import torch

    from stages.core.nets.files import load_net, load_teacher
    from stages.core.nets.onnx_export import released
    from stages.core.runner.runtime import Resources

    Resources(device=job.provider, threads=job.threads, processes=1, cache_gb=0).apply()
    # Nobody trains here, and users do not run models so.
    torch.use_deterministic_algorithms(False)
    start = time.perf_counter()
    load: Callable[[Path], Any] = load_teacher if (job.model / "member_0").exists() else load_net
    device = torch.device(job.provider)
    module: Any = released(load(job.model), 1.0, job.background).to(device)
    if job.engine == "compile":
        module = torch.compile(module, dynamic=False)

    def wait() -> None:
        if job.provider == "cuda":
            torch.cuda.synchronize()

    def request(inputs: Arrays) -> Request:
        on_device = [torch.from_numpy(values).to(device) for values in inputs]

        def whole() -> object:
            with torch.inference_mode():
                # Back to the CPU: the copy waits for the device.
                return module(*(torch.from_numpy(v).to(device) for v in inputs)).cpu()

        def computation() -> object:
            with torch.inference_mode():
                output = module(*on_device)
            wait()
            return output

        return Request(whole, computation if job.provider == "cuda" else None)

    return Running(request, (time.perf_counter() - start) * 1e3)


def _ort(job: Job) -> Running:
    import onnxruntime as ort

    from stages.core.nets import onnx_run

    start = time.perf_counter()
    session = onnx_run.session(
        job.model,
        "tensorrt" if job.engine == "tensorrt" else job.provider,
        threads=job.threads,
        cuda_graph=job.engine == "ort_graph",
        cache=job.cache,
    )
    start_ms = (time.perf_counter() - start) * 1e3
    if job.engine == "tensorrt":
        with np.load(job.images) as images:
            first = tuple(images[name][:1] for name in images.files)
        nodes = onnx_run.placement(
            job.model, "tensorrt", first, threads=job.threads, cache=job.cache
        )
        if not nodes.get(onnx_run.NAMES["tensorrt"]):
            raise Unavailable(f"TensorRT runs none of the nodes: {nodes}")
    if job.provider == "cpu":

        def on_cpu(inputs: Arrays) -> Request:
            given = onnx_run.feed(inputs)
            return Request(lambda: session.run(None, given))

        return Running(on_cpu, start_ms)

    def on_gpu(inputs: Arrays) -> Request:
        # A CUDA graph replays addresses, so inputs and outputs stay where they are.
        given = {
            name: ort.OrtValue.ortvalue_from_numpy(values, "cuda", 0)
            for name, values in onnx_run.feed(inputs).items()
        }
        binding = session.io_binding()
        for name, value in given.items():
            binding.bind_ortvalue_input(name, value)
        answers = []
        for output in session.get_outputs():
            shape = [len(inputs[0]), *output.shape[1:]]
            answers.append(ort.OrtValue.ortvalue_from_shape_and_type(shape, np.float32, "cuda", 0))
            binding.bind_ortvalue_output(output.name, answers[-1])

        # A graph of its own for each batch size: one that was captured is replayed unseen.
        options = ort.RunOptions()
        if job.engine == "ort_graph":
            options.add_run_config_entry("gpu_graph_id", str(len(inputs[0])))

        def computation() -> object:
            session.run_with_iobinding(binding, options)
            binding.synchronize_outputs()
            return answers

        def whole() -> object:
            for name, values in onnx_run.feed(inputs).items():
                given[name].update_inplace(values)
            computation()
            return [answer.numpy() for answer in answers]

        return Request(whole, computation)

    return Running(on_gpu, start_ms)


def start(job: Job) -> Running:
    """Make a model ready. Raises: Unavailable, with the reason."""
    if job.provider == "cpu" and job.engine in ("ort_graph", "tensorrt"):
        raise Unavailable(f"{job.engine} runs on CUDA alone")
    if job.provider == "cuda" and not has_cuda_device():
        raise Unavailable("this machine has no CUDA device")
    return (_torch if job.engine in ("torch", "compile") else _ort)(job)
