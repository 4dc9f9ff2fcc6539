"""Checkpoints of a stage that can be killed at any moment.

They lie under `data/scratch/STAGE/KEY`, KEY being a hash of the stage's params, inputs and code, so
that a checkpoint is only ever found by the very same work. The stage removes them when it is done.
"""

import io
from pathlib import Path
from typing import Any

import torch

from stages.core.runner import disk, processes


class Checkpoint:
    """One resumable piece of a stage's work, kept in one file.

    What is saved is what `torch.load(weights_only=True)` reads: tensors, numbers, strings, and
    lists and dicts of them.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.pt"

    def load(self) -> Any | None:
        """The newest saved state, or None when there is none."""
        if not self.path.exists():
            return None
        print(f"going on from checkpoint {self.path.stem}", flush=True)
        return self.read()

    def read(self) -> Any:
        """The saved state of a piece that is done. Raises: FileNotFoundError."""
        return torch.load(self.path, weights_only=True, map_location="cpu")

    def save(self, state: Any) -> None:
        """Replace the saved state; after a kill, either the old or the new one is there."""
        if processes.rank():
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        # Straight to a full disk, PyTorch's writer ends in an error of its own that says nothing.
        content = io.BytesIO()
        torch.save(state, content)
        partial.write_bytes(content.getbuffer())
        disk.settle(partial, self.path)
