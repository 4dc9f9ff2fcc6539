"""Server, worker and deployment on one machine, and a run triggered through the API."""

import json
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny import TRAIN, make


def ask(url: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    for _ in range(20):
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            # The server's word for a database that is busy for the moment.
            if error.code != 503:
                raise
            error.close()
            time.sleep(0.5)
    raise TimeoutError(url)


def ask_until(enough: Callable[[Any], bool], url: str, body: dict[str, Any]) -> Any:
    """The answer as soon as it is enough, or after a minute.

    What a run says of its tasks and its log reaches the server in batches, after the run's own end.
    """
    end = time.monotonic() + 60
    while not enough(answer := ask(url, body)) and time.monotonic() < end:
        time.sleep(0.5)
    return answer


def completed(tasks: list[dict[str, Any]]) -> bool:
    return bool(tasks) and all(task["state"]["type"] == "COMPLETED" for task in tasks)


def named(logs: list[dict[str, Any]]) -> bool:
    """Whether the ingest stage's own words are among them."""
    return any("cells of" in entry["message"] for entry in logs)


@pytest.mark.slow
def test_a_triggered_run_does_what_make_run_does(tmp_path: Path) -> None:
    for made in make(tmp_path):
        serve = subprocess.Popen(
            [sys.executable, "-m", "flows.server", "--worker", "--port", "0"],
            cwd=made.root, env=made.environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert serve.stdout is not None
        url, lines = "", []
        for line in serve.stdout:
            lines.append(line)
            if found := re.search(r"Prefect UI: (http://127\.0\.0\.1:\d+)", line):
                url = f"{found[1]}/api"
            if "started!" in line:
                break
        else:
            pytest.fail("".join(lines))
        try:
            deployment = ask(f"{url}/deployments/name/train/nightly")
            assert deployment["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
            assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
            run = ask(
                f"{url}/deployments/{deployment['id']}/create_flow_run",
                {"parameters": {"options": {"target": "ingest"}}},
            )
            end = time.monotonic() + 240
            state = run["state"]
            while state["type"] in ("SCHEDULED", "PENDING", "RUNNING") and time.monotonic() < end:
                time.sleep(1)
                state = ask(f"{url}/flow_runs/{run['id']}")["state"]
            assert state["type"] == "COMPLETED", state
            about = {"flow_runs": {"id": {"any_": [run["id"]]}}}
            tasks = ask_until(completed, f"{url}/task_runs/filter", about)
            assert [(t["name"], t["state"]["name"]) for t in tasks] == [("ingest", "Completed")]
            artifacts = ask(f"{url}/artifacts/filter", {})
            assert "ingest-metrics" in {a["key"] for a in artifacts}
            logs = ask_until(named, f"{url}/logs/filter", {"limit": 200})
            assert named(logs)
            # A run by hand uses the running server, and finds the work done.
            made.run([*TRAIN, "--target", "ingest"])
            runs = ask(f"{url}/flow_runs/filter", {})
            assert len([r for r in runs if r["state"]["type"] == "COMPLETED"]) == 2
        finally:
            serve.send_signal(signal.SIGTERM)
            serve.communicate(timeout=60)
        assert not (tmp_path / "prefect" / "server.json").exists()
