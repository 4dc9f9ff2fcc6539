"""Running the same graph with other params: a git worktree of its own, on the shared DVC cache."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.core.errors import ParamsError
from stages.core.params import load_yaml

# What a run writes: these files belong to each workspace itself.
OWN = ("dvc.lock", "data/reports/")


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


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _copy_sources(root: Path, workspace: Path) -> None:
    """Bring the workspace's files to the state of the working tree, uncommitted edits included."""
    there = set(_git(root, "ls-files", "-coz", "--exclude-standard").split("\0")) - {""}
    for name in sorted(there):
        source, target = root / name, workspace / name
        if (name.startswith(OWN) and target.exists()) or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or source.read_bytes() != target.read_bytes():
            shutil.copy2(source, target)
    for name in set(_git(workspace, "ls-files", "-z").split("\0")) - there - {""}:
        (workspace / name).unlink(missing_ok=True)


def prepare(root: Path, overlay: str, *, at: Path | None = None, cache: Path | None = None) -> Path:
    """Make or refresh the workspace of an overlay and give its folder.

    Args:
        root: the project.
        overlay: a YAML file with the keys of params.yaml that differ.
        at: the workspace's folder, when not `path(root, overlay)`.
        cache: its DVC cache, when not the project's own.

    Raises: ParamsError for a key that params.yaml does not have.
    """
    changes = load_yaml(root / overlay)
    workspace = at or path(root, overlay)
    if not (workspace / ".git").exists():
        _git(root, "worktree", "prune")
        _git(root, "worktree", "add", "--quiet", "--detach", str(workspace), "HEAD")
    _copy_sources(root, workspace)
    yaml = YAML()
    values = yaml.load(root / "params.yaml")
    merge(values, changes, source=overlay)
    yaml.dump(values, workspace / "params.yaml")
    (workspace / ".dvc" / "config.local").write_text(
        f"[cache]\n    dir = {cache or root / '.dvc' / 'cache'}\n"
    )
    for tracked in workspace.glob("data/*.dvc"):
        subprocess.run(["dvc", "checkout", "--quiet", str(tracked)], check=True, cwd=workspace)
    return workspace
