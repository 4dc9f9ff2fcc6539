from pathlib import Path

import pytest
import torch

from flows import params
from stages.core.runner.errors import ParamsError, Unavailable
from tests.conftest import ROOT


def broken(tmp_path: Path, old: str, new: str) -> Path:
    text = (ROOT / "params.yaml").read_text()
    assert old in text
    (tmp_path / "params.yaml").write_text(text.replace(old, new, 1))
    return tmp_path / "params.yaml"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("frozen_groups:", "frozen_group:", ["teacher.frozen_group = 3", "allowed are"]),
        ("epochs: 4", "epochs: four", ["teacher.recipe.epochs = 'four'", "integer"]),
        ("epochs: 4", "epochs: 0", ["teacher.recipe.epochs = 0", "greater than or equal to 1"]),
        ("image_px: 160", "image_px: 100", ["validate.image_px = 100", "multiple of 32"]),
        ("device: auto", "device: tpu", ["resources.device = 'tpu'", "'auto', 'cpu' or 'cuda'"]),
        ("  dir: data/elpv", "  dir: null", ["data.dir = None", "string"]),
        ("\ncheck:", "\nchecks:", ["checks: no stage has this name"]),
        ("image_px: 64", "image_px: 48", ["augment.synthesize.image_px = 48", "a power of two"]),
        ("[1, 32]", "[8, 32]", ["benchmark.batches = [8, 32]", "1 among them"]),
        ("[1, 32]", "[1, 0]", ["benchmark.batches.1 = 0", "greater than or equal to 1"]),
        ("temperature: 2.0", "temperature: [", ["not readable as YAML"]),
    ],
)
def test_refuses_and_says_why(tmp_path: Path, old: str, new: str, words: list[str]) -> None:
    path = broken(tmp_path, old, new)
    with pytest.raises(ParamsError) as caught:
        params.check(path)
    for word in ["params.yaml", *words]:
        assert word in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_device_that_is_not_here(tmp_path: Path) -> None:
    path = broken(tmp_path, "device: auto", "device: cuda")
    with pytest.raises(Unavailable, match=r"resources\.device = 'cuda'.*no CUDA device"):
        params.check(path)


def test_missing_key(tmp_path: Path) -> None:
    path = broken(tmp_path, "  fold: 0\n", "")
    with pytest.raises(ParamsError, match=r"validate\.fold: is missing"):
        params.check(path)


def test_short_floats_are_numbers(tmp_path: Path) -> None:
    params.check(broken(tmp_path, "learning_rate: 1e-4", "learning_rate: 2e-5"))
