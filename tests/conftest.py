"""Small data that the tests share."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages.core.dataset.data import Dataset, FileRules, Rows
from stages.core.nets.net import Net
from stages.core.runner.runtime import Resources
from stages.core.training import trainer
from stages.core.training.fit import Loss

ROOT = Path(__file__).resolve().parent.parent
MakeFolder = Callable[..., Path]
RowsFitted = Callable[[], list[Rows]]

RESOURCES = Resources(device="cpu", threads=1, processes=1, cache_gb=1.0)
RECIPE: dict[str, Any] = {
    "epochs": 2, "batch_size": 8, "learning_rate": 1e-3, "head_learning_rate": 1e-2,
    "rate_decay": 1.0, "unfreeze_every": 0, "weight_decay": 0.05, "average": 0.0,
}  # fmt: skip


def dataset(*, n: int = 8, px: int = 32, channels: int = 1, classes: int = 2) -> Dataset:
    """A validated dataset of noise, without a file: of five images, one is val and one test."""
    every = np.arange(n)
    pixels = np.random.default_rng(0).integers(0, 256, (n, px, px, channels), dtype=np.uint8)
    splits = np.select([every % 5 == 3, every % 5 == 4], ["val", "test"], "train")
    return Dataset(
        pixels=pixels,
        labels=every % classes,
        groups=every // 2,
        domains=np.full(n, "", object),
        splits=splits.astype(object),
        files=np.array([f"{i}.png" for i in every], object),
        classes=[f"class {k}" for k in range(classes)],
        rules=FileRules(bit_depth=8, max_pixels=10**8, fit="stretch"),
        symmetries="all",
        _manifest=pd.DataFrame(
            {"file_name": [f"{i}.png" for i in every], "group": [f"g{i // 2}" for i in every]}
        ),
    )


def outputs(logits: Any, features: Any = None) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """A teacher's logits (V, n, K), and features (V, n, G) if there are any, view by view."""
    if features is None:
        features = np.empty((*logits.shape[:2], 0), np.float16)
    yield from zip(torch.from_numpy(logits), torch.from_numpy(features), strict=True)


@pytest.fixture
def rows_fitted(monkeypatch: pytest.MonkeyPatch) -> RowsFitted:
    """From its call on, no network is trained; gives a list that grows by the rows of each."""

    def start() -> list[Rows]:
        fitted: list[Rows] = []

        def fit(net: Net, loss: Loss, rows: Rows, *_: Any, **__: Any) -> pd.DataFrame:
            fitted.append(rows)
            return pd.DataFrame({"epoch": [1], "loss": [0.0], "val_auroc": [0.5]})

        monkeypatch.setattr(trainer, "fit", fit)
        return fitted

    return start


def draw_images(folder: Path, *, groups: int = 8, per_group: int = 6, px: int = 40) -> Path:
    """An imagefolder of grey images: two classes that differ in brightness, in groups."""
    folder.mkdir()
    draws = np.random.default_rng(0)
    rows = []
    for group in range(groups):
        for i in range(per_group):
            label = ["functional", "defective"][i % 2]
            grey = draws.normal(90 if i % 2 else 160, 25, (px, px)).clip(0, 255)
            file = f"g{group}_{i}.png"
            Image.fromarray(grey.astype(np.uint8)).save(folder / file)
            rows.append((file, label, f"g{group}", "mono"))
    table = pd.DataFrame(rows, columns=["file_name", "label", "group", "domain"])
    table.to_csv(folder / "metadata.csv", index=False)
    return folder


@pytest.fixture
def image_folder(tmp_path: Path) -> MakeFolder:
    """`draw_images` into a folder of the test's own."""

    def make(*, name: str = "images", **how: int) -> Path:
        return draw_images(tmp_path / name, **how)

    return make


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Several are ten times slower on small images where others compute too."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def docs() -> bool:
    """For tests that want Data Docs from what `quick` makes quick."""
    return True


@pytest.fixture
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation without Data Docs, which take half of the time."""
    if "docs" not in request.fixturenames or not request.getfixturevalue("docs"):
        monkeypatch.setattr("stages.core.intake.contract.Contract.document", lambda _: None)
