"""Running the same graph with other params: a git worktree of its own, on the shared DVC cache."""

import hashlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from ruamel.yaml import YAML

from flows.repo import one_line, open_repo
from stages.core.runner.errors import ParamsError, WorkspaceFailed

OVERLAYS = Path("flows/overlays")
# A run writes these files: they belong to each workspace itself.
LOCK = "dvc.lock"
OWN = (LOCK, "data/reports/")
# Stages keep these folders of data/scratch from run to run; names in them tell all that the content
# depends on, so workspaces may share them.
KEPT = ("looks", "prefixes")
# How DVC brings files from the shared cache: links, so that ten workspaces are not ten copies.
LINKS = "reflink,hardlink,copy"


def overlay_file(root: Path, overlay: str) -> Path:
    """The file of an overlay, named as `tiny`, `tiny.yaml` or by its path in the project.

    The form in the UI takes the name too, so nothing outside the project is read, nor shown in an
    error. Raises: ParamsError.
    """
    root = root.resolve()
    name = overlay if overlay.endswith(".yaml") else f"{overlay}.yaml"
    try:
        file = (root / (name if "/" in name else OVERLAYS / name)).resolve()
        is_inside = file.is_relative_to(root)
        if is_inside and re.fullmatch(r"\w[\w.-]*\.yaml", file.name) and file.is_file():
            return file
    except (OSError, RuntimeError, ValueError):
        pass  # Too long, a loop of links, a null byte: no name of a file.
    overlays = ", ".join(sorted(file.stem for file in (root / OVERLAYS).glob("*.yaml")))
    raise ParamsError(
        f"overlay = {overlay!r}: expected one of {overlays} (in {OVERLAYS}), or the path of "
        "another YAML file inside the project; copy yours there"
    )


def path(root: Path, overlay: str) -> Path:
    """Where the workspace of an overlay lies: one per file. Raises: ParamsError."""
    file = overlay_file(root, overlay).relative_to(root.resolve())
    name = file.stem
    if file.parent != OVERLAYS:
        name += "-" + hashlib.md5(str(file).encode()).hexdigest()[:8]
    return root / ".worktrees" / name


def merge(params: dict[str, Any], overlay: dict[str, Any], *, source: str) -> None:
    """Put an overlay's values into `params`, in place. Raises: ParamsError for unknown keys."""
    for key, value in overlay.items():
        if key not in params:
            raise ParamsError(f"{source}: {key} = {value!r}: params.yaml has no such key")
        if isinstance(params[key], dict) and isinstance(value, dict):
            merge(params[key], value, source=source)
        else:
            params[key] = value


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", *arguments]
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="surrogateescape"
        )
    except FileNotFoundError:
        raise WorkspaceFailed("git: no such command; install git") from None
    if process.returncode:
        reason = " ".join(process.stderr.split()) or f"exit status {process.returncode}"
        raise WorkspaceFailed(f"{shlex.join(command)} in {folder}: {reason}")
    return process.stdout


def _commit_tracked(root: Path) -> str:
    """Have DVC take note of tracked data as it is now; gives the folder of its cache."""
    with open_repo(root) as repo:
        for file in root.glob("data/*.dvc"):
            if file.with_suffix("").exists():
                repo.commit(str(file), force=True)
        return str(repo.cache.legacy.path)


def _checkout_tracked(at: Path) -> None:
    with open_repo(at) as repo:
        for file in at.glob("data/*.dvc"):
            repo.checkout([str(file)])


def _is_linked(root: Path, at: Path) -> bool:
    """Whether `at` is a worktree of the repository of `root`.

    A project that was moved or copied takes its worktrees along, and they and git still name each
    other by the old place, where a copy's original is alive: so we write the two names ourselves.
    `git worktree repair` would rewrite the original's.
    """
    if not (at / ".git").is_file():
        return False
    common = root / _git(root, "rev-parse", "--git-common-dir").strip()
    record = common.resolve() / "worktrees" / _link(at).name
    if not (record / "gitdir").is_file():
        return False
    owner = Path((record / "gitdir").read_text().strip()).parent
    if owner.resolve() != at.resolve() and (owner / ".git").is_file() and _link(owner) == record:
        return False  # `at` is a copy of another workspace of this project.
    (record / "gitdir").write_text(f"{at.resolve() / '.git'}\n")
    (at / ".git").write_text(f"gitdir: {record}\n")
    return True


def _link(worktree: Path) -> Path:
    return Path((worktree / ".git").read_text().removeprefix("gitdir:").strip())


def _ensure_worktree(root: Path, at: Path) -> None:
    if _is_linked(root, at):
        return
    if (at / ".git").is_file():
        shutil.rmtree(at)
    try:
        _git(root, "rev-parse", "--verify", "--quiet", "HEAD")
    except WorkspaceFailed:
        raise WorkspaceFailed(
            f"{root}: git has no commit to make a workspace from; run `git add --all && "
            "git commit --message start`"
        ) from None
    _git(root, "worktree", "prune")
    _git(root, "worktree", "add", "--quiet", "--detach", str(at), "HEAD")


def _copy_sources(root: Path, workspace: Path) -> None:
    """Bring the workspace's files to the state of the working tree, uncommitted edits included."""
    names = set(_git(root, "ls-files", "-coz", "--exclude-standard").split("\0")) - {""}
    for name in sorted(names):
        source, target = root / name, workspace / name
        if name.startswith(OWN) or not source.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file() or source.read_bytes() != target.read_bytes():
            shutil.copy2(source, target)
    for name in set(_git(workspace, "ls-files", "-z").split("\0")) - names - {""}:
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
    try:
        project_cache = _commit_tracked(root)
    except DvcException as error:
        raise WorkspaceFailed(f"dvc commit in {root}: {one_line(error)}") from None
    _ensure_worktree(root, at)
    local = at / ".dvc" / "config.local"
    if not local.exists():
        # Where the committed lock fits, DVC looks for its outputs and no others. On a machine that
        # has never made just those, it would not find what other workspaces have made.
        (at / LOCK).unlink(missing_ok=True)
    _copy_sources(root, at)
    yaml.dump(values, at / "params.yaml")
    local.write_text(f'[cache]\n    dir = {cache or project_cache}\n    type = "{LINKS}"\n')
    if kept:
        for name in KEPT:
            place = at / "data" / "scratch" / name
            (kept / name).mkdir(parents=True, exist_ok=True)
            place.parent.mkdir(parents=True, exist_ok=True)
            # After a move of the project, a workspace from before names the old place.
            if place.is_symlink() and place.readlink() != kept / name:
                place.unlink()
            if not place.is_symlink():
                place.symlink_to(kept / name)
    try:
        _checkout_tracked(at)
    except DvcException as error:
        raise WorkspaceFailed(f"dvc checkout in {at}: {one_line(error)}") from None
    return at


def remove(root: Path, at: Path) -> None:
    """Delete a workspace, if it is one; what it computed stays in the DVC cache."""
    if _is_linked(root, at):
        _git(root, "worktree", "remove", "--force", str(at))
