"""What surrounds the work of every stage: its command line, params, inputs, outputs and end.

`main` is all that a stage file calls, with its params, its paths and its work.
"""

import argparse
import contextlib
import ctypes
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from stages.core.runner import digest, disk, lock, parent, processes
from stages.core.runner.errors import AtelierError, InputsChanged, ParamsError
from stages.core.runner.params import Section, load_section
from stages.core.runner.runtime import Resources
from stages.core.runner.text import terminal

SCRATCH = Path("data/scratch")


def reads() -> Any:
    """A path that the stage only reads; it must not change while the stage runs."""
    return dataclasses.field(metadata={"input": True})


def writes(*, even_on_failure: bool = False, tracked: bool = True, live: bool = False) -> Any:
    """A path that the stage writes, moved into place when the stage has succeeded.

    With `even_on_failure`, also when it ended with one of our own errors (a report that shows why).
    What is not `tracked` is no output to DVC, since it carries dates, say. What is `live` is
    written in its place from the start, to be looked at while the stage runs.
    """
    return dataclasses.field(
        metadata={
            "input": False,
            "even_on_failure": even_on_failure,
            "tracked": tracked,
            "live": live,
        }
    )


def keeps() -> Any:
    """A cache that the stage keeps from run to run; what is in it must not change a result."""
    return dataclasses.field(metadata={"cache": True})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Paths:
    """Base of a stage's paths: every field becomes an option of its command line."""

    scratch: Path = dataclasses.field(default=SCRATCH, metadata={"scratch": True})

    @classmethod
    def inputs(cls) -> list[str]:
        """Names of the fields made with `reads()`."""
        return [f.name for f in dataclasses.fields(cls) if f.metadata.get("input") is True]

    @classmethod
    def outputs(cls) -> list[str]:
        """Names of the fields made with `writes()`."""
        return [f.name for f in dataclasses.fields(cls) if f.metadata.get("input") is False]

    @classmethod
    def options(cls) -> list[str]:
        """Names of all fields that are options of the command line."""
        caches = [f.name for f in dataclasses.fields(cls) if f.metadata.get("cache")]
        return cls.inputs() + cls.outputs() + caches


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage, as `main` takes it from a stage file.

    Attributes:
        name: of the stage in dvc.yaml, and of its file.
        params, paths: classes of its section in params.yaml and of its command line.
        run: the work, `run(params, *, paths, resources)`.
        trains_together: whether several processes may share the work (resources.processes).
    """

    name: str
    params: type[Section]
    paths: type[Paths]
    run: Callable[..., None]
    trains_together: bool = False


P = TypeVar("P", bound=Paths)


def _option(field: str) -> str:
    return "--" + field.replace("_", "-")


def _parse(paths_class: type[P], name: str) -> P:
    parser = argparse.ArgumentParser(prog=f"python -m stages.{name}", allow_abbrev=False)
    for field in paths_class.options():
        parser.add_argument(_option(field), type=Path, required=True)
    return paths_class(**vars(parser.parse_args()))


def inputs_of(paths: Paths) -> dict[str, str]:
    """md5 of every input, by the field's name; the same as in dvc.lock."""
    return {name: digest.md5(getattr(paths, name)) for name in paths.inputs()}


def code_digests(root: Path) -> dict[Path, str]:
    """md5 of each of the project's source files that this process has imported."""
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    ours = root / "stages"
    sources = sorted(Path(file) for file in files if file and Path(file).is_relative_to(ours))
    return {source: digest.file_md5(source) for source in sources}


@contextlib.contextmanager
def _unchanged(
    paths: Paths, section: Callable[[], Section], root: Path
) -> Iterator[dict[str, str]]:
    """Yield the inputs' md5 by field; raise InputsChanged if any of them differs at the end.

    DVC hashes dependencies, code and params after the command, so what changed meanwhile would be
    recorded as if it had been used.
    """
    inputs = {name: getattr(paths, name) for name in paths.inputs()}
    for name, path in inputs.items():
        if not path.exists():
            raise ParamsError(f"{_option(name)} {path}: no such file or folder")
    stamps = {name: digest.stamp(path) for name, path in inputs.items()}
    before = inputs_of(paths)
    params, code = section(), code_digests(root)
    yield before
    for name, path in inputs.items():
        gone = not path.exists()
        if gone or (digest.stamp(path) != stamps[name] and digest.md5(path) != before[name]):
            raise InputsChanged(f"{path} changed while the stage ran; run it again")
    for file, md5 in code.items():
        if not file.exists() or digest.file_md5(file) != md5:
            raise InputsChanged(
                f"{file.relative_to(root)} changed while the stage ran; run it again"
            )
    if section() != params:
        raise InputsChanged(
            "this stage's section of params.yaml changed while it ran; run it again"
        )


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# linux/fcntl.h and linux/fs.h
AT_FDCWD, RENAME_EXCHANGE = -100, 2


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two files or folders of a file system, at once where that can be had.

    Where the file system or the C library cannot, `one` is missing for a moment.
    """
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = os.fsencode(one), os.fsencode(other)
    if renameat2 and not renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        return
    aside = other.with_name(f"{other.name}.aside")
    one.replace(aside)
    other.replace(one)
    aside.replace(other)


@contextlib.contextmanager
def staged(paths: P) -> Iterator[P]:
    """Yield `paths` with every output under a temporary name beside its place.

    They are moved into place on success, so an output that exists is complete; one that was there
    before stands until then.
    """
    fields = {f.name: f for f in dataclasses.fields(paths)}
    final = {name: getattr(paths, name) for name in paths.outputs()}
    partial = {
        name: path if fields[name].metadata["live"] else path.with_name(f".partial.{path.name}")
        for name, path in final.items()
    }

    def place(names: list[str]) -> None:
        for name in names:
            if not partial[name].exists() or partial[name] == final[name]:
                continue
            if os.path.lexists(final[name]):
                exchange(final[name], partial[name])
            else:
                partial[name].replace(final[name])

    for path in partial.values():
        path.parent.mkdir(parents=True, exist_ok=True)
        remove(path)
    try:
        yield dataclasses.replace(paths, **partial)
        missing = [str(final[n]) for n in final if not partial[n].exists()]
        if missing:
            raise RuntimeError(f"the stage did not write {', '.join(missing)}")
        place(list(final))
    except AtelierError:
        place([n for n in final if fields[n].metadata["even_on_failure"]])
        raise
    finally:
        for name, path in partial.items():
            if path != final[name]:
                remove(path)


def execute(stage: Stage, paths: Paths, root: Path) -> None:
    """Run one stage on the given paths, with all that `main` promises.

    Raises: AtelierError, with a text for the user.
    """
    params_file = root / "params.yaml"

    def section() -> Section:
        return load_section(params_file, stage.name, stage.params)

    resources = load_section(params_file, "resources", Resources)
    # Outputs are moved into place only after the inputs have been looked at again.
    with staged(paths) as partial, _unchanged(paths, section, root) as inputs:
        params = section()
        resources.apply()
        processes.join(resources)
        code = "".join(code_digests(root).values())
        work = [params.model_dump_json(), json.dumps(inputs, sort_keys=True), code]
        scratch = paths.scratch / stage.name / hashlib.md5("".join(work).encode()).hexdigest()
        partial = dataclasses.replace(partial, scratch=scratch)
        stage.run(params, paths=partial, resources=resources)
    # Checkpoints of other params stay: whoever goes back to those params goes on from there.
    processes.wait()
    if not processes.rank():
        remove(scratch)


def _launch_workers(stage: Stage, root: Path) -> None:
    """Run this stage as several processes, if it can use them; does not return then."""
    count = load_section(root / "params.yaml", "resources", Resources).processes
    if count == 1 or processes.size() > 1 or not stage.trains_together:
        return
    environment = os.environ | {lock.HOLDER: os.environ.get(lock.HOLDER, str(os.getpid()))}
    ended = subprocess.run(processes.launch(f"stages.{stage.name}", count), env=environment)
    # The process at fault has said what was wrong.
    os._exit(ended.returncode)


def _run_as_worker(stage: Stage, paths: Paths, root: Path) -> None:
    """The same work in a process that is not the first: silent, its outputs thrown away."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Path(os.devnull).open("w") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        outputs = {n: Path(folder) / n / getattr(paths, n).name for n in paths.outputs()}
        execute(stage, dataclasses.replace(paths, **outputs), root)


def main(
    name: str,
    params: type[Section],
    paths: type[Paths],
    run: Callable[..., None],
    *,
    trains_together: bool = False,
) -> None:
    """Entry point of `python -m stages.NAME`; see `Stage` for the arguments."""
    stage = Stage(name, params, paths, run, trains_together)
    root = Path.cwd()
    started = time.monotonic()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 is no reason to end
            stream.reconfigure(errors="backslashreplace")
    try:
        parent.die_with_parent()
        with lock.held(root, f"stage {name}"):
            given = _parse(paths, name)
            _launch_workers(stage, root)
            (_run_as_worker if processes.rank() else execute)(stage, given, root)
    except AtelierError as error:
        sys.exit(terminal(f"error: {name}: {' '.join(str(error).split())}"))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            sys.exit(
                terminal(
                    f"error: {name}: {error.filename or root}: {error.strerror}; "
                    "check its permissions"
                )
            )
        if not disk.is_full(error):
            raise
        place = f" ({error.filename})" if error.filename else ""
        sys.exit(f"error: {name}: the disk is full{place}: {disk.room(root)}; make some, run again")
    except KeyboardInterrupt:
        sys.exit(130)
    print(f"{name} took {time.monotonic() - started:.1f} s", flush=True)
    # Without this, libraries' threads and atexit hooks can hold a finished stage for seconds.
    sys.stdout.flush()
    os._exit(0)
