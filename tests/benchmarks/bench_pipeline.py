"""Training images ready for the network: packed and seeded, against torchvision's DataLoader.

The same 2,624 cells, the same size, batches of 32, turned, mirrored, with contrast and brightness
changed. Ours: an epoch of `Views` on the packed array, in this process. The other: `ImageFolder`
with decoding, resizing and torchvision's transforms in a DataLoader with two workers, which stay
alive from epoch to epoch. Neither touches the network; decoding and packing once (`validate`) is
not in ours.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from stages.core.data import Dataset
from stages.core.inference import batched
from stages.core.views import Views
from tests.benchmarks.project import default_run
from tests.benchmarks.record import Result, interleaved, ratios, seconds

ROUNDS, BATCH, WORKERS = 5, 32, 2
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
        )
    ]  # fmt: skip
