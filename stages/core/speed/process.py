"""The parent's end of a worker."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from typing import Any

from stages.core.runner.errors import Unavailable
from stages.core.speed import worker
from stages.core.speed.engines import Job

# Of one answer. TensorRT may build an engine for minutes.
LIMIT_S = 1800


class Process:
    """An engine that runs in a process of its own."""

    def __init__(self, job: Job) -> None:
        """Start it. Raises: Unavailable, with the reason."""
        command = [sys.executable, "-m", worker.__name__]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # TF32 off, for PyTorch, ONNX Runtime and TensorRT alike.
            env=os.environ | {"NVIDIA_TF32_OVERRIDE": "0"},
        )
        try:
            self.first = self._ask(job.model_dump_json())
        except BaseException:
            self.kill()
            raise
        if reason := self.first.get("unavailable"):
            self.kill()
            raise Unavailable(str(reason))

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        limit = threading.Timer(LIMIT_S, self._process.kill)
        limit.start()
        try:
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        is_late = not limit.is_alive()
        limit.cancel()
        if not answer:
            status = self._process.wait()
            if is_late:
                raise Unavailable(f"its process gave no answer in {LIMIT_S} s, and was killed")
            how = f"was killed by signal {-status}" if status < 0 else f"exited with {status}"
            raise Unavailable(f"its process {how}")
        try:
            content = json.loads(answer)
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise Unavailable(f"its process answered {answer[:50]!r}")
        return content

    def ask(self, **question: object) -> dict[str, Any]:
        """An answer of the worker's. Raises: Unavailable if it fails, or its process has died."""
        answer = self._ask(json.dumps(question))
        if reason := answer.get("unavailable"):
            raise Unavailable(str(reason))
        return answer

    def kill(self) -> None:
        """End it at once, whatever it does."""
        self._process.kill()
        # Nobody reads what is left to write.
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()
