"""Training images ready for the network: packed and seeded, against torchvision's DataLoader.

The same 2,624 cells, the same size, batches of 32, turned, mirrored, with contrast and brightness
changed. Ours: an epoch of `Views` on the packed array, in this process. The other: `ImageFolder`
with decoding, resizing and torchvision's transforms in a DataLoader with two workers, which stay
alive from epoch to epoch. Neither touches the network; decoding and packing once (`validate`) is
not in ours.

And what share of fine-tuning's steps waits for data: for the frozen layers' output, where it has
been stored, as by default; and for `Views`, where nothing is stored and every step makes its own.
"""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stages.core.dataset.data import Dataset
from stages.core.dataset.views import Views
from stages.core.nets.inference import batched
from stages.core.training.inputs import Inputs
from tests.benchmarks import bench_transfer
from tests.benchmarks.bench_transfer import Transfer
from tests.benchmarks.project import default_run
from tests.benchmarks.record import Result, interleaved, quiet, ratios, seconds

ROUNDS, BATCH, WORKERS = 5, 32, 2
WAITING_SHARE, WAITING_ROUNDS = 0.25, 3
IMAGES = Path("data/elpv")


def as_class_folders(data: Dataset, folder: Path) -> None:
    """The cells as torchvision's ImageFolder reads them."""
    for name, label in zip(data.files, data.labels, strict=True):
        target = folder / data.classes[label] / Path(name).name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(IMAGES / name, target)


def loader(folder: Path, px: int) -> DataLoader[tuple[torch.Tensor, int]]:
    """What a training script would have."""
    turns = v2.RandomChoice([v2.RandomRotation((a, a)) for a in (0, 90, 180, 270)])
    transforms = v2.Compose(
        [
            v2.Grayscale(),
            v2.PILToTensor(),
            v2.Resize((px, px), antialias=True),
            v2.RandomHorizontalFlip(),
            turns,
            v2.ColorJitter(brightness=0.2, contrast=0.2),
        ]
    )
    return DataLoader(
        ImageFolder(folder, transforms), BATCH, shuffle=True,
        num_workers=WORKERS, persistent_workers=True,
    )  # fmt: skip


@contextmanager
def stopwatch(owner: Any, name: str) -> Iterator[list[float]]:
    """While it lasts, the seconds of every call of `owner.name` are added to the list."""
    called, elapsed = getattr(owner, name), []

    def timed(*args: Any, **options: Any) -> Any:
        start = time.perf_counter()
        try:
            return called(*args, **options)
        finally:
            elapsed.append(time.perf_counter() - start)

    with patch.object(owner, name, timed):
        yield elapsed


def waiting(transfer: Transfer, owner: Any, name: str, most_gb: float) -> list[float]:
    """Share of fine-tuning's steps, in per cent, that `owner.name` takes; each round."""
    shares = []
    for _ in range(WAITING_ROUNDS):
        with quiet():
            net = transfer.trainer.probe(0)
        with stopwatch(owner, name) as waits, stopwatch(bench_transfer, "fit") as steps:
            transfer.tune(net, 1, transfer.trainer.params.frozen_groups, most_gb)
        shares.append(100 * sum(waits) / sum(steps))
    return shares


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    data = default_run()
    as_class_folders(data, work / "folders")
    theirs = loader(work / "folders", data.image_px)
    views = Views(np.array(data.pixels), seed=0, jitter=0.2, symmetries="all")
    rows = np.arange(len(data.labels))

    def our_epoch() -> None:
        order = np.random.default_rng(0).permutation(rows)
        for batch in batched(order, BATCH):
            views.batch(batch, 0)

    def their_epoch() -> None:
        for _ in theirs:
            pass

    their_epoch()  # starts the workers
    slow, fast = interleaved(
        max(round(ROUNDS * scale), 1), lambda: seconds(their_epoch), lambda: seconds(our_epoch)
    )
    transfer = Transfer(work, default_run(WAITING_SHARE))
    steps = f"steps of the teacher's fine-tuning on {len(transfer.train)} cells"
    what = f"an epoch of {len(rows):,} augmented cells of {data.image_px} px"
    return [
        Result(
            "pipeline", f"{what}: DataLoader with {WORKERS} workers over `Views`",
            ratios(slow, fast), 4.0,
        ),
        Result(
            "waiting", f"{steps}: reading the frozen layers' output",
            waiting(transfer, Inputs, "activations", 1e3), 5.0, unit="%",
        ),
        Result(
            "waiting_views", f"{steps}: making views where nothing is stored",
            waiting(transfer, Views, "batch", 0.0), 5.0, unit="%",
        ),
    ]  # fmt: skip
