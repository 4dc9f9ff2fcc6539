"""Two processes that train together end where one alone ends, up to rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

TRAIN = """
import sys
from pathlib import Path
import numpy as np, torch
from stages.core import processes
from stages.core.checkpoint import Checkpoint
from stages.core.fit import fit
from stages.core.prefix import Prefix
from tests.core.test_fit import RECIPE, small_net, views
from tests.conftest import dataset

torch.set_num_threads(1)
processes.join()
folder = Path(sys.argv[1])
shown = views()
net = small_net()
net.head.dropout.p = 0.0
net.freeze_lowest(2)
rows = np.arange(10)
prefix = Prefix(net, shown, rows, 3, folder / "prefixes", plain=rows[:2], most_gb=1)
labels = torch.arange(10) % 2
fit(
    net,
    lambda net, r, e: torch.nn.functional.cross_entropy(prefix.logits(net, r, e), labels[r]),
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
    found: dict[str, torch.Tensor] = torch.load(folder / "net.pt", weights_only=True)
    return found


@pytest.mark.slow
def test_two_are_as_one(tmp_path: Path) -> None:
    one = train(tmp_path / "one", [])
    two = train(
        tmp_path / "two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    )
    untrained = [k for k in one if torch.equal(one[k], two[k])]
    assert len(untrained) < len(one)
    for name, tensor in one.items():
        assert torch.allclose(tensor.float(), two[name].float(), atol=1e-4), name
