"""Where a network's inputs come from: what its frozen layers make of seeded views, stored on disk.

Student, control and refinement share frozen layers and views, and so these files too. They are a
cache outside DVC: their name is a hash of all that they depend on. Where nothing is frozen, or the
disk is too small, the inputs are made in every step.
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.core.dataset.data import Rows
from stages.core.dataset.views import Views
from stages.core.nets.frozen import Frozen, engine
from stages.core.nets.inference import BATCH, as_half, batched
from stages.core.nets.net import Activations, Net
from stages.core.runner import disk, processes
from stages.core.runner.code import digest_of
from stages.core.runner.progress import Progress

# Pseudo-view of the images as they are.
PLAIN = -1


class _Lowest(nn.Module):
    """The lowest links of a network, as a module of images that ONNX can hold."""

    def __init__(self, net: Net, links: int) -> None:
        super().__init__()
        self.net, self.links = net, links

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        lowest = self.net.lowest(images, self.links)
        return lowest.maps, lowest.pooled


class Inputs:
    """One network's inputs, by row and view: raw images, or the frozen links' activations.

    Attributes:
        links: number of the network's lowest links that are frozen; 0 stores nothing.
    """

    def __init__(
        self,
        net: Net,
        views: Views,
        rows: Rows,
        view_count: int,
        folder: Path,
        *,
        plain: Rows,
        most_gb: float,
    ) -> None:
        """Compute what is not there yet.

        Args:
            net: on its device.
            rows: images whose views 0 to `view_count` - 1 are wanted.
            folder: where such files are kept.
            plain: images that are wanted as they are.
            most_gb: with more than so many gigabytes, or on a disk that has not as many, nothing
                is stored, and the frozen layers run in every step, with the same result up to
                rounding.
        """
        self._views, self._net = views, net
        self.links = net.frozen_links()
        self._device = net.mean.device
        self._parts: dict[int, tuple[NDArray[np.float16], Tensor]] = {}
        images = len(rows) * view_count + len(plain)
        if not self.links:
            if net.freezes() and not net.links():
                name = net.spec.backbone
                print(f"{name} is no chain of layers: frozen ones run in every step", flush=True)
            return
        self._bytes_each = _bytes_each(net, self.links)
        if images * self._bytes_each >= most_gb * 1e9:
            print(f"frozen layers' output is above {most_gb:g} GB and not stored", flush=True)
            return
        self._place = np.full(len(views.pixels), -1)
        self._place[rows] = np.arange(len(rows))
        self._plain_place = np.full(len(views.pixels), -1)
        self._plain_place[plain] = np.arange(len(plain))
        self._folder = folder / _key(net, self.links, views, engine(self._device, images))
        view_rows = [(view, rows) for view in range(view_count)] + [(PLAIN, plain)] * bool(
            len(plain)
        )
        if not processes.rank():
            self._folder.mkdir(parents=True, exist_ok=True)
            _only(folder, self._folder)
            self._store(view_rows, rows[:2], images)
        processes.wait()
        parts = {view: self._open(view, r) for view, r in view_rows}
        # All or none: what is missing did not fit on the disk.
        self._parts = {view: part for view, part in parts.items() if part is not None}
        if len(self._parts) < len(view_rows):
            self._parts = {}

    def _images(self, rows: Rows, view: int) -> Tensor:
        return self._views.plain(rows) if view == PLAIN else self._views.batch(rows, view)

    def _file(self, view: int, rows: Rows, kind: str) -> Path:
        name = hashlib.md5(rows.tobytes()).hexdigest()[:12]
        return self._folder / f"{name}-{'plain' if view == PLAIN else view}-{kind}.npy"

    def _store(self, view_rows: list[tuple[int, Rows]], example: Rows, images: int) -> None:
        """Write what is not there yet, as far as the disk has room."""
        missing = [(view, rows) for view, rows in view_rows if self._open(view, rows) is None]
        if not missing:
            return
        count = sum(len(rows) for _, rows in missing)
        progress = Progress("frozen layers", count)
        layers = Frozen(_Lowest(self._net, self.links), self._images(example, 0), images=images)
        try:
            for view, rows in missing:
                self._compute(layers, view, rows, progress)
        except OSError as error:
            if not disk.is_full(error):
                raise
            for view, rows in missing:
                for kind in ("activations", "pooled"):
                    self._file(view, rows, kind).unlink(missing_ok=True)
                    _partial(self._file(view, rows, kind)).unlink(missing_ok=True)
            print(
                f"frozen layers' output takes {count * self._bytes_each / 1e9:.1f} GB, and "
                f"{disk.room(self._folder.parent)}: not stored, so they run in every step",
                flush=True,
            )

    def _compute(self, layers: Frozen, view: int, rows: Rows, progress: Progress) -> None:
        """One view of all rows; the pooled file comes last, so that it stands for both."""
        pooled: list[Tensor] = []
        activations = None
        target = self._file(view, rows, "activations")
        for batch in batched(rows, BATCH):
            x, statistics = layers(self._images(batch, view))
            start = sum(map(len, pooled))
            pooled.append(statistics.float().cpu())
            x = as_half(x.permute(0, 2, 3, 1), "frozen layers' output").cpu()
            if activations is None:
                shape = (len(rows), *x.shape[1:])
                activations = disk.allocated(_partial(target), np.float16, shape)
            activations[start : start + len(batch)] = x.numpy()
            progress.step(len(batch))
        assert activations is not None
        activations.flush()
        disk.settle(_partial(target), target)
        target = self._file(view, rows, "pooled")
        np.save(_partial(target), torch.cat(pooled).numpy())
        disk.settle(_partial(target), target)

    def _open(self, view: int, rows: Rows) -> tuple[NDArray[np.float16], Tensor] | None:
        """What is stored of one view, or None: not there, or cut off by a power failure."""
        try:
            activations = np.load(self._file(view, rows, "activations"), mmap_mode="r")
            pooled = np.load(self._file(view, rows, "pooled"))
        except (FileNotFoundError, ValueError, EOFError):
            return None
        whole = len(activations) == len(pooled) == len(rows)
        return (activations, torch.from_numpy(pooled)) if whole else None

    def activations(self, rows: Rows, view: int = PLAIN) -> Activations:
        """What the frozen links make of one view of images; with `links` 0, the prepared images."""
        if not self._parts:
            lowest = self._net.lowest(self._images(rows, view).to(self._device), self.links)
            # As if it had been stored.
            maps = lowest.maps.half().float() if self.links else lowest.maps
            return Activations(maps, lowest.pooled, self.links)
        place = (self._plain_place if view == PLAIN else self._place)[rows]
        activations, pooled = self._parts[view]
        maps = torch.from_numpy(activations[place]).to(self._device).permute(0, 3, 1, 2).float()
        return Activations(maps, pooled[torch.from_numpy(place)].to(self._device), self.links)

    def batch(self, rows: Rows, view: int = PLAIN) -> Tensor | Activations:
        """What the network takes for one view of images."""
        if self.links:
            return self.activations(rows, view)
        return self._images(rows, view).to(self._device)

    def evaluate(self, net: Net, rows: Rows) -> NDArray[np.float32]:
        """Logits (len(rows), K) of plain images, in evaluation mode, without gradients."""
        net.eval()
        with torch.inference_mode():
            logits = [net(self.batch(b)).float().cpu().numpy() for b in batched(rows, BATCH)]
        return np.concatenate(logits)


def _partial(target: Path) -> Path:
    return target.with_suffix(".partial.npy")


def _bytes_each(net: Net, links: int) -> int:
    """Size of one image's stored activations."""
    spec = net.spec
    shape = (1, spec.image_px, spec.image_px, spec.channels)
    net.eval()
    with torch.inference_mode():
        image = torch.zeros(shape, dtype=torch.uint8, device=net.mean.device)
        return 2 * net.lowest(image, links).maps.numel()


def _key(net: Net, links: int, views: Views, by: str) -> str:
    """Hash of the frozen links' weights, the images, how views are made, and what runs them."""
    key = hashlib.md5()
    read = net.backbone.feature_info.module_name()
    for name, module in net.links()[:links]:
        key.update(f"{name} {name in read}".encode())
        for tensor in module.state_dict().values():
            key.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    spec = net.spec
    about = [spec.reduce, spec.mean, spec.std, views.seed, views.jitter, net.mean.device.type, by]
    code = [digest_of(__name__), torch.__version__, timm.__version__]
    key.update(json.dumps([about, code]).encode())
    key.update(hashlib.blake2b(views.pixels.data).digest())
    return key.hexdigest()


def _only(folder: Path, newest: Path) -> None:
    """Delete all but the newest few of these files' folders: each is large."""
    others = sorted((p for p in folder.iterdir() if p != newest), key=lambda p: p.stat().st_mtime)
    for old in others[:-1]:
        shutil.rmtree(old, ignore_errors=True)
