"""The training pipeline as a Prefect flow."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows import ROOT, look, params, summary, ui, workspace
from flows.connection import connected
from flows.graph import Graph, Node, StageFailed
from flows.options import Options
from flows.server import Address
from flows.terminal import Display, printable, tolerate_any_text
from stages.core.runner import lock
from stages.core.runner.errors import AtelierError, ParamsError
from stages.core.runner.params import load_yaml
from stages.core.runner.text import terminal

# The form in Prefect's UI shows these.
DEFAULTS = Options()


@task(cache_policy=NO_CACHE)
def run_stage(graph: Graph, node: Node, display: Display, *, force: bool) -> State[Any]:
    """Bring one stage up to date; its lines go to Prefect and to the terminal."""
    on_line = ui.follow(node.name, display)
    display.start(node.name)
    try:
        unchanged = not force and graph.is_unchanged(node.name)
        outcome = "unchanged" if unchanged else graph.reproduce(node.name, on_line, force=force)
    except AtelierError as error:
        # A stage's own last line already begins with `error: `.
        message = str(error) if isinstance(error, StageFailed) else terminal(f"error: {error}")
        display.end(node.name, "Failed", message)
        return Failed(message=message)
    ui.publish(node)
    if outcome == "ran":
        display.end(node.name, "Completed")
        return Completed()
    display.end(node.name, "Cached", outcome)
    return Completed(name="Cached", message=outcome)


@flow(name="train", validate_parameters=True)
def train(options: Options = DEFAULTS) -> State[Any]:
    """Bring all stages as far as `target` up to date, in the order of dvc.yaml's graph."""
    try:
        with held_workspace(options.overlay, str(flow_run.id)) as (root, killed):
            if killed:
                ui.declare_crashed(killed)
            with contextlib.chdir(root):
                states = run_stages(Graph(root, options.target), options)
    except AtelierError as error:
        return Failed(message=terminal(f"error: {error}"))
    bad = {name: state for name, state in states.items() if state.is_failed() or state.is_crashed()}
    if bad:
        # A stage's own last line names it already.
        lines = [
            f"{name}: {str(state.message).removeprefix(f'error: {name}: ')}"
            for name, state in bad.items()
        ]
        if "check" in bad:
            lines.append(f"report   {os.path.relpath(root / summary.REPORT, ROOT)}")
        return Failed(message="\n".join(lines))
    cached = sum(state.name == "Cached" for state in states.values())
    return Completed(
        message=f"stages run: {len(states) - cached}, up to date: {cached}", data=list(states)
    )


@contextlib.contextmanager
def held_workspace(overlay: str | None, run: str) -> Iterator[tuple[Path, str]]:
    """Hold the workspace to run in: the project's own, or one with the overlay's params.

    Yields its folder, and the id of a flow run before `run` that was killed, or "".

    Raises: ParamsError; WorkspaceFailed; WorkspaceBusy.
    """
    if overlay is None:
        look.check_images(ROOT)
        params.check(ROOT / "params.yaml")
        with lock.held(ROOT, "a flow run", run=run) as killed:
            yield ROOT, killed
        return
    changes = load_yaml(workspace.overlay_file(ROOT, overlay))
    look.check_images(ROOT, changes, source=overlay)
    params.check(ROOT / "params.yaml", changes, source=overlay)
    at = workspace.path(ROOT, overlay)
    with workspace.held(ROOT, changes, at, "a flow run", source=overlay, run=run) as killed:
        yield at, killed


def run_stages(graph: Graph, options: Options) -> dict[str, State[Any]]:
    """Run the stages one after the other; once one has failed, none of the others is run.

    Raises: ParamsError for a stage to force that is not among them.
    """
    names = [node.name for node in graph.nodes]
    if unknown := sorted(set(options.force) - set(names)):
        raise ParamsError(
            f"force = {', '.join(unknown)}: not among the stages of this run; expected some of "
            f"{', '.join(names)}"
        )
    states: dict[str, State[Any]] = {}
    with Display(names) as display:
        for node in graph.nodes:
            states[node.name] = run_stage.with_options(
                name=node.name,
                task_run_name=node.name,
                timeout_seconds=options.stage_timeout_minutes * 60,
            )(
                graph,
                node,
                display,
                force=node.name in options.force,
                # The target needs every stage, so one that fails makes the others useless for now.
                wait_for=[
                    state
                    for name, state in states.items()
                    if name in node.needs or not state.is_completed()
                ],
                return_state=True,
            )
            display.close(node.name, str(states[node.name].name), str(states[node.name].message))
    return states


def run(options: Options, wait: Callable[[], Address | None]) -> None:
    """Run the flow and print its results. Exits with a message where the flow has failed.

    Args:
        wait: as `server.starting` yields it.

    Raises: AtelierError.
    """
    tolerate_any_text()
    root = workspace.path(ROOT, options.overlay) if options.overlay else ROOT
    # Checking every stage's params takes as long as the server takes to start.
    params.check(ROOT / "params.yaml")
    with connected(wait):
        state = train(options, return_state=True)
    if not state.is_completed():
        place = "" if root == ROOT else f"\n(in {os.path.relpath(root, ROOT)})"
        sys.exit(printable(f"{state.message}{place}"))
    stages: Any = state.result()
    summary.show(root, stages, str(state.message))
