"""Running a network over many images, in evaluation mode and without gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.dataset.data import Rows
from stages.core.nets.net import Net
from stages.core.runner.errors import TrainingDiverged
from stages.core.runner.progress import Progress

# Larger ones are no faster on two cores, and take the memory of many.
BATCH = 32


def batched(rows: Any, size: int) -> Iterator[Any]:
    """Consecutive pieces of an array."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def as_half(x: Tensor, what: str) -> Tensor:
    """`x` as float16. Raises: TrainingDiverged when a number is too large for it, or none."""
    half = x.to(torch.float16)
    if not torch.isfinite(half).all():
        raise TrainingDiverged(
            f"{what}: found numbers up to {x.abs().max().item():g}; expected at most 65504, the "
            "largest that float16 holds: lower the rates of training, or take another backbone"
        )
    return half


def run_batched(
    compute: Callable[[Tensor], Tensor],
    images: Callable[[Rows], Tensor],
    rows: Rows,
    device: torch.device,
    *,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """`compute` on `images(rows)`, a batch at a time: float32 (len(rows), ...)."""
    out = []
    with torch.inference_mode():
        for batch in batched(rows, BATCH):
            out.append(compute(images(batch).to(device)).float().cpu().numpy())
            if progress:
                progress.step(len(batch))
    return np.concatenate(out)


def features_of(
    net: Net,
    images: Callable[[Rows], Tensor],
    rows: Rows,
    *,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Features (len(rows), F) of the given images."""
    net.eval()
    device = next(net.parameters()).device
    return run_batched(net.features, images, rows, device, progress=progress)


def logits_of(net: Net, images: Callable[[Rows], Tensor], rows: Rows) -> NDArray[np.float32]:
    """Logits (len(rows), K) of the given images."""
    net.eval()
    return run_batched(net, images, rows, next(net.parameters()).device)
