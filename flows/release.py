"""Releases the model that the last run made: `python -m flows.release`.

A run makes a candidate, data/release/. Releasing it accepts its data and its figures in
data/accepted.json, commits these with the stages' reports, tags the commit `model@vX.Y.Z`, moves
the tag `model@current` there, and pushes data and model to the DVC remote. `--rollback` takes the
release before the current one back into use.

Who uses the model takes it by a tag, so a run changes nothing for them:
`dvc get PROJECT data/release --rev model@current`.

Every step looks first whether it is done: a release that was killed half-way is run again.
"""

import argparse
import contextlib
import hashlib
import json
import re
from pathlib import Path
from typing import Any, Literal

from dvc.exceptions import DvcException
from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import ROOT, ui
from flows.graph import Graph
from flows.repo import one_line, open_repo
from flows.sweep import run_flow
from flows.workspace import git
from stages.core.release import predict
from stages.core.results import predictions
from stages.core.results.champion import (
    SHIPPED,
    VERSION,
    Champion,
    fingerprint,
    load,
    pack,
    parse,
    read_predictions,
)
from stages.core.results.report import read_metrics
from stages.core.results.schema.shipped import ExportMetrics
from stages.core.results.schema.verdict import CheckMetrics
from stages.core.runner import digest, lock
from stages.core.runner.disk import settle
from stages.core.runner.errors import AtelierError, ReleaseRefused, WorkspaceFailed
from stages.core.runner.text import terminal

RELEASE, REPORTS = Path("data/release"), Path("data/reports")
ACCEPTED, PROFILE = Path("data/accepted.json"), Path("data/validated/profile.json")
# What a run, or a release, writes into git, beside reports.
WRITTEN = ("dvc.lock", ACCEPTED.as_posix())
REPORTS_INSIDE = f"{REPORTS.as_posix()}/"
# What else the model comes from; a new file among them must not be left out of the commit.
SOURCES = (
    "stages", "flows", "dvc.yaml", "params.yaml",
    ":(glob)data/**/*.dvc", ":(glob)data/**/.gitignore",
)  # fmt: skip
PREFIX, CURRENT = "model@v", "model@current"
# Only the tag that moves is forced: a version's tag belongs to whoever pushed it first.
SHARE = f"git push origin HEAD 'refs/tags/{PREFIX}*' && git push --force origin refs/tags/{CURRENT}"
FETCH = f"git fetch origin --tags '+refs/tags/{CURRENT}:refs/tags/{CURRENT}'"
Part = Literal["major", "minor", "patch"]
PARTS: tuple[Part, ...] = ("major", "minor", "patch")


def check_files(folder: Path) -> None:
    """Compare a release with its manifest. Raises: ReleaseRefused for any difference."""
    manifest = folder / "manifest.json"
    try:
        expected = predict.hashes_in(manifest)
    except predict.BadModel:
        raise ReleaseRefused(
            f"{folder}: no manifest.json that could be read; make the release again with `make run`"
        ) from None
    there = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in digest.files(folder)
        if path != manifest
    }
    different = sorted(
        name for name in expected.keys() | there.keys() if expected.get(name) != there.get(name)
    )
    if different:
        raise ReleaseRefused(
            f"{folder}: {', '.join(different[:5])}: not as the run wrote it (manifest.json); "
            f"delete {folder} and run `make run`"
        )


def check_candidate(root: Path, *, is_accepted: bool = False) -> None:
    """Check that the last run passed, is up to date, and is unchanged.

    Args:
        root: the project.
        is_accepted: whether accepted.json holds the candidate already, and so has changed since.

    Raises: ReleaseRefused.
    """
    check = REPORTS / "check" / "metrics.json"
    if not (root / check).exists():
        raise ReleaseRefused(f"{check}: no such file; there is nothing to release: `make run`")
    verdict = read_metrics(root / check, CheckMetrics)
    if not verdict.passed:
        failed = [name for name, gate in verdict.gates.items() if not gate.passed]
        raise ReleaseRefused(f"{', '.join(failed)}: failed; what did not pass is not released")
    check_files(root / RELEASE)
    with contextlib.chdir(root):
        graph = Graph(root, "check")
        changed = ACCEPTED.as_posix() if is_accepted else ""
        stale = [n.name for n in graph.nodes if not graph.is_unchanged(n.name, but_for=changed)]
    if stale:
        raise ReleaseRefused(
            f"{', '.join(stale)}: not up to date with code, params and data; `make run` first"
        )


def check_commit(root: Path) -> None:
    """Raises: ReleaseRefused where the commit would not hold all that the model came from."""
    changed = git(
        root, "status", "--porcelain", "-z", "--untracked-files=no", "--no-renames"
    ).split("\0")
    new = git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES).split("\0")
    names = [entry[3:] for entry in changed if entry] + [name for name in new if name]
    others = [n for n in names if n not in WRITTEN and not n.startswith(REPORTS_INSIDE)]
    if others:
        raise ReleaseRefused(
            f"{', '.join(others[:5])}: in no commit as they are now; `git add` and commit them, so "
            "that the release can be made again from its tag"
        )


Version = tuple[int, int, int]


def _number(version: str) -> Version:
    """Raises: ValueError for what is no version."""
    if not re.fullmatch(VERSION, version):
        raise ValueError(version)
    major, minor, patch = map(int, version.split("."))
    return major, minor, patch


def versions(root: Path, *options: str) -> list[Version]:
    """The released versions, lowest first; `options` of git tag choose among them."""
    numbers = []
    for tag in git(root, "tag", "--list", *options, f"{PREFIX}*").split():
        with contextlib.suppress(ValueError):
            numbers.append(_number(tag.removeprefix(PREFIX)))
    return sorted(numbers)


def next_version(released: list[Version], part: Part) -> str:
    """The version after the highest; the first is 1.0.0."""
    if not released:
        return "1.0.0"
    numbers = list(released[-1])
    place = PARTS.index(part)
    numbers[place:] = [numbers[place] + 1, *[0] * (2 - place)]
    return ".".join(map(str, numbers))


def _write_accepted(root: Path, content: dict[str, Any]) -> None:
    partial = root / ACCEPTED.with_name(f".partial.{ACCEPTED.name}")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    settle(partial, root / ACCEPTED)


def stage_reports(root: Path) -> list[str]:
    """The stages' reports that git keeps, and the .gitignore that DVC keeps beside the others."""
    with open_repo(root) as repo:
        folder = Path(repo.root_dir)
        outs = [(Path(out.fs_path), out.use_cache) for s in repo.index.stages for out in s.outs]
    paths = {path.with_name(".gitignore") if is_cached else path for path, is_cached in outs}
    return [
        path.relative_to(folder).as_posix()
        for path in sorted(paths)
        if path.is_relative_to(folder / REPORTS) and path.exists()
    ]


def _commit(root: Path, message: str, *paths: str) -> None:
    git(root, "add", "--", *paths)
    if git(root, "status", "--porcelain", "--untracked-files=no", "--", *paths):
        git(root, "commit", "--quiet", "-m", message, "--", *paths)


def _is_tag(root: Path, name: str) -> bool:
    return bool(git(root, "tag", "--list", name))


def _push(root: Path) -> None:
    try:
        with open_repo(root) as repo:
            repo.push()
    except (DvcException, OSError) as error:
        raise WorkspaceFailed(
            f"dvc push: {one_line(error)}; mend the remote, and run the release again"
        ) from None


def _champion_at(root: Path, revision: str) -> Champion | None:
    return parse(git(root, "show", f"{revision}:{ACCEPTED.as_posix()}"), ACCEPTED.as_posix())


def decisions(root: Path, test_split: str) -> int:
    """How many of the released versions a test split has decided, rolled back or not."""
    tagged = [_champion_at(root, f"{PREFIX}{'.'.join(map(str, v))}") for v in versions(root)]
    return sum(champion is not None and champion.test_split == test_split for champion in tagged)


def _champion(root: Path, version: str, own: str, before: Champion | None) -> Champion:
    """What accepted.json is to hold of the candidate."""
    export = read_metrics(root / REPORTS / "export" / "metrics.json", ExportMetrics)
    table = read_predictions(root / REPORTS / "export" / "predictions.csv")
    test_split = fingerprint(table, export.test_files)
    return Champion(
        version=version,
        release=own,
        before=before.version if before is not None else None,
        auroc=export.auroc,
        test_split=test_split,
        logits=pack(predictions.logits(table, SHIPPED)),
        decisions=decisions(root, test_split) + 1,
    )


def check_tag(root: Path, champion: Champion) -> None:
    """Raises: ReleaseRefused where the champion's version is the tag of another release."""
    if _number(champion.version) in versions(root):
        tagged = _champion_at(root, f"{PREFIX}{champion.version}")
        if tagged is None or tagged.release != champion.release:
            raise ReleaseRefused(
                f"{PREFIX}{champion.version}: a tag of another release; take yours back (git "
                f"checkout -- {ACCEPTED}) and release again"
            )


def _released(root: Path, champion: Champion | None) -> Champion | None:
    """The last champion that was released: one that was only written down does not count.

    Raises: ReleaseRefused where it was committed, and has no tag here.
    """
    if champion is None or _number(champion.version) in versions(root):
        return champion
    committed = _champion_at(root, "HEAD")
    if committed is not None and _number(committed.version) not in versions(root):
        raise ReleaseRefused(
            f"{PREFIX}{committed.version}: no such tag; `{FETCH}`; or, if that release "
            f"was interrupted, tag its commit: git tag -a {PREFIX}{committed.version} COMMIT"
        )
    return committed


def release(root: Path, part: Part) -> str:
    """Release the candidate, or finish doing so; returns its version.

    Raises: ReleaseRefused, WorkspaceBusy, WorkspaceFailed.
    """
    with lock.held(root, "a release"):
        champion, folder = load(root / ACCEPTED), root / RELEASE
        own = digest.md5(folder) if folder.exists() else ""
        check_commit(root)
        if champion is not None and champion.release == own:
            version = champion.version
            if _number(version) in versions(root):
                check_files(root / RELEASE)
                check_tag(root, champion)
            else:
                # Other code may have been committed since the release was killed.
                check_candidate(root, is_accepted=True)
        else:
            check_candidate(root)
            champion = _released(root, champion)
            version = next_version(versions(root), part)
            new = _champion(root, version, own, champion)
            profile = json.loads((root / PROFILE).read_text(encoding="utf-8"))
            _write_accepted(root, {"data": profile, "champion": new.model_dump()})
        if _number(version) not in versions(root):
            _commit(root, f"Release model v{version}", *WRITTEN, *stage_reports(root))
            git(root, "tag", "--annotate", f"{PREFIX}{version}", "-m", f"Model v{version}")
        _push(root)
        # The last step: from here on, people use it.
        git(root, "tag", "--force", CURRENT, f"{PREFIX}{version}^{{commit}}")
    return version


def rollback(root: Path) -> str:
    """Take the release before the current one back into use; returns its version.

    Raises: ReleaseRefused, WorkspaceBusy, WorkspaceFailed.
    """
    with lock.held(root, "a release"):
        champion = load(root / ACCEPTED)
        in_use = versions(root, f"--points-at={CURRENT}") if _is_tag(root, CURRENT) else []
        if champion is None or not in_use:
            raise ReleaseRefused(
                f"{CURRENT}: no such tag here; `{FETCH}`, or release a model first"
            )
        # One that was killed has gone back in accepted.json alone.
        version = champion.version if _number(champion.version) < in_use[-1] else champion.before
        if version is None:
            raise ReleaseRefused(f"{ACCEPTED}: no release before {champion.version}")
        tag = f"{PREFIX}{version}"
        if _number(version) not in versions(root):
            raise ReleaseRefused(f"{tag}: no such tag here; `{FETCH}`")
        text = git(root, "show", f"{tag}:{ACCEPTED.as_posix()}")
        content, before = json.loads(text), parse(text, ACCEPTED.as_posix())
        if before is not None:
            content["champion"]["decisions"] = decisions(root, before.test_split)
        _write_accepted(root, content)
        _commit(root, f"Go back to model v{version}", ACCEPTED.as_posix())
        git(root, "tag", "--force", CURRENT, f"{tag}^{{commit}}")
    return version


@flow(name="release")
def release_flow(part: Part, back: bool) -> State[Any]:
    """Release the candidate, or go back to the release before; say so on the run's page."""
    try:
        version = rollback(ROOT) if back else release(ROOT, part)
    except AtelierError as error:
        return Failed(message=terminal(str(error)))
    except OSError as error:
        return Failed(
            message=terminal(
                f"{error.filename or ROOT}: {error.strerror or error}; the model in use stays: "
                "make room, or correct the permissions, and run this again"
            )
        )
    words = (
        f"model v{version} is in use{' again' if back else ''} ({CURRENT}); "
        f"`{SHARE}` shares it, `dvc get PROJECT data/release "
        f"--rev {CURRENT}` fetches the model"
    )
    create_markdown_artifact(words, key=ui.artifact_key("release"))
    print(words, flush=True)
    return Completed()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m flows.release", description=__doc__)
    parser.add_argument("--part", choices=PARTS, default="minor", help="of the version, to raise")
    parser.add_argument("--rollback", action="store_true", help="use the release before again")
    arguments = parser.parse_args()
    run_flow(lambda: release_flow(arguments.part, arguments.rollback, return_state=True))


if __name__ == "__main__":
    main()
