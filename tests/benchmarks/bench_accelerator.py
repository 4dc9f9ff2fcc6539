"""On a GPU: steps of fine-tuning in bfloat16 and compiled, against eager float32.

All of the teacher learns, on random images that are on the device already; the memory format is
channels_last in both, as everywhere in the project. And what share of the project's own steps waits
for data there. Where there is no GPU nothing is measured, and that is said.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from stages.core.dataset.views import Views
from stages.core.training.inputs import Inputs
from tests.benchmarks.bench_pipeline import WAITING_SHARE, waiting
from tests.benchmarks.bench_transfer import Transfer
from tests.benchmarks.project import default_run
from tests.benchmarks.record import Result, interleaved, ratios, seconds

BATCHES, STEPS, ROUNDS = (32, 256), 100, 5


def training(transfer: Transfer, batch: int, steps: int, *, fast: bool) -> Callable[[], float]:
    """What takes so many steps and gives the seconds; the first ones, which compile, are over."""
    net = transfer.probed()
    net.freeze_lowest(0)
    net.train()
    run = torch.compile(net) if fast else net
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4)
    device, px = net.mean.device, net.spec.image_px
    shape = (batch, px, px, net.spec.channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)
    labels = torch.randint(0, len(net.spec.classes), (batch,), device=device)

    def train(count: int = steps) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=fast):
                loss = F.cross_entropy(run(images), labels)
            torch.autograd.backward(loss)
            optimizer.step()
        loss.item()  # waits for the device

    train(3)
    return lambda: seconds(train)


def measure(work: Path, scale: float, device: str) -> list[Result]:
    """Measure on this device."""
    transfer = Transfer(work, default_run(WAITING_SHARE), device)
    steps = max(round(STEPS * scale), 1)
    results = []
    for batch in BATCHES:
        plain, fast = (training(transfer, batch, steps, fast=fast) for fast in (False, True))
        times = interleaved(ROUNDS, plain, fast)
        what = f"steps of {batch} images of {transfer.data.image_px} px, all of the teacher learns"
        results.append(
            Result(
                f"accelerated_{batch}", f"{what}: eager float32 over bfloat16 and torch.compile",
                ratios(*times),
            )
        )  # fmt: skip
        for name, result in zip(("eager", "compiled"), times, strict=True):
            speeds = [batch * steps / second for second in result]
            results.append(Result(f"{name}_{batch}", f"{what}: {name}", speeds, unit="images/s"))
    what = f"steps of the teacher's fine-tuning on {len(transfer.train)} cells, {device}"
    stored = waiting(transfer, Inputs, "activations", 1e3)
    made_then = waiting(transfer, Views, "batch", 0.0)
    return [
        *results,
        Result(f"waiting_{device}", f"{what}: frozen layers' output", stored, 5.0, unit="%"),
        Result(f"waiting_views_{device}", f"{what}: making views", made_then, 5.0, unit="%"),
    ]


def run(work: Path, scale: float) -> list[Result]:
    """Measure, where there is a GPU."""
    if torch.cuda.is_available():
        return measure(work, scale, "cuda")
    print("  no GPU here: nothing measured", flush=True)
    return []
