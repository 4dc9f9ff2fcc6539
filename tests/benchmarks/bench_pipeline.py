"""Training images ready for the network: packed and seeded, against torchvision's DataLoader.

The same 2,624 cells, the same size, batches of 32, turned, mirrored, with contrast and brightness
changed. Ours: an epoch of `Views` on the packed array, in this process. The other: `ImageFolder`
with decoding, resizing and torchvision's transforms in a DataLoader with two workers, which stay
alive from epoch to epoch. Neither touches the network; decoding and packing once (`validate`) is
not in ours.

And what share of a step waits for data: the time in `Views` within an epoch of fine-tuning, where
nothing is stored and every step makes its own views.
"""

import shutil
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stages.core.data import Dataset
from stages.core.inference import batched
from stages.core.views import Views
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


class Timed(Views):
    """Views that know how long they took."""

    seconds = 0.0

    def batch(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        start = time.perf_counter()
        made = super().batch(rows, view)
        Timed.seconds += time.perf_counter() - start
        return made


def waiting(work: Path) -> list[float]:
    """Share of an epoch of fine-tuning, in per cent, that goes into making views; each round."""
    made = Transfer(work, default_run(WAITING_SHARE))
    views = made.trainer.views
    made.trainer.views = Timed(views.pixels, views.seed, views.jitter)
    found = []
    for _ in range(WAITING_ROUNDS):
        with quiet():
            net = made.trainer.probe(0)
        Timed.seconds = 0.0
        epoch = made.tune(net, 1, made.trainer.params.frozen_groups, 0.0)
        found.append(100 * Timed.seconds / epoch)
    return found


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    data = default_run()
    as_class_folders(data, work / "folders")
    theirs = loader(work / "folders", data.image_px)
    views = Views(np.array(data.pixels), seed=0, jitter=0.2)
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
    what = f"an epoch of {len(rows):,} augmented cells of {data.image_px} px"
    return [
        Result(
            "pipeline", f"{what}: DataLoader with {WORKERS} workers over `Views`",
            ratios(slow, fast), 4.0,
        ),
        Result(
            "waiting", "an epoch of the teacher's fine-tuning: time spent on making views",
            waiting(work), 5.0, unit="%",
        ),
    ]  # fmt: skip
