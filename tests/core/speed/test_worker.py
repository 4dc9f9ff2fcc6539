"""Engines in processes of their own."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from stages.core.nets.files import save_net, save_teacher
from stages.core.runner.errors import Unavailable
from stages.core.speed import machine, process, worker
from stages.core.speed.engines import Job
from stages.core.speed.machine import description
from stages.core.speed.process import Process
from tests.helpers.exported import net


@pytest.fixture
def job(tmp_path: Path, exported: Path) -> Job:
    np.savez(tmp_path / "images.npz", np.zeros((4, 64, 64, 1), np.uint8))
    return Job(
        engine="ort", provider="cpu", model=exported, background=None, threads=1,
        images=tmp_path / "images.npz", cache=tmp_path / "cache",
    )  # fmt: skip


def test_it_times_calls_and_arrivals_and_ends(job: Job) -> None:
    running = Process(job)
    assert set(running.first) == {"cold_start_ms", "warm_start_ms", "first_ms", "peak_mb"}
    assert all(value > 0 for value in running.first.values())
    calls = running.ask(batch=4, seconds=0.05)
    assert len(calls["latencies_ms"]) >= 5
    assert calls["computation_ms"] == []
    assert isinstance(calls["is_stable"], bool)
    load = running.ask(rate=100.0, seconds=0.2, seed=0)
    assert len(load["latencies_ms"]) > 5
    # Less than this process has, which must not count.
    ballast = np.ones(10**8)
    again = Process(job)
    assert 20 < again.first["peak_mb"] < ballast.nbytes / 1e6
    again.kill()
    running.kill()


def test_onnx_runtime_is_timed_without_pytorch(job: Job) -> None:
    """Its threads and its memory would be in the way, and in the figures."""
    running = Process(job)
    maps = Path(f"/proc/{running._process.pid}/maps").read_text()
    assert "onnxruntime" in maps
    assert "libtorch" not in maps
    running.kill()


@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_pytorch_takes_a_model_folder(job: Job, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / kind
    if kind == "teacher":
        save_teacher(folder, [net(), net()])
    else:
        save_net(folder, net())
    running = Process(job.model_copy(update={"engine": "torch", "model": folder}))
    assert len(running.ask(batch=1, seconds=0.01)["latencies_ms"]) >= 5
    running.kill()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"provider": "cuda"}, "no CUDA device"),
        ({"engine": "torch", "provider": "cuda"}, "no CUDA device"),
        ({"engine": "tensorrt"}, "runs on CUDA alone"),
        ({"engine": "ort_graph", "provider": "cuda"}, "no CUDA device"),
        ({"model": Path("nowhere.onnx")}, "nowhere.onnx"),
        ({"engine": "torch", "model": Path("nowhere")}, "FileNotFoundError"),
    ],
)
def test_what_cannot_run_says_why(job: Job, changes: dict[str, object], words: str) -> None:
    with pytest.raises(Unavailable, match=words) as caught:
        Process(job.model_copy(update=changes))
    assert "\n" not in str(caught.value)


def test_a_model_that_is_none_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(Unavailable, match="ONNX Runtime on cpu"):
        Process(job.model_copy(update={"model": tmp_path / "broken.onnx"}))


def test_an_engine_that_crashes_is_no_answer(job: Job) -> None:
    """A driver that segfaults takes its own process down, and no other."""
    running = Process(job)
    os.kill(running._process.pid, signal.SIGSEGV)
    with pytest.raises(Unavailable, match="was killed by signal 11"):
        running.ask(batch=1, seconds=0.1)
    running.kill()


def test_an_engine_that_hangs_is_no_answer(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    running = Process(job)
    monkeypatch.setattr(process, "LIMIT_S", 0.2)
    os.kill(running._process.pid, signal.SIGSTOP)
    with pytest.raises(Unavailable, match=r"no answer in 0\.2 s, and was killed"):
        running.ask(batch=1, seconds=0.1)
    running.kill()


@pytest.mark.parametrize("answer", ["noise", "[]", "5"])
def test_what_is_no_answer_ends_the_process(
    job: Job, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, answer: str
) -> None:
    (tmp_path / "noise.py").write_text(f"print({answer!r}, flush=True)\ninput()\ninput()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(worker, "__name__", "noise")
    with pytest.raises(Unavailable, match="its process answered"):
        Process(job)


def test_a_question_that_fails_says_why(job: Job) -> None:
    running = Process(job)
    with pytest.raises(Unavailable, match="TypeError: "):
        running.ask(batch="four", seconds=0.1)
    assert running.ask(batch=1, seconds=0.01)["latencies_ms"], "the others go on"
    running.kill()


def test_the_machine_is_described() -> None:
    about = description()
    assert about["cores"] == str(len(os.sched_getaffinity(0)))
    assert {"CPU flags", "system", "Python", "torch", "onnxruntime-gpu"} <= set(about)
    assert "nvidia-cudnn-cu13" not in about


def test_what_computes_on_a_gpu_is_described_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_gpu", lambda: "GPU X, 1.2")
    about = description()
    assert about["GPU, driver"] == "GPU X, 1.2"
    assert "nvidia-cudnn-cu13" in about
    assert "tensorrt" not in about, "it is not installed"
