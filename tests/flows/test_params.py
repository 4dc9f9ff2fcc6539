"""params.yaml is held against the stages' classes before anything runs, and once."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import params
from stages.core.runner.errors import ParamsError, Unavailable
from tests.conftest import ROOT


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path / "params.yaml"


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def imported(path: Path) -> str:
    """Of torch, whether checking this file imports it."""
    code = (
        "import sys; from pathlib import Path; from flows import params\n"
        f"params.check(Path({str(path)!r})); print('torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_params_that_were_good_need_no_stage_again(workspace: Path) -> None:
    assert imported(workspace) == "True\n"
    assert imported(workspace) == "False\n"


def test_a_bad_param_is_refused_also_after_good_ones(workspace: Path) -> None:
    params.check(workspace)
    change(workspace, "temperature: 2.0", "temperature: -1.0")
    for _ in range(2):
        with pytest.raises(ParamsError, match=r"distill\.temperature = -1\.0"):
            params.check(workspace)


def test_what_an_overlay_says_wrongly_is_named_after_it(workspace: Path) -> None:
    changes = {"teacher": {"recipe": {"epochs": "two"}}}
    with pytest.raises(ParamsError, match=r"^o\.yaml: teacher\.recipe\.epochs = 'two'"):
        params.check(workspace, changes, source="o.yaml")


def test_several_good_params_are_remembered(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"teacher": {"seed": 7}}
    params.check(workspace)
    params.check(workspace, changes, source="o.yaml")
    monkeypatch.setattr(params, "section_class", lambda name: pytest.fail(name))
    params.check(workspace)
    params.check(workspace, changes, source="o.yaml")


@pytest.mark.parametrize("weights", ["hub", "hub@main", "imagenet", "weights.pth"])
@pytest.mark.parametrize("section", ["teacher", "distill"])
def test_weights_that_can_be_no_source(workspace: Path, section: str, weights: str) -> None:
    with pytest.raises(ParamsError, match=rf"^o: {section}\.weights = '{weights}': should be"):
        params.check(workspace, {section: {"weights": weights}}, source="o")


def test_other_code_looks_again(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params.check(workspace)
    monkeypatch.setattr(params, "digest_of", lambda *_: "other")
    monkeypatch.setattr(params, "section_class", lambda name: pytest.fail(name))
    with pytest.raises(pytest.fail.Exception):
        params.check(workspace)


def test_a_device_that_is_not_here_is_refused_also_after_good_ones(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    change(workspace, "device: auto", "device: cuda")
    for _ in range(2):
        with pytest.raises(Unavailable, match="no CUDA device"):
            params.check(workspace)


@pytest.mark.parametrize(
    "changes", [{"min_recall": {"defective": 0.5}}, {"min_gain_under": {"blur": -0.1}}]
)
def test_an_overlay_may_name_classes_and_disturbances(changes: dict[str, Any]) -> None:
    params.check(ROOT / "params.yaml", {"check": changes}, source="overlay")
    wrong = {"check": {name: dict.fromkeys(value, 2.0) for name, value in changes.items()}}
    with pytest.raises(ParamsError, match="less than or equal to 1"):
        params.check(ROOT / "params.yaml", wrong, source="overlay")
