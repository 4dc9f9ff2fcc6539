"""The page of a run in the Prefect UI: its lines, progress bars and artifacts."""

import base64
import csv
import itertools
import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.client.schemas.actions import ArtifactCreate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import State
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run, task_run
from prefect.states import Crashed

from flows.graph import Node
from flows.terminal import Display
from stages.core.results.escape import markdown_cell
from stages.core.runner import progress


def artifact_key(*parts: str) -> str:
    """Artifact keys hold lower-case letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(parts).lower()).strip("-")


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested metrics as `a.b.c` -> value."""
    flat: dict[str, Any] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


class StageProgress:
    """A progress bar of one stage, updated at most once per percent."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._id: UUID | None = None
        self._percent = -1

    def show(self, percent: int, text: str) -> None:
        """Move the bar to `percent` (0 to 100)."""
        if percent == self._percent:
            return
        self._percent = percent
        if self._id is None:
            key = artifact_key(self._name, "progress")
            artifact = create_progress_artifact(progress=percent, key=key, description=text)
            assert isinstance(artifact, UUID)
            self._id = artifact
        else:
            update_progress_artifact(self._id, progress=percent, description=text)


def follow(name: str, display: Display) -> Callable[[str], None]:
    """A function that sends each line of the task to terminal, Prefect's log and progress bar."""
    logger = get_run_logger()
    bar = StageProgress(name)

    def on_line(line: str) -> None:
        display.line(name, line)
        logger.info(line)
        if parsed := progress.parse(line):
            bar.show(*parsed)

    return on_line


# Enough to read on a page; the file has the whole table.
MAX_ROWS = 200


def publish(node: Node) -> None:
    """Show a stage's metrics, tables and pictures as artifacts of the running task."""
    # A client per artifact, as Prefect's own functions have it, takes a tenth of a second each.
    with get_client(sync_client=True) as client:
        for kind, path, data in contents(node):
            client.create_artifact(
                ArtifactCreate(
                    type=kind,
                    key=artifact_key(node.name, path.stem),
                    description=path.name,
                    data=data,
                    task_run_id=UUID(str(task_run.id)),
                    flow_run_id=UUID(str(flow_run.id)),
                )
            )


def contents(node: Node) -> Iterator[tuple[str, Path, str]]:
    """Kind, file and data of a stage's artifacts, in the forms that Prefect's UI shows."""
    for path in node.metrics:
        rows = flatten(json.loads(path.read_text(encoding="utf-8")))
        table = "\n".join(
            f"| {markdown_cell(name)} | {markdown_cell(value)} |" for name, value in rows.items()
        )
        yield "markdown", path, f"| metric | value |\n|---|---|\n{table}"
    for path in node.tables:
        with path.open(encoding="utf-8", newline="") as file:
            first = list(itertools.islice(csv.DictReader(file), MAX_ROWS))
        yield "table", path, json.dumps(first, ensure_ascii=False)
    for path in node.pictures:
        encoded = base64.b64encode(path.read_bytes()).decode()
        yield "image", path, f"data:image/png;base64,{encoded}"


def declare_crashed(killed: str) -> None:
    """Tell the server that a run was killed; the run itself could not, so it counts as Running."""
    crashed: State[Any] = Crashed(message="its process was killed; the next run resumed from there")
    # A server with another database does not know the run.
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        run = client.read_flow_run(UUID(killed))
        if run.state and run.state.is_final():
            return
        tasks = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        )
        for task in tasks:
            if task.state and not task.state.is_final():
                client.set_task_run_state(task.id, crashed, force=True)
        client.set_flow_run_state(run.id, crashed, force=True)
