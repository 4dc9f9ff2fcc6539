"""The training pipeline as a Prefect flow: `python -m flows.train --help`."""

import argparse
import contextlib
import signal
import sys
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from flows import ROOT, look, params, server, summary, ui, workspace
from flows.graph import Graph, Node, StageFailed
from flows.terminal import Display, printable, tolerate_any_text
from stages.core.runner import lock
from stages.core.runner.errors import AtelierError, ParamsError
from stages.core.runner.params import load_yaml
from stages.core.runner.text import terminal


class Options(BaseModel):
    """How to run; params.yaml says what is computed."""

    model_config = ConfigDict(extra="forbid")

    target: str = Field(default="check", description="The last stage to bring up to date.")
    force: list[str] = Field(default=[], description="Stages to run even if nothing has changed.")
    overlay: str | None = Field(
        default=None,
        description="Run with other params, in a workspace of its own: the name of a file in "
        "flows/overlays (such as full), or the path of another YAML file inside the project.",
    )
    stage_timeout_minutes: float = Field(
        default=600, gt=0, description="A stage that takes longer is ended and counts as failed."
    )


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
        root = prepare_workspace(options.overlay)
        run = str(flow_run.id)
        with contextlib.chdir(root), lock.held(root, "a flow run", run=run) as killed:
            if killed:
                ui.declare_crashed(killed)
            params.check(root / "params.yaml")
            states = run_stages(Graph(root, options.target), options)
    except AtelierError as error:
        return Failed(message=terminal(f"error: {error}"))
    bad = {name: state for name, state in states.items() if state.is_failed() or state.is_crashed()}
    if bad:
        return Failed(message="\n".join(f"{name}: {state.message}" for name, state in bad.items()))
    cached = sum(state.name == "Cached" for state in states.values())
    return Completed(
        message=f"stages run: {len(states) - cached}, up to date: {cached}", data=list(states)
    )


def prepare_workspace(overlay: str | None) -> Path:
    """The workspace to run in: the project's own, or one with the overlay's params.

    Raises: ParamsError; WorkspaceFailed; WorkspaceBusy.
    """
    if overlay is None:
        look.check_images(ROOT)
        return ROOT
    changes = load_yaml(workspace.overlay_file(ROOT, overlay))
    look.check_images(ROOT, changes, source=overlay)
    return workspace.prepare(ROOT, changes, workspace.path(ROOT, overlay), source=overlay)


def run_stages(graph: Graph, options: Options) -> dict[str, State[Any]]:
    """Run the stages one after the other; those that need a failed one are not run.

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
                wait_for=[states[name] for name in node.needs],
                return_state=True,
            )
            display.close(node.name, str(states[node.name].name), str(states[node.name].message))
    return states


def main() -> None:
    """Command line of the flow."""
    parser = argparse.ArgumentParser(prog="python -m flows.train", description=train.description)
    for name, field in Options.model_fields.items():
        parser.add_argument(
            "--" + name.replace("_", "-"),
            default=field.default,
            type=float if field.annotation is float else str,
            nargs="*" if field.annotation == list[str] else None,
            help=f"{field.description} (default: {field.default})",
        )
    options = Options(**vars(parser.parse_args()))
    # As with Ctrl-C, Prefect records the end, and the stage's process tree is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tolerate_any_text()
    try:
        root = workspace.path(ROOT, options.overlay) if options.overlay else ROOT
        # Checking every stage's params takes as long as the server takes to start.
        with server.connected(lambda: params.check(ROOT / "params.yaml")):
            state = train(options, return_state=True)
    except AtelierError as error:
        sys.exit(terminal(f"error: {error}"))
    except KeyboardInterrupt:
        sys.exit("ended; the next run resumes from the last checkpoint")
    if not state.is_completed():
        sys.exit(printable(str(state.message)))
    stages: Any = state.result()
    summary.show(root, stages, str(state.message))


if __name__ == "__main__":
    main()
