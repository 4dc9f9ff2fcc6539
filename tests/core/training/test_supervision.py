import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from stages.core.dataset.views import Views
from stages.core.nets import net as nets
from stages.core.nets import weights
from stages.core.runner.errors import ParamsError
from stages.core.training.inputs import Inputs
from stages.core.training.supervision import Supervision
from tests.conftest import dataset

DATA = dataclasses.replace(
    dataset(n=12, px=32),
    _manifest=pd.DataFrame({"p": np.linspace(0, 1, 12), "bad": [2.0] * 12, "q": [0.5] * 12}),
)
TRAIN = DATA.rows("train")


def supervision(**changes: Any) -> Supervision:
    values = {
        "soft_labels": None, "imbalance": "none", "focal_gamma": 2.0, "label_smoothing": 0.0,
        "mixup": 0.0,
    }  # fmt: skip
    return Supervision.model_validate(values | changes)


@pytest.fixture
def net() -> nets.Net:
    lite = "tf_efficientnet_lite0"
    network = nets.build(lite, weights.packaged(lite), out_indices=[0, 1], data=DATA)
    torch.manual_seed(0)
    torch.nn.init.normal_(network.head.linear.weight, std=0.1)
    network.freeze_lowest(2)
    return network.eval()


def value(net: nets.Net, folder: Path, **changes: Any) -> tuple[float, torch.Tensor]:
    prefix = Inputs(
        net, Views(DATA.pixels, 0, 0.1, "all"), TRAIN, 2, folder, plain=TRAIN[:1], most_gb=1
    )
    loss = supervision(**changes).loss(DATA, prefix, 2, seed=0)
    # Epoch 3 shows view 1 again.
    return float(loss(net, TRAIN[:5], 3).detach()), net(prefix.batch(TRAIN[:5], 1)).detach()


def test_soft_labels(net: nets.Net, tmp_path: Path) -> None:
    result, logits = value(net, tmp_path, soft_labels=["p"])
    p = torch.from_numpy(np.linspace(0, 1, 12)[TRAIN[:5]])
    naive = -(torch.stack([1 - p, p], 1) * F.log_softmax(logits.double(), 1)).sum(1).mean()
    assert result == pytest.approx(float(naive), rel=1e-5)


def test_class_weights(net: nets.Net, tmp_path: Path) -> None:
    result, logits = value(net, tmp_path, imbalance="weights")
    labels = DATA.labels[TRAIN]
    counts = np.bincount(labels)
    w = counts.sum() / (2 * counts)[labels[:5]]
    each = -F.log_softmax(logits.double(), 1).numpy()[np.arange(5), labels[:5]]
    assert result == pytest.approx((w * each).mean(), rel=1e-5)


def mixed_by_hand(
    net: nets.Net, folder: Path, wanted: np.ndarray
) -> tuple[torch.Tensor, np.ndarray]:
    prefix = Inputs(
        net, Views(DATA.pixels, 0, 0.1, "all"), TRAIN, 2, folder, plain=TRAIN[:1], most_gb=1
    )
    draws = np.random.default_rng([0, 3, int(TRAIN[0])])
    share, other = draws.beta(0.4, 0.4), draws.permutation(5)
    lowest = prefix.activations(TRAIN[:5], 1)
    maps, pooled = (share * x + (1 - share) * x[other] for x in (lowest.maps, lowest.pooled))
    logits = net(nets.Activations(maps, pooled, lowest.links))
    return logits.detach(), share * wanted + (1 - share) * wanted[other]


@pytest.mark.parametrize("imbalance", ["none", "focal"])
@pytest.mark.parametrize(
    "changes", [{}, {"soft_labels": ["p"]}, {"label_smoothing": 0.3}, {"mixup": 0.4}]
)
def test_every_loss_learns_what_is_wanted(
    net: nets.Net, tmp_path: Path, imbalance: str, changes: dict[str, Any]
) -> None:
    result, logits = value(net, tmp_path, imbalance=imbalance, **changes)
    wanted = np.eye(2)[DATA.labels[TRAIN[:5]]]
    if "soft_labels" in changes:
        p = np.linspace(0, 1, 12)[TRAIN[:5]]
        wanted = np.stack([1 - p, p], 1)
    if "label_smoothing" in changes:
        wanted = 0.7 * wanted + 0.3 / 2
    if "mixup" in changes:
        logits, wanted = mixed_by_hand(net, tmp_path, wanted)
    q = F.softmax(logits.double(), 1).numpy()
    each = -wanted * np.log(q) * ((1 - q) ** 2 if imbalance == "focal" else 1)
    assert result == pytest.approx(each.sum(1).mean(), rel=1e-4)


def test_what_has_no_label_is_wanted_of_no_class() -> None:
    labels = np.where(np.arange(12) == 3, -1, DATA.labels)
    data = dataclasses.replace(DATA, labels=labels)
    for changes in ({}, {"soft_labels": ["p"]}):
        result = supervision(**changes).probabilities(data).sum(1)
        assert result.tolist() == [0.0 if i == 3 else 1.0 for i in range(12)]
    blank = pd.DataFrame({"p": np.where(np.arange(12) == 3, np.nan, 0.25)})
    data = dataclasses.replace(data, _manifest=blank)
    assert supervision(soft_labels=["p"]).probabilities(data).isfinite().all()


def test_mixup_needs_whole_batches(
    net: nets.Net, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefix = Inputs(
        net, Views(DATA.pixels, 0, 0.1, "all"), TRAIN, 2, tmp_path, plain=TRAIN[:1], most_gb=1
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ParamsError, match=r"mixup needs whole batches: set resources\.processes"):
        supervision(mixup=0.4).loss(DATA, prefix, 2, seed=0)


def test_balance_repeats_the_scarcer_class() -> None:
    rows = np.array([r for r in TRAIN if DATA.labels[r] == 0 or r == TRAIN[-1]])
    rows = np.append(rows, [r for r in TRAIN if DATA.labels[r] == 1][:1])
    result = supervision(imbalance="balanced").balance(DATA, rows)
    counts = np.bincount(DATA.labels[result])
    assert counts[0] == counts[1] == max(np.bincount(DATA.labels[rows]))
    assert set(result) == set(rows)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["r"], "no column 'r'"),
        (["bad"], "'bad' holds more than 0 to 1"),
        (["p", "p", "p"], "3 columns for 2"),
        (["p", "q"], "p, q should add up to 1"),
    ],
)
def test_soft_labels_that_are_none(columns: list[str], words: str) -> None:
    with pytest.raises(ParamsError, match=words):
        supervision(soft_labels=columns).probabilities(DATA)
