"""Several processes on one machine that train one network together (torchrun).

Every process does the same work on its share of each batch; gradients are added up. Only the first
one's outputs are kept.
"""

import os
import sys
from datetime import timedelta

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.core.runner.errors import ParamsError


def rank() -> int:
    """This process's number, 0 when it is alone."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """How many processes train together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: torch.device) -> None:
    """Meet the other processes, if torchrun has started this one with others.

    Args:
        device: what this process computes on.
    """
    if size() > 1 and not torch.distributed.is_initialized():
        on_gpu = device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(device)
        # The first one may work for hours while the others wait.
        torch.distributed.init_process_group(
            "nccl" if on_gpu else "gloo", timeout=timedelta(days=7)
        )


def require_single_process(what: str) -> None:
    """For what looks at a whole batch, of which each process here has but a part.

    Raises: ParamsError when several processes train together.
    """
    if size() > 1:
        raise ParamsError(
            f"{what} needs whole batches: set resources.processes to 1 (now {size()})"
        )


def share(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """This process's part of a batch; all of it when it is alone."""
    return rows[rank() :: size()]


class Dropout(nn.Dropout):
    """Dropout whose draws do not depend on how many processes share the batch, nor on the device.

    They are the CPU's, for the whole batch; each process takes those of its own share.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, F) to (B, F)."""
        if not self.training or not self.p:
            return x
        whole = torch.empty(len(x) * size(), *x.shape[1:]).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * whole[rank() :: size()].to(x.device)


def add_gradients(net: nn.Module) -> None:
    """Replace every gradient by its sum over all processes."""
    if size() == 1:
        return
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
        torch.distributed.barrier()


def add(value: float) -> float:
    """The sum of a number over all processes."""
    if size() == 1:
        return value
    device = "cuda" if torch.distributed.get_backend() == "nccl" else "cpu"
    total = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(total)
    return float(total)


def launch(count: int) -> list[str]:
    """The command that runs this process's own command line `count` times, together."""
    module = sys.modules["__main__"].__spec__
    assert module is not None
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={count}", "-m", module.name, *sys.argv[1:],
    ]  # fmt: skip
