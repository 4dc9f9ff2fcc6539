"""Server, worker and deployment on one machine, and runs triggered through API and form."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.browser import Page
from tests.helpers.tiny import TRAIN, Workspace, make


class Api:
    """Requests to a server of ours, with what it asks for."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.url = record["url"]
        self.page = record["open"]
        user, _, password = record["auth"].partition(":")
        self._auth = (user, password)
        self._headers: dict[str, str] = {}
        token = self.ask("/csrf-token?client=test")["token"]
        self._headers = {"Prefect-Csrf-Token": token, "Prefect-Csrf-Client": "test"}

    def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        for _ in range(20):
            method = "GET" if body is None else "POST"
            reply = httpx.request(
                method, f"{self.url}{path}", json=body, auth=self._auth, headers=self._headers,
                timeout=30, trust_env=False,
            )  # fmt: skip
            # The server's word for a database that is busy for the moment.
            if reply.status_code != 503:
                return reply.raise_for_status().json()
            time.sleep(0.5)
        raise TimeoutError(path)

    def ask_until(
        self, is_enough: Callable[[Any], bool], path: str, body: dict[str, Any] | None = None,
        *, seconds: float = 60,
    ) -> Any:  # fmt: skip
        """The reply as soon as it is enough, or the last one.

        A run's tasks and its log reach the server in batches, after the run's own end.
        """
        end = time.monotonic() + seconds
        while not is_enough(reply := self.ask(path, body)) and time.monotonic() < end:
            time.sleep(0.5)
        return reply


@contextmanager
def serving(workspace: Workspace) -> Iterator[Api]:
    """`make serve`, until its worker has started."""
    with subprocess.Popen(
        [sys.executable, "-m", "flows.server", "--worker", "--port", "0"],
        cwd=workspace.root, env=workspace.environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as serve:  # fmt: skip
        assert serve.stdout is not None
        lines = []
        for line in serve.stdout:
            lines.append(line)
            if "started!" in line:
                break
        else:
            pytest.fail("".join(lines))
        record = json.loads((workspace.prefect / "server.json").read_text())
        output = "".join(lines)
        try:
            assert f"Prefect UI: {record['url'].removesuffix('/api')}  (to log in, open" in output
            assert record["auth"].partition(":")[2] not in output, "the output may be a log"
            yield Api(record)
        finally:
            serve.send_signal(signal.SIGTERM)
            serve.communicate(timeout=60)
    assert not (workspace.prefect / "server.json").exists()


def is_final(run: dict[str, Any]) -> bool:
    return run["state"]["type"] not in ("SCHEDULED", "PENDING", "RUNNING")


def completed(tasks: list[dict[str, Any]]) -> bool:
    return bool(tasks) and all(task["state"]["type"] == "COMPLETED" for task in tasks)


def named(logs: list[dict[str, Any]]) -> bool:
    """Whether the ingest stage's own words are among them."""
    return any("cells of" in entry["message"] for entry in logs)


@pytest.mark.slow
def test_a_triggered_run_does_what_make_run_does(tmp_path: Path) -> None:
    for workspace in make(tmp_path):
        with serving(workspace) as api:
            deployment = api.ask("/deployments/name/train/nightly")
            assert deployment["schedules"][0]["schedule"]["cron"] == "0 2 * * *"
            assert deployment["concurrency_options"]["collision_strategy"] == "ENQUEUE"
            create = f"/deployments/{deployment['id']}/create_flow_run"
            with pytest.raises(httpx.HTTPStatusError, match="422"):
                api.ask(create, {"job_variables": {"command": "touch stranger"}})
            run = api.ask(create, {"parameters": {"options": {"target": "ingest"}}})
            run = api.ask_until(is_final, f"/flow_runs/{run['id']}", seconds=240)
            assert run["state"]["type"] == "COMPLETED", run["state"]
            of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
            tasks = api.ask_until(completed, "/task_runs/filter", of_run)
            assert [(t["name"], t["state"]["name"]) for t in tasks] == [("ingest", "Completed")]
            artifacts = api.ask("/artifacts/filter", {})
            assert "ingest-metrics" in {a["key"] for a in artifacts}
            logs = api.ask_until(named, "/logs/filter", {"limit": 200})
            assert named(logs)
            # A run by hand uses the running server, and finds the work done.
            workspace.run([*TRAIN, "--target", "ingest"])
            runs = api.ask("/flow_runs/filter", {})
            assert len([r for r in runs if r["state"]["type"] == "COMPLETED"]) == 2
        assert not (workspace.root / "stranger").exists()


# The form's first area of text is the target's.
FILL = """
(() => {
    const area = document.querySelector("textarea");
    area.focus();
    area.select();
})()
"""
SUBMIT = "[...document.querySelectorAll('button')].find(b => b.innerText == 'Submit').click()"


def any_manual(runs: list[dict[str, Any]]) -> bool:
    """Not those of the schedule alone, which are there before anyone has clicked."""
    return any(not run["auto_scheduled"] for run in runs)


@pytest.mark.slow
@pytest.mark.browser
def test_the_form_in_the_ui_starts_a_run(tmp_path: Path) -> None:
    """From the printed address, in a browser that has never been there; no password is typed."""
    for workspace in make(tmp_path):
        with serving(workspace) as api, Page(tmp_path / "profile") as page:
            page.open(api.page)
            page.wait_for("document.body?.innerText.includes('Work Pools')")
            assert "#" not in page.evaluate("location.href"), "the secret is out of sight"
            deployment = api.ask("/deployments/name/train/nightly")["id"]
            root = api.url.removesuffix("/api")
            page.open(f"{root}/v2/deployments/deployment/{deployment}/run")
            page.wait_for("document.querySelector('textarea')?.value == 'check'")
            page.evaluate(FILL)
            page.type("no such stage")
            page.screenshot(tmp_path / "form.png")
            page.evaluate(SUBMIT)
            by_hand: dict[str, Any] = {"flow_runs": {"tags": {"all_": []}}}
            runs = api.ask_until(any_manual, "/flow_runs/filter", by_hand)
            manual = [run for run in runs if not run["auto_scheduled"]]
            assert [run["parameters"]["options"]["target"] for run in manual] == ["no such stage"]
            run = api.ask_until(is_final, f"/flow_runs/{manual[0]['id']}", seconds=240)
            assert run["state"]["type"] == "FAILED"
            assert "no such stage; expected one of ingest" in run["state"]["message"]
            page.open(f"{root}/v2/runs/flow-run/{run['id']}")
            page.wait_for("document.body?.innerText.includes('expected one of ingest')")
            page.screenshot(tmp_path / "run.png")
