"""Releasing, in a project of git and DVC that has the check stage alone."""

import errno
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows import release, workspace
from flows.release import ACCEPTED, CURRENT, check_commit, check_files, next_version
from flows.workspace import git
from stages.core.runner.errors import ReleaseRefused, WorkspaceFailed
from tests.conftest import ROOT
from tests.helpers.checked import Project
from tests.helpers.imagined import change
from tests.helpers.released import ODD_MANIFESTS

IDENTITY = ["-c", "user.name=n", "-c", "user.email=e"]


@pytest.mark.parametrize(
    ("released", "part", "version"),
    [
        ([], "patch", "1.0.0"),
        ([(1, 0, 0)], "minor", "1.1.0"),
        ([(1, 2, 3), (1, 10, 3)], "minor", "1.11.0"),
        ([(1, 2, 3)], "patch", "1.2.4"),
        ([(1, 2, 3)], "major", "2.0.0"),
    ],
)
def test_the_version_after_the_highest(
    released: list[tuple[int, int, int]], part: release.Part, version: str
) -> None:
    assert next_version(released, part) == version


def folder_with_manifest(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"model")
    (folder / "labels.json").write_text("[]")
    sums = subprocess.run(
        ["sha256sum", "labels.json", "model.onnx"], cwd=folder, capture_output=True, text=True
    ).stdout.split()
    hashes = dict(zip(sums[1::2], sums[::2], strict=True))
    (folder / "manifest.json").write_text(json.dumps({"sha256": hashes}))
    return folder


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda f: (f / "model.onnx").write_bytes(b"other"), "model.onnx: not as the run wrote it"),
        (lambda f: (f / "labels.json").unlink(), "labels.json: not as the run wrote it"),
        (lambda f: (f / "more.txt").write_text(""), "more.txt: not as the run wrote it"),
        (lambda f: (f / "manifest.json").unlink(), "no manifest.json that could be read"),
    ],
)
def test_a_release_that_was_changed_is_refused(
    tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    folder = folder_with_manifest(tmp_path / "release")
    check_files(folder)
    spoil(folder)
    with pytest.raises(ReleaseRefused, match=words):
        check_files(folder)


@pytest.mark.parametrize("content", ODD_MANIFESTS.values(), ids=list(ODD_MANIFESTS))
def test_a_manifest_of_another_shape_is_refused(tmp_path: Path, content: bytes) -> None:
    folder = folder_with_manifest(tmp_path / "release")
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ReleaseRefused) as caught:
        check_files(folder)
    assert str(caught.value) == (
        f"{folder}: no manifest.json that could be read; make the release again with `make run`"
    )


def test_without_a_candidate_there_is_nothing_to_release(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ACCEPTED).parent.mkdir()
    (tmp_path / ACCEPTED).write_text("{}\n")
    with pytest.raises(ReleaseRefused, match="there is nothing to release: `make run`"):
        release.release(tmp_path, "minor")


class Repository(Project):
    """The same under git, with a DVC remote and a profile of the data."""

    def __init__(self, root: Path) -> None:
        super().__init__(root / "project")
        os.environ |= {
            f"GIT_{who}_{what}": value
            for who in ("AUTHOR", "COMMITTER")
            for what, value in (("NAME", "Test"), ("EMAIL", "test@example.org"))
        }
        self.git("init", "--quiet")
        shutil.rmtree(self.root / ".dvc")
        self.dvc("init", "--quiet")
        self.dvc("remote", "add", "--default", "store", str(root / "store"))
        (self.root / ACCEPTED).write_text("{}\n")
        self.profile({"label": {"a": 1.0}})
        self.run()
        (self.root / ".gitignore").write_text(
            "/data/validated\n/data/models\n/data/scratch\n__pycache__\n"
        )
        self.git("add", "--all")
        self.git("commit", "--quiet", "-m", "start")

    def git(self, *arguments: str) -> str:
        return git(self.root, *arguments)

    def profile(self, content: Any) -> None:
        file = self.root / release.PROFILE
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))

    def run(self) -> None:
        self.dvc("repro", "check")

    def accepted(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.root / ACCEPTED).read_text())
        return content

    def in_use(self, at: Path) -> bytes:
        """The model that `dvc get` fetches by the tag, for whoever has git and the remote."""
        self.git("clone", "--quiet", str(self.root), f"{at}.git")
        out, source = str(at), f"{at}.git"
        self.dvc("get", source, "data/release", "--rev", CURRENT, "-o", out, "--quiet")
        return (at / "model.onnx").read_bytes()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(os, "environ", os.environ.copy())
    return Repository(tmp_path)


@pytest.mark.slow
def test_release_next_release_and_back(project: Repository, tmp_path: Path) -> None:
    assert release.release(project.root, "minor") == "1.0.0"
    first = project.accepted()
    assert first["data"] == {"label": {"a": 1.0}}
    assert first["champion"]["auroc"] == 0.86
    assert first["champion"]["before"] is None
    assert project.git("log", "-1", "--format=%s").strip() == "Release model v1.0.0"
    assert project.git("status", "--porcelain") == ""
    project.run()
    assert release.release(project.root, "minor") == "1.0.0", "nothing new to release"
    assert project.git("rev-list", "--count", "HEAD").strip() == "2"
    with pytest.raises(ReleaseRefused, match=r"no release before 1\.0\.0"):
        release.rollback(project.root)
    assert project.in_use(tmp_path / "first") == b"a good model"

    project.model.write_bytes(b"a better model")
    change(project.reports / "export" / "metrics.json", "auroc", 0.9)
    project.run()
    assert project.in_use(tmp_path / "still first") == b"a good model"
    assert release.release(project.root, "minor") == "1.1.0"
    assert project.accepted()["champion"]["before"] == "1.0.0"
    assert project.accepted()["champion"]["decisions"] == 2
    assert project.in_use(tmp_path / "second") == b"a better model"

    assert release.rollback(project.root) == "1.0.0"
    first["champion"]["decisions"] = 2
    assert project.accepted() == first
    assert project.git("log", "-1", "--format=%s").strip() == "Go back to model v1.0.0"
    assert project.in_use(tmp_path / "back") == b"a good model"
    assert project.git("tag", "--list", "model@v*").split() == ["model@v1.0.0", "model@v1.1.0"]
    with pytest.raises(ReleaseRefused, match=r"no release before 1\.0\.0"):
        release.rollback(project.root)


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A project of git alone, and its releases: two decided by one test split, one by another."""
    git(tmp_path, "init", "--quiet")
    for setting in ("user.name", "user.email"):
        git(tmp_path, "config", setting, "test")
    (tmp_path / ACCEPTED).parent.mkdir()
    before = None
    for version, split, decisions in (("1.0.0", "a", 1), ("1.1.0", "b", 1), ("1.2.0", "a", 2)):
        champion = {
            "version": version, "release": version, "before": before, "auroc": 0.9,
            "test_split": split, "decisions": decisions,
        }  # fmt: skip
        (tmp_path / ACCEPTED).write_text(json.dumps({"champion": champion}))
        git(tmp_path, "add", "--", str(ACCEPTED))
        git(tmp_path, "commit", "--quiet", "-m", version)
        git(tmp_path, "tag", f"model@v{version}")
        before = version
    git(tmp_path, "tag", CURRENT)
    return tmp_path


def test_what_a_split_has_decided_is_counted_over_all_releases(released: Path) -> None:
    assert [release.decisions(released, split) for split in ("a", "b", "c")] == [2, 1, 0]
    assert release.rollback(released) == "1.1.0"
    assert release.rollback(released) == "1.0.0"
    champion = json.loads((released / ACCEPTED).read_text())["champion"]
    assert (champion["version"], champion["decisions"]) == ("1.0.0", 2)
    assert release.decisions(released, "a") == 2


def test_a_full_disk_is_one_line_and_the_model_in_use_stays(
    released: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    accepted, current = (released / ACCEPTED).read_bytes(), git(released, "rev-parse", CURRENT)
    monkeypatch.setattr(release, "ROOT", released)
    monkeypatch.setattr(release, "settle", full)
    state = release.release_flow.fn("minor", True)
    assert state.is_failed()
    assert state.message == (
        f"{released}: No space left on device; the model in use stays: make room, or correct the "
        "permissions, and run this again"
    )
    assert (released / ACCEPTED).read_bytes() == accepted
    assert git(released, "rev-parse", CURRENT) == current


def test_a_release_takes_only_the_reports_of_stages() -> None:
    reports = set(release.stage_reports(ROOT))
    assert {"data/reports/export/metrics.json", "data/reports/export/.gitignore"} <= reports
    kept = set(git(ROOT, "ls-files", "--", str(release.REPORTS)).split())
    assert reports <= kept
    others = ("bench.json", "predict.txt", "report.png", "studies/")
    assert kept - reports == {
        name for name in kept if name[len("data/reports/") :].startswith(others)
    }
    git(ROOT, "check-ignore", "--quiet", "data/reports/out_of_fold/default.csv")


@pytest.mark.slow
def test_other_files_among_the_reports_stay_out_of_the_commit(project: Repository) -> None:
    study = project.reports / "study.csv"
    study.write_text("as measured\n")
    project.git("add", "--all")
    project.git("commit", "--quiet", "-m", "a study")
    study.write_text("by hand\n")
    (project.reports / "names.csv").write_text("a patient\n")
    release.release(project.root, "minor")
    status = project.git("status", "--porcelain").splitlines()
    assert status == [" M data/reports/study.csv", "?? data/reports/names.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("step", ["commit", "tag --force"])
def test_going_back_that_was_killed_is_run_again(
    project: Repository, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    for content in (b"first", b"second", b"third"):
        project.model.write_bytes(content)
        project.run()
        release.release(project.root, "minor")
    with monkeypatch.context() as patched:
        patched.setattr(release, "git", dying(step))
        with pytest.raises(KeyboardInterrupt):
            release.rollback(project.root)
    assert release.rollback(project.root) == "1.1.0", "back by one release, not by two"
    assert project.accepted()["champion"]["version"] == "1.1.0"
    assert project.git("rev-parse", CURRENT) == project.git("rev-parse", "model@v1.1.0^{commit}")
    assert project.git("log", "-1", "--format=%s").strip() == "Go back to model v1.1.0"


def dying(step: str) -> Callable[..., str]:
    """Git that is killed before a command that begins so."""

    def git(root: Path, *arguments: str) -> str:
        if " ".join(arguments).startswith(step):
            raise KeyboardInterrupt
        return workspace.git(root, *arguments)

    return git


@pytest.mark.parametrize(
    "name", ["stages/new.py", "flows/new.py", "data/mine.dvc", "data/a/b.dvc", "data/a/.gitignore"]
)
def test_a_new_file_that_the_model_may_come_from_is_not_left_out(tmp_path: Path, name: str) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".git" / "info" / "exclude").write_text("__pycache__\n")
    for other in ("data/reports/new.json", "notes.txt", "stages/__pycache__/new.pyc", name):
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text("")
    with pytest.raises(ReleaseRefused, match=rf"^{name}: in no commit as they are now; `git add`"):
        check_commit(tmp_path)
    git(tmp_path, "add", name)
    with pytest.raises(ReleaseRefused, match=rf"^{name}: in no commit"):
        check_commit(tmp_path)
    git(tmp_path, *IDENTITY, "commit", "--quiet", "-m", "as told")
    check_commit(tmp_path)


@pytest.mark.slow
def test_what_should_not_be_released_is_refused(project: Repository) -> None:
    def refused(words: str) -> None:
        with pytest.raises(ReleaseRefused, match=words):
            release.release(project.root, "minor")
        assert project.git("tag", "--list") == ""
        assert project.accepted() == {}

    code = project.root / "stages" / "check.py"
    code.write_text(code.read_text() + "# changed\n")
    refused(r"^stages/check\.py: in no commit as they are now; `git add` and commit")
    project.git("checkout", "--", "stages")

    (project.root / "data" / "release" / "model.onnx").write_bytes(b"by hand")
    refused(r"^.*data/release: model\.onnx: not as the run wrote it")
    project.dvc("checkout", "--force", "--quiet")

    change(project.reports / "export" / "metrics.json", "auroc", 0.89)
    refused(r"^check: not up to date")
    change(project.reports / "export" / "metrics.json", "auroc", 0.5)
    project.dvc("repro", "check", fails=True)
    refused(r"^auroc: failed; what did not pass is not released")


@pytest.mark.slow
@pytest.mark.parametrize("step", ["commit", "tag --annotate", "push", "tag --force"])
def test_a_release_that_was_killed_is_run_again(
    project: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def dies_too(root: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(release, "git", dying(step))
        if step == "push":
            patched.setattr(release, "_push", dies_too)
        with pytest.raises(KeyboardInterrupt):
            release.release(project.root, "minor")
    assert CURRENT not in project.git("tag", "--list").split()
    assert release.release(project.root, "minor") == "1.0.0"
    assert project.git("rev-list", "--count", "HEAD").strip() == "2"
    assert project.git("status", "--porcelain") == ""
    assert project.in_use(tmp_path / "in use") == b"a good model"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["commit", "tag --annotate"])
def test_a_release_that_was_killed_takes_no_other_code(
    project: Repository, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(release, "git", dying(step))
        with pytest.raises(KeyboardInterrupt):
            release.release(project.root, "minor")
    code = project.root / "stages" / "check.py"
    content = code.read_text()
    code.write_text(content + "# changed\n")
    project.git("commit", "--quiet", "-m", "other code", "--", "stages")
    with pytest.raises(ReleaseRefused, match=r"^check: not up to date with code"):
        release.release(project.root, "minor")
    assert project.git("tag", "--list") == ""
    code.write_text(content)
    project.git("commit", "--quiet", "-m", "back", "--", "stages")
    assert release.release(project.root, "minor") == "1.0.0"


@pytest.mark.slow
def test_a_remote_that_fails_is_named(project: Repository) -> None:
    project.dvc("remote", "modify", "store", "url", "/dev/null/nowhere")
    project.git("commit", "--quiet", "-am", "a broken remote")
    with pytest.raises(WorkspaceFailed, match=r"^dvc push: .*; mend the remote, and run"):
        release.release(project.root, "minor")
    assert CURRENT not in project.git("tag", "--list").split()


def test_sharing_a_release_leaves_anothers_version_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the command and the README say; of two who make the same version, the first has it."""
    monkeypatch.setattr(release, "release", lambda *_: "1.1.0")
    monkeypatch.setattr(release, "create_markdown_artifact", lambda *_, **__: None)
    release.release_flow.fn("minor", False)
    share = capsys.readouterr().out.split("`")[1]
    assert all(line in (ROOT / "data" / "README.md").read_text() for line in share.split(" && "))

    def run(clone: Path, command: str) -> int:
        return subprocess.run(command, cwd=clone, shell=True, capture_output=True).returncode

    def publish(clone: Path, version: str) -> int:
        message = ["-m", clone.name]
        git(clone, *IDENTITY, "commit", "--quiet", "--allow-empty", *message)
        git(clone, *IDENTITY, "tag", "--annotate", f"model@v{version}", *message)
        git(clone, "tag", "--force", CURRENT)
        return run(clone, share)

    git(tmp_path, "init", "--quiet", "--bare", "shared")
    first, second = tmp_path / "first", tmp_path / "second"
    git(tmp_path, "clone", "--quiet", "shared", "first")
    assert publish(first, "1.0.0") == 0
    git(tmp_path, "clone", "--quiet", "shared", "second")
    assert publish(first, "1.1.0") == 0
    assert publish(second, "1.1.0") != 0
    tags = git(first, "show-ref", "--tags")
    assert git(tmp_path / "shared", "show-ref", "--tags") == tags
    assert run(second, release.FETCH) != 0, "two tags of one version"
    git(second, "tag", "--delete", "model@v1.1.0")
    assert run(second, release.FETCH) == 0
    assert git(second, "show-ref", "--tags") == tags


def release_and_die_at_the_next_commit(
    project: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release, and one of another model that is written down and no more."""
    release.release(project.root, "minor")
    project.model.write_bytes(b"second")
    project.run()
    with monkeypatch.context() as patched:
        patched.setattr(release, "git", dying("commit"))
        with pytest.raises(KeyboardInterrupt):
            release.release(project.root, "minor")


@pytest.mark.slow
def test_a_release_that_was_only_written_down_is_no_champion(
    project: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_and_die_at_the_next_commit(project, monkeypatch)
    project.model.write_bytes(b"third")
    project.run()
    assert release.release(project.root, "minor") == "1.1.0"
    champion = project.accepted()["champion"]
    assert (champion["before"], champion["decisions"]) == ("1.0.0", 2)
    assert release.rollback(project.root) == "1.0.0"


@pytest.mark.slow
def test_tags_that_are_not_here_or_are_anothers_are_told_of(project: Repository) -> None:
    release.release(project.root, "minor")
    project.model.write_bytes(b"second")
    project.run()
    release.release(project.root, "minor")
    project.git("tag", "--delete", "model@v1.0.0")
    with pytest.raises(
        ReleaseRefused, match=r"model@v1\.0\.0: no such tag here; `git fetch origin --tags "
    ):
        release.rollback(project.root)
    project.git("tag", "--delete", "model@v1.1.0", CURRENT)
    with pytest.raises(ReleaseRefused, match=r"model@current: no such tag here"):
        release.rollback(project.root)
    project.model.write_bytes(b"third")
    project.run()
    with pytest.raises(
        ReleaseRefused, match=r"model@v1\.1\.0: no such tag; `git fetch origin --tags "
    ):
        release.release(project.root, "minor")
    assert project.git("tag", "--list") == ""


@pytest.mark.slow
def test_a_tag_of_the_same_number_is_not_taken_for_ones_own(
    project: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    release_and_die_at_the_next_commit(project, monkeypatch)
    project.git("tag", "model@v1.1.0", "model@v1.0.0^{commit}")
    with pytest.raises(ReleaseRefused, match=r"model@v1\.1\.0: a tag of another release"):
        release.release(project.root, "minor")
    assert project.git("rev-parse", CURRENT) == project.git("rev-parse", "model@v1.0.0^{commit}")
