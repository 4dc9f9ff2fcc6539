"""Runs the same graph with other params, in a git worktree of its own on the shared DVC cache."""

import difflib
import hashlib
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configobj import ConfigObj
from dvc.exceptions import DvcException
from ruamel.yaml import YAML

from flows.repo import one_line, open_repo
from stages.core.runner import lock
from stages.core.runner.errors import ParamsError, WorkspaceFailed

OVERLAYS = Path("flows/overlays")
# A run writes these files, so each workspace has its own.
LOCK = "dvc.lock"
OWN = (LOCK, "data/reports/")
# Stages reuse these folders of data/scratch from run to run; file names in them encode everything
# that the content depends on, so workspaces may share them.
CACHES = ("looks", "prefixes")
# How DVC takes files from the shared cache: as links, so that ten workspaces are not ten copies.
LINKS = "reflink,hardlink,copy"


def overlay_file(root: Path, overlay: str) -> Path:
    """The file of an overlay, named as `tiny`, `tiny.yaml` or by its path in the project.

    Names are looked for in `flows/overlays`, then in the project's root. One may come from the form
    in the UI, so nothing outside the project is read, or shown in an error. Raises: ParamsError.
    """
    root = root.resolve()
    name = overlay if overlay.endswith(".yaml") else f"{overlay}.yaml"
    for folder in [root] if "/" in name else [root / OVERLAYS, root]:
        try:
            file = (folder / name).resolve()
            is_inside = file.is_relative_to(root)
            if is_inside and re.fullmatch(r"\w[\w.-]*\.yaml", file.name) and file.is_file():
                return file
        except (OSError, RuntimeError, ValueError):
            pass  # Too long, a loop of links, a null byte: not a file name.
    overlays = ", ".join(sorted(file.stem for file in (root / OVERLAYS).glob("*.yaml")))
    raise ParamsError(
        f"overlay = {overlay!r}: expected one of {overlays} (in {OVERLAYS}), or the path of "
        "another YAML file inside the project; copy yours there"
    )


def path(root: Path, overlay: str) -> Path:
    """The folder of an overlay's workspace: one per file. Raises: ParamsError."""
    file = overlay_file(root, overlay).relative_to(root.resolve())
    name = file.stem
    if file.parent != OVERLAYS:
        name += "-" + hashlib.md5(str(file).encode()).hexdigest()[:8]
    return root / ".worktrees" / name


# Mappings whose keys are the user's own (classes, disturbances): an overlay's replaces the whole.
FREE = ("check.min_recall", "check.min_gain_under")


def merge(
    params: dict[str, Any], overlay: dict[str, Any], *, source: str, section: str = ""
) -> None:
    """Put an overlay's values into `params`, in place. Raises: ParamsError for unknown keys."""
    for key, value in overlay.items():
        name = f"{section}.{key}" if section else str(key)
        if key not in params:
            # A key that is misspelt, or that stands in a part of its section.
            known = [(str(each), str(each)) for each in params] + [
                (str(inner), f"{part}.{inner}")
                for part, values in params.items()
                if isinstance(values, dict)
                for inner in values
            ]
            closest = difflib.get_close_matches(str(key), [each for each, _ in known], 1)
            meant = [place for each, place in known if each in closest]
            advice = (
                f"; is {' or '.join(meant)} meant?" if meant else f"; there are {', '.join(params)}"
            )
            raise ParamsError(f"{source}: {name} = {value!r}: params.yaml has no such key{advice}")
        if isinstance(params[key], dict) and isinstance(value, dict) and name not in FREE:
            merge(params[key], value, source=source, section=name)
        else:
            params[key] = value


def git(folder: Path, *arguments: str) -> str:
    """The output of a git command in `folder`; names of files are decoded as Python has them.

    Raises: WorkspaceFailed.
    """
    command = ["git", *arguments]
    try:
        # Git's words in English: `_is_linked` knows one of them.
        environment = os.environ | {"LC_ALL": "C"}
        process = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    except FileNotFoundError:
        raise WorkspaceFailed("git: no such command; install git") from None
    if process.returncode:
        reason = (
            " ".join(os.fsdecode(process.stderr).split()) or f"exit status {process.returncode}"
        )
        raise WorkspaceFailed(f"{shlex.join(command)} in {folder}: {reason}")
    return os.fsdecode(process.stdout)


def _tracked(root: Path) -> list[Path]:
    """The `.dvc` files of the data, in folders of data/ too."""
    names = git(root, "ls-files", "-coz", "--exclude-standard", "--", "data/*.dvc").split("\0")
    return [root / name for name in sorted(set(names) - {""}) if (root / name).is_file()]


def _commit_tracked(root: Path) -> str:
    """Commit tracked data to DVC as it is now; returns the folder of DVC's cache."""
    with open_repo(root) as repo:
        for file in _tracked(root):
            if file.with_suffix("").exists():
                repo.commit(str(file), force=True)
        return str(repo.cache.legacy.path)


def _checkout_tracked(at: Path) -> None:
    with open_repo(at) as repo:
        for file in _tracked(at):
            # The folder may have been a link to the user's images; DVC would change those.
            if file.with_suffix("").is_symlink():
                file.with_suffix("").unlink()
            repo.checkout([str(file)])


def _is_linked(root: Path, at: Path) -> bool:
    """Whether `at` is a worktree of the repository of `root`.

    A project that was moved or copied takes its worktrees along, but they and git still name each
    other by the old paths. `git worktree repair` would rewrite the paths of a copy's original, so
    we write the two paths ourselves.
    """
    if not (at / ".git").is_file():
        return False
    common = root / git(root, "rev-parse", "--git-common-dir").strip()
    record = common.resolve() / "worktrees" / _link(at).name
    if not (record / "gitdir").is_file():
        return False
    # Git holds this lock while it makes a worktree; it stays if git is killed.
    locked = record / "locked"
    if locked.is_file() and locked.read_bytes().strip() == b"initializing":
        return False
    owner = Path(_line(record / "gitdir")).parent
    if owner.resolve() != at.resolve() and (owner / ".git").is_file() and _link(owner) == record:
        return False  # `at` is a copy of another workspace of this project.
    (record / "gitdir").write_bytes(os.fsencode(f"{at.resolve() / '.git'}\n"))
    (at / ".git").write_bytes(os.fsencode(f"gitdir: {record}\n"))
    return True


def _link(worktree: Path) -> Path:
    return Path(_line(worktree / ".git").removeprefix("gitdir:").strip())


def _line(file: Path) -> str:
    """The one line of a file in which git keeps a path, as bytes of the file system."""
    return os.fsdecode(file.read_bytes()).strip()


def _delete(path: Path) -> None:
    """Delete a file, a link or a folder, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _ensure_worktree(root: Path, at: Path) -> None:
    if _is_linked(root, at):
        return
    _delete(at)
    try:
        git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except WorkspaceFailed:
        raise WorkspaceFailed(
            f"{root}: git has no commit to make a workspace from; run `git add --all && "
            "git commit --message start`"
        ) from None
    git(root, "worktree", "prune")
    # Twice: git may know the place from a worktree whose making was killed, and which is locked.
    force = ["--force", "--force"]
    git(root, "worktree", "add", *force, "--quiet", "--detach", str(at), "HEAD")


def _copy_sources(root: Path, workspace: Path) -> None:
    """Bring the workspace's files to the state of the working tree, uncommitted edits included."""
    names = set(git(root, "ls-files", "-coz", "--exclude-standard").split("\0")) - {""}
    for name in set(git(workspace, "ls-files", "-z").split("\0")) - names - {""}:
        if _is_reached(workspace, name):
            _delete(workspace / name)
    for name in sorted(names):
        source, target = root / name, workspace / name
        is_linked_folder = source.is_symlink() and source.is_dir()
        if (
            name.startswith(OWN)
            or not (source.is_file() or is_linked_folder)
            or not _is_reached(root, name)
        ):
            continue
        for parent in map(workspace.joinpath, reversed(Path(name).parents[:-1])):
            if parent.is_symlink() or parent.is_file():
                parent.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_linked_folder:
            if not target.is_symlink() or target.readlink() != source.resolve():
                _delete(target)
                target.symlink_to(source.resolve())
            continue
        if target.is_symlink() or target.is_dir():
            _delete(target)
        if not target.is_file() or source.read_bytes() != target.read_bytes():
            shutil.copy2(source, target)


def _is_reached(folder: Path, name: str) -> bool:
    """Whether only folders lead to a name: no file, and no link, which may lead to the user's."""
    parents = [folder / parent for parent in Path(name).parents[:-1]]
    return all(parent.is_dir() and not parent.is_symlink() for parent in parents)


def prepare(
    root: Path,
    changes: dict[str, Any],
    at: Path,
    *,
    source: str,
    cache: Path | None = None,
    shared: Path | None = None,
) -> Path:
    """Make or refresh a workspace with other params; returns its folder.

    Args:
        root: the project.
        changes: the keys of params.yaml that differ.
        at: the workspace's folder.
        source: where `changes` come from, for messages.
        cache: the workspace's DVC cache, if not the project's own.
        shared: the parent folder of `CACHES`, if not in the workspace; for workspaces that run one
            after the other.

    Tracked data is committed to DVC as it is now in the project, and checked out in the workspace.

    Raises: ParamsError for a key that params.yaml does not have. WorkspaceFailed.
    """
    yaml = YAML()
    values = yaml.load(root / "params.yaml")
    merge(values, changes, source=source)
    try:
        project_cache = _commit_tracked(root)
    except DvcException as error:
        raise WorkspaceFailed(f"dvc commit in {root}: {one_line(error)}") from None
    _ensure_worktree(root, at)
    local = at / ".dvc" / "config.local"
    if not local.exists():
        # If the committed lock fits, DVC looks for its outputs and no others. On a machine that
        # never made exactly those, it would miss the outputs of other workspaces.
        (at / LOCK).unlink(missing_ok=True)
    _copy_sources(root, at)
    yaml.dump(values, at / "params.yaml")
    config = ConfigObj({"cache": {"dir": str(cache or project_cache), "type": LINKS}})
    # DVC reads it in the locale's encoding, as Python has the names of files.
    local.write_bytes(os.fsencode("\n".join(config.write()) + "\n"))
    if shared:
        for name in CACHES:
            place = at / "data" / "scratch" / name
            (shared / name).mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            # After a move of the project, an older workspace links to the old place.
            if place.is_symlink() and place.readlink() != shared / name:
                place.unlink()
            if not place.is_symlink():
                place.symlink_to(shared / name)
    try:
        _checkout_tracked(at)
    except DvcException as error:
        raise WorkspaceFailed(f"dvc checkout in {at}: {one_line(error)}") from None
    return at


@contextmanager
def held(
    root: Path,
    changes: dict[str, Any],
    at: Path,
    what: str,
    *,
    source: str,
    shared: Path | None = None,
    run: str = "",
) -> Iterator[str]:
    """Hold a workspace, then make or refresh it: nothing changes under the run that holds it.

    Arguments are those of `prepare` and `lock.held`; yields what the latter yields.

    Raises: ParamsError for a key that params.yaml does not have. WorkspaceFailed; WorkspaceBusy.
    """
    _ensure_worktree(root, at)
    with lock.held(at, what, run=run) as killed:
        prepare(root, changes, at, source=source, shared=shared)
        yield killed


def remove(root: Path, at: Path) -> None:
    """Delete a workspace, if it is one; what it computed stays in the DVC cache."""
    if _is_linked(root, at):
        git(root, "worktree", "remove", "--force", "--force", str(at))
