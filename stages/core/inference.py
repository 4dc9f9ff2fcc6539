"""Running a network over many images, in evaluation mode and without gradients."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stages.core.nets import Net
from stages.core.progress import Progress

# Larger ones are no faster on two cores, and take the memory of many.
BATCH = 32


def batched(rows: Any, size: int) -> Iterator[Any]:
    """Consecutive pieces of an array."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def run_batched(
    compute: Callable[[Tensor], Tensor],
    images: Callable[[NDArray[np.int64]], Tensor],
    rows: NDArray[np.int64],
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
    images: Callable[[NDArray[np.int64]], Tensor],
    rows: NDArray[np.int64],
    *,
    progress: Progress | None = None,
) -> NDArray[np.float32]:
    """Features (len(rows), F) of the given images."""
    net.eval()
    device = next(net.parameters()).device
    return run_batched(net.features, images, rows, device, progress=progress)


def logits_of(
    net: Net, images: Callable[[NDArray[np.int64]], Tensor], rows: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Logits (len(rows), K) of the given images."""
    net.eval()
    return run_batched(net, images, rows, next(net.parameters()).device)
