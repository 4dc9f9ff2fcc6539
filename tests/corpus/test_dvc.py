"""Folders through DVC itself: what it reads before our code, and how it calls it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import look, pipeline
from stages.core.dataset.folder import Data
from stages.core.runner.errors import DataError, ParamsError
from stages.core.runner.params import load_yaml, parse_section
from tests.conftest import ROOT
from tests.corpus.folders import as_bytes, classes, gone, linked, steps
from tests.helpers.front_door import PARAMS, RESOURCES

ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "GIT_CONFIG_GLOBAL": os.devnull,
}


class Project:
    """The validate stage alone, in a DVC project of its own."""

    def __init__(self, root: Path, folder: str = "data/mine", **changes: Any) -> None:
        self.root, self.folder = root, root / folder
        (root / "data").mkdir(parents=True)
        (root / "stages").symlink_to(ROOT / "stages")
        (root / "data" / "expectations.yaml").write_text("[]")
        (root / "data" / "accepted.json").write_text("{}")
        definition = load_yaml(ROOT / "dvc.yaml")["stages"]["validate"]
        definition["deps"] = [d for d in definition["deps"] if not d.startswith("stages/")]
        YAML().dump({"stages": {"validate": definition}}, root / "dvc.yaml")
        sections = {"data": {"dir": folder}, "resources": RESOURCES, "validate": PARAMS | changes}
        (root / "params.yaml").write_text(json.dumps(sections))
        self.run("git", "init", "--quiet")
        for name, text in (("config", "[core]\n    analytics = false\n"), (".gitignore", "/tmp\n")):
            (root / ".dvc").mkdir(exist_ok=True)
            (root / ".dvc" / name).write_text(text)

    def run(self, *command: str) -> str:
        """The output of a command, whether it fails or not."""
        ended = subprocess.run(
            command, cwd=self.root, env=ENVIRONMENT, text=True, errors="replace", timeout=300,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip
        return ended.stdout

    def dvc(self, *arguments: str) -> str:
        return self.run(sys.executable, "-m", "dvc", *arguments)

    def validate(self) -> str:
        return self.dvc("repro", "--single-item", "validate")

    @property
    def metrics(self) -> dict[str, Any]:
        path = self.root / "data" / "reports" / "validate" / "metrics.json"
        content: dict[str, Any] = json.loads(path.read_text())
        return content


@pytest.mark.parametrize(
    "name",
    ["data/my images (2)", pytest.param('data/it\'s $HOME; `x` & "y"', marks=pytest.mark.slow)],
)
def test_any_name_of_a_folder_reaches_the_stage(tmp_path: Path, name: str) -> None:
    """One class, so that the stage ends early, with the name."""
    project = Project(tmp_path / "project", name)
    classes("only")(project.folder)
    output = project.validate()
    assert f"error: validate: {name}: found 1 class (only)" in output
    assert {p.name for p in project.root.iterdir() if not p.name.startswith(".")} <= {
        "data", "stages", "dvc.yaml", "dvc.lock", "params.yaml",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("-rf", "begins like an option: write ./-rf"),
        ("~/images", "begins with ~"),
        ("../images", "leaves the project: write the whole path"),
        ("data/../../images", "leaves the project"),
        ("data", "holds what the pipeline writes"),
        (".", "holds what the pipeline writes"),
        ("data/a\nb", "has control characters"),
        ("data/\x1b[31m", "has control characters"),
        ("data/\udce9", "unable to parse"),
    ],
)
def test_names_of_folders_that_are_refused(name: str, words: str) -> None:
    with pytest.raises(ParamsError) as caught:
        parse_section({"data": {"dir": name}}, "data", Data, source="params.yaml")
    assert f"data.dir = {name!r}: " in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["data/mine", "/mnt/disk/mine", "./-x", "mine", "data/größe 好"])
def test_names_of_folders_that_are_fine(name: str) -> None:
    assert parse_section({"data": {"dir": name}}, "data", Data, source="").dir == name


def broken(kind: str, folder: Path) -> str:
    """Make a folder that DVC cannot take; gives what must be said of it."""
    classes("a", "b", count=2)(folder)
    if kind == "dead link":
        steps(gone("a/1.png"), linked("a/1.png", "/mnt/nas/gone/1.png"))(folder)
        return "a/1.png: a link to /mnt/nas/gone/1.png, where nothing is"
    (folder / "a" / "1.png").rename(folder / "a" / os.fsdecode(b"caf\xe9.png"))
    return r"a/caf\xe9.png: its name is not UTF-8, which DVC cannot store: rename it"


@pytest.mark.parametrize("kind", ["dead link", "Latin-1 name"])
def test_what_dvc_cannot_take_is_named_before_dvc(tmp_path: Path, kind: str) -> None:
    project = Project(tmp_path / "project")
    words = broken(kind, project.folder)
    # DVC says which file, or what is wrong with it, but not both, and no remedy.
    assert words not in project.dvc("add", "data/mine")
    with pytest.raises(DataError) as caught:
        look.check_images(project.root)
    assert words in str(caught.value)


def test_looking_over_takes_the_overlays_folder(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("data: {dir: data/none}")
    broken("dead link", tmp_path / "data" / "mine")
    look.check_images(tmp_path)
    with pytest.raises(DataError, match="where nothing is"):
        look.check_images(tmp_path, {"data": {"dir": "data/mine"}}, source="overlay.yaml")


def looked_at(folder: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.look", folder]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_looking_says_what_it_looked_at() -> None:
    assert looked_at("data/weights").stdout.startswith("DVC can read data/weights: ")
    misspelt = looked_at("data/mien")
    assert misspelt.returncode == 1
    assert misspelt.stderr.startswith("error: data/mien: no such folder")


def linked_from_the_cache(project: Project) -> None:
    project.dvc("config", "cache.type", "symlink")
    project.dvc("add", "data/mine")
    assert [p for p in project.folder.rglob("*.png") if not p.is_symlink()] == []


@pytest.mark.parametrize("where", ["own", pytest.param("shared", marks=pytest.mark.slow)])
def test_links_into_the_cache_of_dvc_are_images(tmp_path: Path, where: str) -> None:
    """Looked at as the stage does, as far as decoding."""
    project = Project(tmp_path / "project")
    if where == "shared":
        project.dvc("cache", "dir", str(tmp_path / "shared cache"))
    classes("a", "b", count=2)(project.folder)
    linked_from_the_cache(project)
    (tmp_path / "outside.png").write_bytes(as_bytes(1))
    (project.folder / "b" / "out.png").symlink_to(tmp_path / "outside.png")
    script = (
        "from pathlib import Path\n"
        "from stages.core.intake.source import Unreadable\n"
        "from stages.core.intake.sources import open_source\n"
        "source = open_source(Path('data/mine'))\n"
        "for name in source.table['file_name']:\n"
        "    try:\n"
        "        print(name, len(source.read(name)))\n"
        "    except Unreadable as error:\n"
        "        print(name, error)\n"
    )
    lines = project.run(sys.executable, "-c", script).splitlines()
    assert len(lines) == 5
    assert [line for line in lines if "link" in line] == [
        "b/out.png a link that leaves the folder; put the file itself there"
    ]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["cache symlink", "blanks", "absolute", "wrapper"])
def test_whole_runs_through_dvc(tmp_path: Path, kind: str) -> None:
    name = {
        "blanks": "data/my images (2)",
        "absolute": str(tmp_path / "elsewhere" / "images"),
        "wrapper": "data/mine/PetImages",
    }.get(kind, "data/mine")
    project = Project(tmp_path / "project", name)
    classes("a", "b")(project.folder)
    if kind == "cache symlink":
        linked_from_the_cache(project)
    elif kind != "absolute":
        assert "ERROR" not in project.dvc("add", "data/mine" if kind == "wrapper" else name)
    output = project.validate()
    assert "24 images fulfil" in output, output
    assert project.metrics["images"] == 24
    assert "didn't change" in project.validate()
    shutil.rmtree(project.folder / "b")
    assert "found 1 class (a)" in project.validate()


def test_the_flow_looks_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "params.yaml").write_text("data: {dir: data/mine}")
    words = broken("Latin-1 name", tmp_path / "data" / "mine")
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    with pytest.raises(DataError) as caught, pipeline.held_workspace(None, "a run"):
        pass
    assert words in str(caught.value)
