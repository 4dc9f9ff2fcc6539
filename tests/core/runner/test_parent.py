"""Whether a process that a stage watches is alive."""

import os
import subprocess

import psutil
import pytest

from stages.core.runner.parent import is_alive


def test_a_process_is_alive_until_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    child = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(child.pid)
    assert is_alive(process)

    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.status() == psutil.STATUS_ZOMBIE
    assert not is_alive(process)

    child.wait()
    assert not is_alive(process)
    # As if it had ended after the first of the two questions.
    monkeypatch.setattr(process, "is_running", lambda: True)
    assert not is_alive(process)
