"""Runs a study, trial after trial: `python -m flows.sweep flows/studies/NAME.yaml`.

Every trial runs the graph with different params, in a git worktree of its own on the shared DVC
cache, so stages that do not differ cost nothing. A row is written when its trial ends. A trial that
has a row with the same params and data is not run again; after an interruption it resumes from its
checkpoint.
"""

import argparse
import contextlib
import hashlib
import json
import shutil
import signal
import sys
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import ROOT, look, params, server, ui, workspace
from flows.connection import connected
from flows.graph import Graph, StageFailed
from flows.study import (
    CODE,
    COMMIT,
    DATA,
    DEVICE,
    MESSAGE,
    PARAMS,
    RESULTS,
    STATE,
    Inputs,
    Results,
    Study,
    Trial,
    collect,
    load,
    trials,
)
from flows.tables import summary
from flows.terminal import Display, printable, tolerate_any_text
from stages.core.runner import digest, lock, runtime
from stages.core.runner.errors import AtelierError, WorkspaceBusy
from stages.core.runner.params import load_yaml
from stages.core.runner.text import terminal


def _commit() -> str:
    """The code's state: the commit, with a plus if code or params differ from it.

    Raises: WorkspaceFailed.
    """
    name = workspace.git(ROOT, "describe", "--always", "--exclude=*").strip()
    paths = ["stages", "flows/*.py", "dvc.yaml", "params.yaml"]
    is_different = workspace.git(ROOT, "diff", "--name-only", "HEAD", "--", *paths)
    return f"{name}+" if is_different else name


# Ends a trial that hangs. The longest stage of a run may take ten hours, and a trial has several.
TRIAL_LIMIT_S = 24 * 3600

# State of a trial whose workspace another run holds.
BUSY = "Busy"

# Takes more than metrics and predictions from a trial's workspace, before its row is written.
Keep = Callable[[Trial, Path], None]


@task(cache_policy=NO_CACHE)
def run_trial(
    study: Study,
    trial: Trial,
    inputs: Inputs,
    at: Path,
    shared: Path,
    results: Results,
    display: Display,
    keep: Keep | None,
) -> State[Any]:
    """Run the graph up to the study's target with the trial's params; write its row."""
    on_line = ui.follow(trial.label, display)
    display.start(trial.label)
    row = {
        PARAMS: inputs.params,
        DATA: inputs.data,
        CODE: inputs.code,
        COMMIT: _commit(),
        DEVICE: runtime.device_name(),
        STATE: "done",
        MESSAGE: "",
    }
    try:
        params.check(ROOT / "params.yaml", trial.changes, source=trial.label)
        look.check_images(ROOT, trial.changes, source=trial.label)
        place = workspace.held(
            ROOT, trial.changes, at, "a sweep", source=trial.label, shared=shared
        )
        with place, contextlib.chdir(at):
            graph = Graph(at, study.target)
            graph.reproduce(study.target, on_line, upstream=True)
    except WorkspaceBusy as error:
        # That says nothing of the trial, so it gets no row.
        message = terminal(str(error))
        display.end(trial.label, "Failed", message)
        return Failed(name=BUSY, message=message)
    except (AtelierError, OSError) as error:
        # The lines of a stage are fit for a terminal already.
        message = str(error) if isinstance(error, StageFailed) else terminal(str(error))
        results.add(trial, row | {STATE: "failed", MESSAGE: message.splitlines()[-1]}, None)
        display.end(trial.label, "Failed", message)
        return Failed(message=message)
    metrics, logits = collect(graph)
    if keep:
        keep(trial, at)
    results.add(trial, row | metrics, logits)
    display.end(trial.label, "Completed")
    return Completed()


# A stage reads it, but no result depends on it: it warns of data that has drifted, or ends the run.
HISTORY = "data/accepted.json"


def _md5(content: object) -> str:
    return hashlib.md5(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Planner:
    """What the trials of a study depend on, as the project is now.

    Raises: ParamsError; DataError for images that DVC cannot read; WorkspaceFailed; WorkspaceBusy.
    """

    def __init__(self, study: Study) -> None:
        look.check_images(ROOT)
        self._trials = trials(study)
        self._folder = load_yaml(ROOT / "params.yaml")["data"]["dir"]
        self._graph = Graph(ROOT, study.target)
        self._sections = {"data", *(node.name for node in self._graph.nodes)}

    def inputs(self, trial: Trial) -> Inputs:
        """What a trial depends on. Raises: ParamsError for an unknown key; DataError."""
        return self._inputs([trial])[trial.label]

    def all_inputs(self) -> dict[str, Inputs]:
        """What each trial depends on, by its label.

        Raises: ParamsError for an unknown key; DataError.
        """
        return self._inputs(self._trials)

    def _inputs(self, chosen: list[Trial]) -> dict[str, Inputs]:
        sources = self._graph.sources()
        code = {path: md5 for path, md5 in sources.items() if path.startswith("stages/")}
        data = {path: sources[path] for path in sources.keys() - code.keys() - {HISTORY}}
        planned = {}
        for trial in chosen:
            values = params_of(trial, self._sections)
            trial_data = data
            if (folder := values["data"]["dir"]) != self._folder and (ROOT / folder).exists():
                look.check_images(ROOT, trial.changes, source=trial.label)
                trial_data = data | {folder: digest.md5(ROOT / folder)}
            planned[trial.label] = Inputs(_md5(values), _md5(trial_data), _md5(code))
        return planned


def params_of(trial: Trial, sections: Collection[str]) -> dict[str, Any]:
    """A trial's params in these sections. Raises: ParamsError for an unknown key."""
    values = load_yaml(ROOT / "params.yaml")
    workspace.merge(values, trial.changes, source=trial.name)
    return {name: values[name] for name in sections if name in values}


@flow(name="sweep")
def sweep(study: str, minutes: float | None = None) -> State[Any]:
    """Run the trials of a study that are not done yet; start no trial after `minutes`."""
    try:
        return _run_trials(study, minutes)
    except AtelierError as error:
        return Failed(message=terminal(str(error)))


def _run_trials(study: str, minutes: float | None) -> State[Any]:
    name = Path(study).stem
    plan = load(ROOT / study)
    failed, table = run_plan(name, plan, Results(ROOT / RESULTS, name), minutes)
    create_markdown_artifact(f"{plan.question}\n\n{table}", key=ui.artifact_key("study", name))
    print(printable(table), flush=True)
    return Failed(message=failed) if failed else Completed()


def run_plan(
    name: str, plan: Study, results: Results, minutes: float | None, keep: Keep | None = None
) -> tuple[str, str]:
    """Run the trials that are not done yet; start no trial after `minutes`. One call at a time.

    Args:
        name: of the trials' worktrees.

    Returns: how many trials have failed, in words, or nothing; the summary.

    Raises: ParamsError; DataError; WorkspaceFailed; WorkspaceBusy.
    """
    with lock.held(ROOT / "data" / "scratch" / "sweeps" / name, f"a sweep of {name}"):
        planner = Planner(plan)
        failed = _run_todo(name, plan, planner, results, minutes, keep)
        words = f"{failed} trial{'s' * (failed != 1)} failed" if failed else ""
        return words, summary(plan, results, planner.all_inputs())


def _run_todo(
    name: str,
    plan: Study,
    planner: Planner,
    results: Results,
    minutes: float | None,
    keep: Keep | None,
) -> int:
    """Run the trials; returns how many have failed."""
    planned = planner.all_inputs()
    _commit()  # No trial can run without git.
    todo = [t for t in trials(plan) if not results.is_done(t, planned[t.label])]
    end = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    failed, busy = 0, False
    shared = ROOT / ".worktrees" / f"{name}-kept"
    with Display([trial.label for trial in todo]) as display:
        for trial in todo:
            if time.monotonic() > end:
                break
            at = ROOT / ".worktrees" / f"{name}-{trial.label}"
            run = run_trial.with_options(
                name=name, task_run_name=trial.label, timeout_seconds=TRIAL_LIMIT_S
            )
            inputs = planner.inputs(trial)
            state = run(plan, trial, inputs, at, shared, results, display, keep, return_state=True)
            display.close(trial.label, str(state.name), str(state.message))
            failed += not state.is_completed()
            if state.name == BUSY:
                busy = True
            else:
                workspace.remove(ROOT, at)
        else:
            if not busy:
                shutil.rmtree(shared, ignore_errors=True)
    return failed


def run_flow(run: Callable[[], State[Any]]) -> None:
    """Run a flow of trials beside a Prefect server; exits with a message if it fails."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    tolerate_any_text()
    try:
        with server.starting() as wait:
            params.check(ROOT / "params.yaml")
            with connected(wait):
                state = run()
    except AtelierError as error:
        sys.exit(terminal(f"error: {error}"))
    except KeyboardInterrupt:
        sys.exit("ended; the rows so far are saved, and the next call resumes from there")
    if not state.is_completed():
        sys.exit(printable(f"error: {state.message}"))


def main() -> None:
    """Command line of the sweep."""
    parser = argparse.ArgumentParser(prog="python -m flows.sweep", description=__doc__)
    parser.add_argument("study", help="a file in flows/studies/")
    parser.add_argument("--minutes", type=float, help="start no trial after this time")
    parser.add_argument("--summary", action="store_true", help="run nothing, print the tables")
    arguments = parser.parse_args()
    tolerate_any_text()
    try:
        plan = load(ROOT / arguments.study)
        if arguments.summary:
            results = Results(ROOT / RESULTS, Path(arguments.study).stem)
            print(printable(summary(plan, results, Planner(plan).all_inputs())))
            return
    except AtelierError as error:
        sys.exit(terminal(f"error: {error}"))
    run_flow(lambda: sweep(arguments.study, arguments.minutes, return_state=True))


if __name__ == "__main__":
    main()
