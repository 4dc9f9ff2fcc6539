"""dvc.yaml, params.yaml and the code say the same; shown also on broken copies."""

import dataclasses
import importlib
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows import params
from stages.core.runner.code import HARMLESS, files_of
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import load_yaml
from tests.conftest import ROOT

STAGES = list(load_yaml(ROOT / "dvc.yaml")["stages"])


def code_deps(root: Path, stage: str) -> set[str]:
    deps = load_yaml(root / "dvc.yaml")["stages"][stage]["deps"]
    return {dep for dep in deps if dep.startswith("stages/")}


def paths_of(outs: list[Any]) -> set[str]:
    return {next(iter(out)) if isinstance(out, dict) else out for out in outs}


def command_line(stage: str) -> dict[str, str]:
    command = load_yaml(ROOT / "dvc.yaml")["stages"][stage]["cmd"]
    # What DVC makes of the whole section, with quotation marks.
    words = shlex.split(command.replace("${data}", "--dir ${data.dir}"))
    assert words[:3] == ["python", "-m", f"stages.{stage}"]
    return {
        k.removeprefix("--").replace("-", "_"): v
        for k, v in zip(words[3::2], words[4::2], strict=True)
    }


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    for name in ("stages", "flows"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("dvc.yaml", "params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("stage", STAGES)
def test_deps_are_the_imported_code(stage: str) -> None:
    assert code_deps(ROOT, stage) == files_of([f"stages.{stage}"])


@pytest.mark.parametrize("stage", STAGES)
def test_command_line_is_paths(stage: str) -> None:
    definition = load_yaml(ROOT / "dvc.yaml")["stages"][stage]
    paths = importlib.import_module(f"stages.{stage}").Paths
    given = command_line(stage)
    fields = {f.name: f for f in dataclasses.fields(paths)}
    assert set(given) == set(paths.options())
    data_deps = {d for d in definition["deps"] if not d.startswith("stages/")}
    assert {given[name] for name in paths.inputs()} == data_deps
    tracked = {given[n] for n in paths.outputs() if fields[n].metadata["tracked"]}
    outs = paths_of(
        definition.get("outs", []) + definition.get("metrics", []) + definition.get("plots", [])
    )
    assert tracked == outs
    assert definition["params"] == [stage]


@pytest.mark.parametrize("stage", STAGES)
def test_the_run_cache_covers_every_stage(stage: str) -> None:
    """But check, a second of work, whose release DVC must not delete before it runs."""
    # DVC keeps no run of a stage with an uncached output that is neither metrics nor plot.
    outs = load_yaml(ROOT / "dvc.yaml")["stages"][stage].get("outs", [])
    options = [out for out in outs if not isinstance(out, str)]
    assert options == ([{"data/release": {"persist": True}}] if stage == "check" else [])


@pytest.mark.parametrize("stage", STAGES)
def test_a_fresh_clone_runs_every_stage(stage: str) -> None:
    # With only what git brings, DVC would take the committed figures for this machine's.
    outs = paths_of(load_yaml(ROOT / "dvc.yaml")["stages"][stage].get("outs", []))
    ignored = subprocess.run(["git", "check-ignore", *outs], cwd=ROOT, capture_output=True)
    assert ignored.stdout


def test_every_section_has_a_class_and_every_stage_a_section() -> None:
    params.check(ROOT / "params.yaml")
    assert set(load_yaml(ROOT / "params.yaml")) == {*STAGES, *params.SHARED}


@pytest.mark.parametrize(
    "overlay", sorted(p.name for p in (ROOT / "flows" / "overlays").glob("*.yaml"))
)
def test_overlays_fit(overlay: str, tmp_path: Path) -> None:
    from flows.workspace import merge

    values = load_yaml(ROOT / "params.yaml")
    merge(values, load_yaml(ROOT / "flows" / "overlays" / overlay), source=overlay)
    YAML().dump(values, tmp_path / "params.yaml")
    params.check(tmp_path / "params.yaml")


def test_files_that_do_not_retrain_exist() -> None:
    assert all((ROOT / name).is_file() for name in HARMLESS)


def test_catches_a_missing_core_dep(copy: Path) -> None:
    text = (copy / "dvc.yaml").read_text()
    (copy / "dvc.yaml").write_text(text.replace("      - stages/core/training/fit.py\n", ""))
    assert code_deps(copy, "teacher") != files_of(["stages.teacher"], copy)


def test_catches_a_section_without_class(copy: Path) -> None:
    with (copy / "params.yaml").open("a") as file:
        file.write("\npolish: {strength: 1}\n")
    with pytest.raises(ParamsError, match="polish: no stage has this name"):
        params.check(copy / "params.yaml")


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("stages/distill.py", "import stages.teacher\n"),
        ("stages/core/training/fit.py", "from stages import distill\n"),
        ("flows/train.py", "from stages.export import run\n"),
    ],
)
def test_import_linter_catches_crossings(copy: Path, file: str, line: str) -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    sound = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert sound.returncode == 0, sound.stdout
    (copy / file).write_text(line + (copy / file).read_text())
    broken = subprocess.run(command, cwd=copy, capture_output=True, text=True)
    assert broken.returncode != 0
    assert "BROKEN" in broken.stdout


def contract_modules(root: Path, key: str) -> list[list[str]]:
    """The stage modules that each of import-linter's contracts names under `key`."""
    with (root / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    modules = [contract[key] for contract in contracts if key in contract]
    return [[name for name in names if name.startswith("stages.")] for names in modules]


def test_import_linter_knows_every_stage() -> None:
    expected = {f"stages.{stage}" for stage in STAGES}
    for key in ("modules", "forbidden_modules"):
        listed = contract_modules(ROOT, key)
        assert listed
        assert all(set(names) == expected for names in listed)


def test_catches_a_stage_that_import_linter_does_not_know(copy: Path) -> None:
    text = (copy / "pyproject.toml").read_text()
    (copy / "pyproject.toml").write_text(text.replace('"stages.check",\n', "", 1))
    expected = {f"stages.{stage}" for stage in STAGES}
    assert any(set(names) != expected for names in contract_modules(copy, "modules"))


def test_every_requirement_has_the_hash_of_its_files() -> None:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pinned = [number for number, line in enumerate(lines) if "==" in line]
    assert pinned
    assert all(lines[number + 1].startswith("    --hash=sha256:") for number in pinned)
