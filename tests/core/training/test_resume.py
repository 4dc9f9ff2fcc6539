"""Training that is killed with -9, again and again, ends where undisturbed training ends."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.conftest import ROOT

# What `fit` is told otherwise than by default; `method`: distillation.
MODES: dict[str, dict[str, object]] = {
    "plain": {},
    "discriminative": {"rate_decay": 2.6, "unfreeze_every": 1},
    "averaged": {"average": 0.9},
    "all": {"rate_decay": 2.0, "unfreeze_every": 1, "average": 0.9},
    "own statistics": {"learning": True},
    "mixup": {"mixup": 0.4, "label_smoothing": 0.1},
    "focal": {"imbalance": "focal"},
    "balanced": {"imbalance": "balanced", "average": 0.5},
    "mcc": {"mcc": True},
    "dann": {"dann": True, "average": 0.9},
    **{method: {"method": method} for method in ("kd", "dkd", "dist", "feature")},
    "synthetic": {"method": "kd", "synthetic": True},
}

TRAIN = """
import json, sys, tempfile
from pathlib import Path
import numpy as np, torch
from stages.core.nets import net as nets
from stages.core.nets import weights
from stages.core.training.adaptation import Adversary, Confusion, WithTarget
from stages.core.runner.checkpoint import Checkpoint
from stages.core.training.fit import Recipe, fit
from stages.core.results.metrics import auroc
from stages.core.training.inputs import Inputs
from stages.core.training.supervision import Supervision
from stages.core.dataset.views import Views
from stages.core.training.student import distillation_loss
from stages.refine import Synthetic, with_synthetic
from tests.conftest import RECIPE, dataset
from tests.helpers.lessons import lesson as taught, targets_of

modes = json.loads(sys.argv[2])
torch.set_num_threads(1)
folder = Path(sys.argv[1])
data = dataset(n=40)
train, val, unlabelled = data.rows("train"), data.rows("val"), data.rows("test")
known = weights.packaged("tf_efficientnet_lite0")
print("ready", flush=True)
for name, changes in modes.items():
    done = folder / f"{name}.pt"
    if done.exists():
        continue
    torch.manual_seed(1)
    net = nets.build("tf_efficientnet_lite0", known, out_indices=[0, 1], data=data, dropout=0.3)
    net.frozen_statistics = "learning" not in changes
    net.freeze_lowest(0 if "learning" in changes else 1)
    how = {"soft_labels": None, "imbalance": "none", "focal_gamma": 2.0}
    how |= {k: changes.get(k, 0.0) for k in ("label_smoothing", "mixup")}
    how |= {k: v for k, v in changes.items() if k == "imbalance"}
    lesson = Supervision.model_validate(how)
    recipe = RECIPE | {"epochs": 4, "batch_size": 6}
    recipe |= {k: v for k, v in changes.items() if k in recipe}
    rows = np.concatenate([train, unlabelled])
    views = Views(data.pixels, 0, 0.1, "all")
    prefix = Inputs(net, views, rows, 2, folder / "prefixes", plain=val, most_gb=1)
    loss = learned = lesson.loss(data, prefix, 2, seed=3)
    if "mcc" in changes:
        loss = WithTarget(learned, Confusion(prefix, unlabelled, 2, seed=3), 1.0)
    if "dann" in changes:
        loss = WithTarget(learned, Adversary(net, prefix, unlabelled, 2, 3, 4), 1.0)
    if "method" in changes:
        targets = targets_of(Path(tempfile.mkdtemp()) / "targets", data)
        seen = Inputs(
            net, targets.views, train, targets.view_count, folder / "prefixes", plain=val, most_gb=1
        )
        how = taught(method=changes["method"])
        loss = learned = distillation_loss(data, targets, seen, how)
    if "synthetic" in changes:
        draws = torch.Generator().manual_seed(5)
        made = Synthetic(
            torch.randint(0, 256, (20, 32, 32, 1), dtype=torch.uint8, generator=draws),
            torch.randn(20, 2, generator=draws), torch.arange(20) % 2,
        )
        loss = with_synthetic(learned, made, how, 0.3, 6)
    fit(
        net, loss, lesson.balance(data, train), Recipe.model_validate(recipe), seed=7,
        evaluate=lambda net: {"val": auroc(prefix.evaluate(net, val), data.labels[val])},
        checkpoint=Checkpoint(folder / "fits", name), what=name,
    )
    partial = folder / "partial.pt"
    torch.save(net.state_dict(), partial)
    partial.replace(done)
"""


def train(folder: Path, *, kill_within: float | None) -> bool:
    """Whether it came to its end; else it was killed at a moment within so many seconds."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", TRAIN, str(folder), json.dumps(MODES)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        for line in child.stdout:
            if kill_within is not None and line.startswith("ready"):
                time.sleep(random.uniform(0, kill_within))
                child.send_signal(signal.SIGKILL)
    assert child.returncode in (0, -signal.SIGKILL)
    return child.returncode == 0


@pytest.mark.slow
def test_killed_at_random_it_ends_bit_for_bit(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    random.seed(seed)
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    started = time.monotonic()
    assert train(undisturbed, kill_within=None)
    whole = time.monotonic() - started
    kills = 0
    while kills < 10 and not train(killed, kill_within=whole / 10):
        kills += 1
    if kills == 10:
        assert train(killed, kill_within=None)
    assert kills > 2, seed
    result = sorted(undisturbed.glob("*.pt"))
    assert len(result) == len(MODES)
    for path in result:
        one, other = (torch.load(at / path.name, weights_only=True) for at in (undisturbed, killed))
        assert {k for k in one if not torch.equal(one[k], other[k])} == set(), (path.name, seed)
