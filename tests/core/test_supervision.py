import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional as F

from stages.core import nets, weights
from stages.core.errors import ParamsError
from stages.core.prefix import Prefix
from stages.core.supervision import Supervision
from stages.core.views import Views
from tests.conftest import dataset

DATA = dataclasses.replace(
    dataset(n=12, px=32), _manifest=pd.DataFrame({"p": np.linspace(0, 1, 12), "bad": [2.0] * 12})
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
    made = nets.build(lite, weights.packaged(lite), stages=[0, 1], data=DATA)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.head.linear.weight, std=0.1)
    made.freeze_lowest(2)
    return made.eval()


def value(net: nets.Net, folder: Path, **changes: Any) -> tuple[float, torch.Tensor]:
    prefix = Prefix(net, Views(DATA.pixels, 0, 0.1), TRAIN, 2, folder, plain=TRAIN[:1], most_gb=1)
    loss = supervision(**changes).loss(DATA, prefix, 2, seed=0)
    # Epoch 3 shows view 1 again.
    return float(loss(net, TRAIN[:5], 3).detach()), prefix.logits(net, TRAIN[:5], 1).detach()


def test_soft_labels(net: nets.Net, tmp_path: Path) -> None:
    found, logits = value(net, tmp_path, soft_labels=["p"])
    p = torch.from_numpy(np.linspace(0, 1, 12)[TRAIN[:5]])
    naive = -(torch.stack([1 - p, p], 1) * F.log_softmax(logits.double(), 1)).sum(1).mean()
    assert found == pytest.approx(float(naive), rel=1e-5)


def test_class_weights(net: nets.Net, tmp_path: Path) -> None:
    found, logits = value(net, tmp_path, imbalance="weights")
    labels = DATA.labels[TRAIN]
    counts = np.bincount(labels)
    w = counts.sum() / (2 * counts)[labels[:5]]
    each = -F.log_softmax(logits.double(), 1).numpy()[np.arange(5), labels[:5]]
    assert found == pytest.approx((w * each).mean(), rel=1e-5)


def test_focal_and_smoothing_differ_from_plain(net: nets.Net, tmp_path: Path) -> None:
    plain, _ = value(net, tmp_path)
    focal, _ = value(net, tmp_path, imbalance="focal")
    smooth, _ = value(net, tmp_path, label_smoothing=0.1)
    assert focal < plain
    assert smooth != plain


def test_mixup_mixes_inputs_and_targets(net: nets.Net, tmp_path: Path) -> None:
    found, _ = value(net, tmp_path, mixup=0.4)
    prefix = Prefix(net, Views(DATA.pixels, 0, 0.1), TRAIN, 2, tmp_path, plain=TRAIN[:1], most_gb=1)
    draws = np.random.default_rng([0, 3, int(TRAIN[0])])
    share, other = draws.beta(0.4, 0.4), draws.permutation(5)
    x, pooled = prefix.inputs(TRAIN[:5], 1)
    features = net.features_from(
        share * x + (1 - share) * x[other], share * pooled + (1 - share) * pooled[other],
        prefix.length,
    )  # fmt: skip
    y = F.one_hot(torch.from_numpy(DATA.labels[TRAIN[:5]]), 2).double()
    y = share * y + (1 - share) * y[other]
    naive = -(y * F.log_softmax(net.head(features).double(), 1)).sum(1).mean()
    assert found == pytest.approx(float(naive.detach()), rel=1e-4)


def test_balance_repeats_the_scarcer_class() -> None:
    rows = np.array([r for r in TRAIN if DATA.labels[r] == 0 or r == TRAIN[-1]])
    rows = np.append(rows, [r for r in TRAIN if DATA.labels[r] == 1][:1])
    found = supervision(imbalance="balanced").balance(DATA, rows)
    counts = np.bincount(DATA.labels[found])
    assert counts[0] == counts[1] == max(np.bincount(DATA.labels[rows]))
    assert set(found) == set(rows)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (["q"], "no column 'q'"),
        (["bad"], "'bad' holds more than 0 to 1"),
        (["p", "p", "p"], "3 columns for 2"),
    ],
)
def test_soft_labels_that_are_none(columns: list[str], words: str) -> None:
    with pytest.raises(ParamsError, match=words):
        supervision(soft_labels=columns).wanted(DATA)
