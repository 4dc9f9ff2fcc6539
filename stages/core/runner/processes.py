"""Several processes on one machine that train one network together (torchrun).

Every process does the same work on its share of each batch; gradients are added up. Only the first
one's outputs are kept.

PyTorch is imported by what needs it, when it is called: a stage that trains nothing starts without.
"""

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from stages.core.runner.errors import ParamsError

if TYPE_CHECKING:
    from torch import nn

    from stages.core.runner.runtime import Resources


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(resources: "Resources") -> None:
    """Meet the other processes, if torchrun has started this one with others.

    Raises: Unavailable when there is not a device for each.
    """
    if size() == 1:
        return
    import torch.distributed

    if not torch.distributed.is_initialized():
        device = resources.torch_device()
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        # The first one may work for hours while the others wait.
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo", timeout=timedelta(days=7)
        )


def require_single_process(what: str) -> None:
    """Refuse several processes, for a method that needs the whole batch.

    Raises: ParamsError when several processes train together.
    """
    if size() > 1:
        raise ParamsError(
            f"{what} needs whole batches: set resources.processes to 1 (now {size()})"
        )


def share(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's part of a batch; all of it when it is alone."""
    return rows[rank() :: size()]


def add_gradients(net: "nn.Module") -> None:
    """Replace every gradient by its sum over all processes."""
    if size() == 1:
        return
    import torch.distributed

    learning = [p for p in net.parameters() if p.requires_grad]
    for parameter in learning:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    flat = torch.cat([p.grad.reshape(-1) for p in learning if p.grad is not None])
    torch.distributed.all_reduce(flat)
    start = 0
    for parameter in learning:
        assert parameter.grad is not None
        count = parameter.numel()
        parameter.grad.copy_(flat[start : start + count].view_as(parameter))
        start += count


def wait() -> None:
    """Until all processes are here."""
    if size() > 1:
        import torch.distributed

        torch.distributed.barrier()


def add(value: float) -> float:
    """The sum of a number over all processes."""
    if size() == 1:
        return value
    import torch.distributed

    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total)


def launch(module: str, count: int) -> list[str]:
    """The command that runs a module with this process's arguments `count` times, together."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={count}", "-m", module, *sys.argv[1:],
    ]  # fmt: skip
