"""The pipeline as DVC sees it. Runs a stage of it in a process tree that can be ended."""

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import networkx as nx
from dvc.dependency import ParamsDependency
from dvc.dvcfile import LOCK_FILE, Lockfile
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.rwlock import RWLOCK_FILE
from dvc.stage import Stage

from flows import ROOT
from flows.repo import one_line, open_repo
from stages.core.runner.errors import AtelierError, ParamsError
from stages.core.runner.lock import HOLDER
from stages.core.runner.text import terminal

Outcome = Literal["unchanged", "restored", "ran"]


class StageFailed(AtelierError):
    """A stage ended with an error; the text is the end of its output."""


@dataclass(frozen=True)
class Node:
    """One stage of dvc.yaml, or one `.dvc` file of tracked data.

    Attributes:
        name: how DVC addresses it.
        needs: names of the nodes whose outputs it reads.
        metrics, pictures, tables: files that it writes for people.
    """

    name: str
    needs: tuple[str, ...] = ()
    metrics: tuple[Path, ...] = ()
    pictures: tuple[Path, ...] = ()
    tables: tuple[Path, ...] = ()


def _node(stage: Stage, graph: "nx.DiGraph[Stage]") -> Node:
    outs = [Path(out.fs_path) for out in stage.outs]
    return Node(
        name=stage.addressing,
        needs=tuple(sorted(s.addressing for s in graph.successors(stage))),
        metrics=tuple(Path(o.fs_path) for o in stage.outs if o.metric),
        pictures=tuple(p for p in outs if p.suffix == ".png"),
        tables=tuple(p for p in outs if p.suffix == ".csv" and p.name != "predictions.csv"),
    )


def _is_whole(repo: Repo, path: Path) -> bool:
    """Whether DVC can read its own file; it cannot if it was killed while writing it."""
    try:
        if path.name == LOCK_FILE:
            Lockfile(repo, str(path)).load()
        else:
            json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (DvcException, ValueError):
        return False
    return True


def _repair_after_kill(repo: Repo) -> None:
    """Put aside the file that DVC was writing when it was killed; it refuses to read half a file.

    DVC's run cache restores the outputs that the cut `dvc.lock` named.

    Raises: ParamsError if `dvc.lock` has merge conflicts; WorkspaceBusy.
    """
    lock, processes = Path(repo.root_dir) / LOCK_FILE, Path(repo.tmp_dir) / RWLOCK_FILE
    if _is_whole(repo, lock) and _is_whole(repo, processes):
        return
    # Whoever holds DVC's lock is alive, and may be in the middle of writing.
    with repo.lock:
        if not _is_whole(repo, processes):
            processes.unlink()
        if not _is_whole(repo, lock):
            if "<<<<<<<" in lock.read_text(encoding="utf-8", errors="replace"):
                raise ParamsError(
                    f"{LOCK_FILE}: has merge conflict markers; resolve them (`git checkout "
                    f"--ours {LOCK_FILE}` takes one side), then run again"
                )
            aside = lock.replace(Path(repo.tmp_dir) / f"{LOCK_FILE}.cut")
            print(f"{LOCK_FILE} is incomplete: moved to {aside}, and written again", flush=True)


class Graph:
    """The graph of one workspace, up to one target.

    Raises: ParamsError for a target that is not a stage, or an input that does not exist;
        WorkspaceFailed; WorkspaceBusy.
    """

    def __init__(self, root: Path, target: str) -> None:
        self.root = root
        self._repo = open_repo(root)
        self._has_run = False
        _repair_after_kill(self._repo)
        try:
            graph = self._repo.index.graph
        except DvcException as error:
            raise ParamsError(f"DVC cannot read the pipeline: {one_line(error)}") from None
        stages = {stage.addressing: stage for stage in self._repo.index.stages}
        # DVC itself would accept a path, and load whatever pipeline is there.
        if target not in stages:
            raise ParamsError(
                f"target = {target!r}: no such stage; expected one of {', '.join(stages)}"
            )
        upstream = {stages[target]} | nx.descendants(graph, stages[target])
        place = {stage: (i, name) for i, (name, stage) in enumerate(stages.items())}
        ordered = nx.lexicographical_topological_sort(graph.reverse(), key=place.__getitem__)
        self.nodes = [_node(stage, graph) for stage in ordered if stage in upstream]
        self._check_inputs(upstream)

    def _check_inputs(self, stages: set[Stage]) -> None:
        """Raises: ParamsError for an input that does not exist and that no stage writes."""
        outs = [Path(out.fs_path) for stage in self._repo.index.stages for out in stage.outs]
        for path in sorted({Path(dep.fs_path) for stage in stages for dep in stage.deps}):
            is_output = any(path.is_relative_to(out) or out.is_relative_to(path) for out in outs)
            if not path.exists() and not is_output:
                name = self._name(str(path))
                if (ROOT / name).exists():
                    raise ParamsError(
                        f"{name}: neither git nor DVC tracks it, so a workspace has no copy of it; "
                        f"run `dvc add {shlex.quote(name)}` in the project, or set data.dir to the "
                        f"whole path, {ROOT / name}"
                    )
                raise ParamsError(
                    f"{name}: no such file or folder, and no stage writes it; if your images "
                    "should be there, correct data.dir in params.yaml, or put them there"
                )

    def is_unchanged(self, name: str, *, but_for: str = "") -> bool:
        """Whether DVC would do nothing for this stage: a tenth of a second, no child process.

        Args:
            name: the stage.
            but_for: an input that may have changed.

        Raises: WorkspaceBusy.
        """
        if self._has_run:
            # What DVC remembers of dvc.lock is from before.
            self._repo._reset()
            self._has_run = False
        with self._repo.lock:
            return all(
                not stage.changed()
                or (but_for and stage.status() == {name: [{"changed deps": {but_for: "modified"}}]})
                for stage in self._repo.stage.collect(name)
            )

    def sources(self) -> dict[str, str]:
        """DVC's md5 of everything that stages read and no stage writes, by path.

        Tracked data is among them; a path is relative to the workspace.
        """
        names = {node.name for node in self.nodes}
        stages = [stage for stage in self._repo.index.stages if stage.addressing in names]
        outputs = {out.fs_path for stage in stages if stage.cmd for out in stage.outs}
        inputs = [d for stage in stages for d in stage.deps if not isinstance(d, ParamsDependency)]
        inputs += [out for stage in stages if not stage.cmd for out in stage.outs]
        with self._repo.lock:
            return {
                self._name(each.fs_path): each.get_hash().value
                for each in inputs
                if not any(Path(each.fs_path).is_relative_to(out) for out in outputs)
                and not any(Path(out).is_relative_to(each.fs_path) for out in outputs)
            }

    def _name(self, path: str) -> str:
        """A path relative to the workspace if it is inside, else as it is."""
        inside = Path(path).is_relative_to(self.root)
        return os.path.relpath(path, self.root) if inside else path

    def reproduce(
        self,
        name: str,
        on_line: Callable[[str], None],
        *,
        force: bool = False,
        upstream: bool = False,
    ) -> Outcome:
        """Have DVC bring one stage up to date, in a child process.

        Whatever ends this call early (Ctrl-C, a cancelled run, a timeout) ends the whole process
        tree of the stage; so does the death of this process.

        Args:
            name: the stage.
            on_line: called with each line of its output.
            force: run it even if nothing has changed.
            upstream: first bring up to date all that it needs.

        Raises: StageFailed.
        """
        self._has_run = True
        lines: list[str] = []
        with tempfile.TemporaryDirectory() as folder:
            outcome = Path(folder) / "outcome.json"
            command = [sys.executable, "-m", "flows.dvc_child", str(outcome), name]
            with subprocess.Popen(
                command + ["--force"] * force + ["--upstream"] * upstream,
                cwd=self.root,
                env=_child_environment(),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            ) as child:
                try:
                    for line in child.stdout or ():
                        if line := terminal(line.rstrip()):
                            lines.append(line)
                            on_line(line)
                    child.wait()
                except BaseException:
                    with contextlib.suppress(ProcessLookupError):
                        os.killpg(child.pid, signal.SIGKILL)
                    raise
            if child.returncode:
                raise StageFailed(_last_words(lines, child.returncode))
            result: Outcome = json.loads(outcome.read_text(encoding="utf-8"))
            return result


def _child_environment() -> dict[str, str]:
    environment = dict(os.environ)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    environment["PYTHONUNBUFFERED"] = "1"
    # Names and labels are UTF-8, and so is the output that we read, whatever the locale.
    environment["PYTHONUTF8"] = "1"
    # The hub's client warns of each failed attempt, which would bury the stage's own last line.
    environment.setdefault("HF_HUB_VERBOSITY", "error")
    environment[HOLDER] = str(os.getpid())
    return environment


def _last_words(lines: list[str], returncode: int) -> str:
    """Our own error line if there is one, else the end of the output."""
    ours = [line for line in lines if line.startswith("error: ")]
    return ours[-1] if ours else "\n".join([*lines[-10:], f"exit status {returncode}"])
