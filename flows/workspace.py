"""Running the same graph with other params: a git worktree of its own, on the shared DVC cache."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from dvc.repo import Repo
from ruamel.yaml import YAML

from stages.core.runner.errors import ParamsError, WorkspaceFailed

# What a run writes: these files belong to each workspace itself.
LOCK = "dvc.lock"
OWN = (LOCK, "data/reports/")
# What stages keep from run to run, in data/scratch: named by all that it depends on.
KEPT = ("looks", "prefixes")
# How DVC brings files from the shared cache: links, so that ten workspaces are not ten copies.
LINKS = "reflink,hardlink,copy"


def path(root: Path, overlay: str) -> Path:
    """Where the workspace of an overlay lies."""
    return root / ".worktrees" / Path(overlay).stem


def merge(params: dict[str, Any], overlay: dict[str, Any], *, source: str) -> None:
    """Put an overlay's values into `params`, in place. Raises: ParamsError for unknown keys."""
    for key, value in overlay.items():
        if key not in params:
            raise ParamsError(f"{source}: {key} = {value!r}: params.yaml has no such key")
        if isinstance(params[key], dict) and isinstance(value, dict):
            merge(params[key], value, source=source)
        else:
            params[key] = value


def _run(command: list[str], folder: Path) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if ended.returncode:
        said = ended.stderr.strip() or f"ended with {ended.returncode}"
        raise WorkspaceFailed(f"{shlex.join(command)} in {folder}: {said}")
    return ended.stdout


def _git(folder: Path, *arguments: str) -> str:
    return _run(["git", *arguments], folder)


def _dvc(folder: Path, *arguments: str) -> None:
    _run([sys.executable, "-m", "dvc", *arguments, "--quiet"], folder)


def _cache_of(root: Path) -> str:
    with Repo(str(root)) as repo:
        return str(repo.cache.legacy.path)


def _copy_sources(root: Path, workspace: Path) -> None:
    """Bring the workspace's files to the state of the working tree, uncommitted edits included."""
    there = set(_git(root, "ls-files", "-coz", "--exclude-standard").split("\0")) - {""}
    for name in sorted(there):
        source, target = root / name, workspace / name
        if name.startswith(OWN) or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or source.read_bytes() != target.read_bytes():
            shutil.copy2(source, target)
    for name in set(_git(workspace, "ls-files", "-z").split("\0")) - there - {""}:
        (workspace / name).unlink(missing_ok=True)


def prepare(
    root: Path,
    changes: dict[str, Any],
    at: Path,
    *,
    source: str,
    cache: Path | None = None,
    kept: Path | None = None,
) -> Path:
    """Make or refresh a workspace with other params, and give its folder.

    Args:
        root: the project.
        changes: the keys of params.yaml that differ.
        at: the workspace's folder.
        source: where `changes` come from, for messages.
        cache: the workspace's DVC cache, when not the project's own.
        kept: where what stages keep from run to run lies, when not in the workspace; for
            workspaces that run one after the other.

    Tracked data comes as it is now in the project, where DVC takes note of it.

    Raises: ParamsError for a key that params.yaml does not have. WorkspaceFailed.
    """
    yaml = YAML()
    values = yaml.load(root / "params.yaml")
    merge(values, changes, source=source)
    for tracked in root.glob("data/*.dvc"):
        if tracked.with_suffix("").exists():
            _dvc(root, "commit", "--force", str(tracked))
    if not (at / ".git").exists():
        _git(root, "worktree", "prune")
        _git(root, "worktree", "add", "--quiet", "--detach", str(at), "HEAD")
    local = at / ".dvc" / "config.local"
    if not local.exists():
        # Where the committed lock fits, DVC looks for its outputs and no others. On a machine that
        # has never made just those, it would not find what other workspaces have made.
        (at / LOCK).unlink(missing_ok=True)
    _copy_sources(root, at)
    yaml.dump(values, at / "params.yaml")
    local.write_text(f'[cache]\n    dir = {cache or _cache_of(root)}\n    type = "{LINKS}"\n')
    if kept:
        for name in KEPT:
            place = at / "data" / "scratch" / name
            (kept / name).mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.is_symlink():
                place.symlink_to(kept / name)
    for tracked in at.glob("data/*.dvc"):
        _dvc(at, "checkout", str(tracked))
    return at


def remove(root: Path, at: Path) -> None:
    """Delete a workspace, if it is one; what it computed stays in the DVC cache."""
    if (at / ".git").exists():
        _git(root, "worktree", "remove", "--force", str(at))
