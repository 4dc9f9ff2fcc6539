"""Two processes that train together end where one alone ends, up to rounding; dropout included."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from stages.core.runner.params import load_yaml
from tests.conftest import ROOT
from tests.helpers.classroom import validated
from tests.helpers.fitted import small_net

TRAIN = """
import sys
from pathlib import Path
import numpy as np, torch
from stages.core.runner import processes
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.runtime import Resources
from stages.core.training.fit import fit
from stages.core.training.inputs import Inputs
from tests.helpers.fitted import RECIPE, small_net, views
from tests.conftest import dataset

torch.set_num_threads(1)
processes.join(Resources(device="cpu", threads=1, processes=2, cache_gb=1.0))
folder = Path(sys.argv[1])
shown = views()
net = small_net()
net.freeze_lowest(2)
rows = np.arange(10)
prefix = Inputs(net, shown, rows, 3, folder / "prefixes", plain=rows[:2], most_gb=1)
labels = torch.arange(10) % 2
fit(
    net,
    lambda net, r, e: torch.nn.functional.cross_entropy(net(prefix.batch(r, e)), labels[r]),
    rows,
    RECIPE.model_copy(update={"average": 0.5}),
    seed=1,
    evaluate=lambda net: {"figure": float(prefix.evaluate(net, rows[:2]).sum())},
    checkpoint=Checkpoint(folder, "fit"),
    what="together",
)
if not processes.rank():
    torch.save(net.state_dict(), folder / "net.pt")
"""


def train(folder: Path, launcher: list[str]) -> dict[str, torch.Tensor]:
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *launcher, str(folder / "train.py"), str(folder)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    result: dict[str, torch.Tensor] = torch.load(folder / "net.pt", weights_only=True)
    return result


@pytest.mark.slow
def test_two_are_as_one(tmp_path: Path) -> None:
    one = train(tmp_path / "one", [])
    two = train(
        tmp_path / "two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    )
    start = small_net().state_dict()
    learned = [k for k in one if not torch.equal(one[k], start[k])]
    assert learned
    assert not all(torch.equal(one[k], two[k]) for k in learned)
    for name in learned:
        # Single weights may differ by more: Adam divides by gradients that are all but zero.
        assert (one[name] - two[name]).norm() < 0.01 * (one[name] - start[name]).norm(), name


def run_teacher(at: Path, processes: int, **changes: object) -> subprocess.CompletedProcess[str]:
    """The stage on its own command line, in a folder of its own."""
    values = load_yaml(ROOT / "params.yaml")
    values["resources"] |= {"device": "cpu", "threads": 1, "processes": processes}
    values["teacher"] |= {"out_indices": [0, 1], "frozen_groups": 1} | changes
    values["teacher"]["recipe"] |= {"epochs": 2, "batch_size": 8}
    at.mkdir()
    (at / "stages").symlink_to(ROOT / "stages")
    (at / "weights").mkdir()
    YAML().dump(values, at / "params.yaml")
    validated(at / "validated", target=False)
    names = ["validated", "weights", "cache", "teacher", "metrics", "curves", "picture"]
    options = [x for name in [*names, "predictions"] for x in (f"--{name}", name)]
    return subprocess.run(
        [sys.executable, "-m", "stages.teacher", *options],
        cwd=at, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_a_stage_of_two_is_as_one(tmp_path: Path) -> None:
    ended = [run_teacher(tmp_path / str(n), n) for n in (1, 2)]
    assert [e.returncode for e in ended] == [0, 0], ended
    # Only the first of two speaks.
    assert [e.stdout.count("test AUROC") for e in ended] == [1, 1]
    one, two = (load_file(tmp_path / n / "teacher/member_0/model.safetensors") for n in "12")
    for name, tensor in one.items():
        assert (tensor - two[name]).float().norm() <= 1e-5 * tensor.float().norm(), name


@pytest.mark.slow
def test_a_stage_of_two_says_what_is_wrong(tmp_path: Path) -> None:
    ended = run_teacher(tmp_path / "two", 2, mixup=0.4)
    assert ended.returncode != 0
    ours = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert set(ours) == {
        "error: teacher: mixup needs whole batches: set resources.processes to 1 (now 2)"
    }
