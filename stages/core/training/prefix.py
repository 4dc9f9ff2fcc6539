"""What a network's frozen layers make of seeded views: computed once, then read from disk.

Student, control and refinement share frozen layers and views, and so these files too. They are a
cache outside DVC: their name is a hash of all that they depend on.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stages.core.dataset.data import Dataset
from stages.core.dataset.views import Views
from stages.core.nets.frozen import Frozen, engine
from stages.core.nets.inference import BATCH, as_half, batched
from stages.core.nets.net import Net
from stages.core.results import metrics
from stages.core.runner import processes
from stages.core.runner.code import digest_of
from stages.core.runner.progress import Progress

Rows = NDArray[np.int64]

# Pseudo-view of the images as they are.
PLAIN = -1


class _Lowest(nn.Module):
    """The lowest links of a network, as `Net.prefix` runs them."""

    def __init__(self, net: Net, length: int) -> None:
        super().__init__()
        self.net, self.length = net, length

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.net.prefix(images, self.length)


class Prefix:
    """Activations (float16) and pooled statistics of the frozen links, by view and row.

    Attributes:
        length: number of the network's lowest links that are frozen; 0 stores nothing.
    """

    def __init__(
        self,
        net: Net,
        views: Views,
        rows: Rows,
        count: int,
        folder: Path,
        *,
        plain: Rows,
        most_gb: float,
    ) -> None:
        """Compute what is not there yet.

        Args:
            net: on its device.
            rows: images whose views 0 to `count` - 1 are wanted.
            folder: where such files are kept.
            plain: images that are wanted as they are.
            most_gb: with more than so many gigabytes nothing is stored, and the frozen layers run
                in every step, with the same result up to rounding.
        """
        self._views, self._net = views, net
        self.length = net.frozen_links()
        self._device = net.mean.device
        images = len(rows) * count + len(plain)
        self._stored = self.length > 0 and images * _bytes_each(net, self.length) < most_gb * 1e9
        if not self._stored:
            if self.length:
                print(f"frozen layers' output is above {most_gb:g} GB and not stored", flush=True)
            elif net.freezes() and not net.links():
                print(
                    f"{net.spec.backbone} is no chain of layers: frozen ones run in every step",
                    flush=True,
                )
            return
        self._place = np.full(len(views.pixels), -1)
        self._place[rows] = np.arange(len(rows))
        self._plain_place = np.full(len(views.pixels), -1)
        self._plain_place[plain] = np.arange(len(plain))
        self._folder = folder / _key(net, self.length, views, engine(self._device, images))
        if not processes.rank():
            self._folder.mkdir(parents=True, exist_ok=True)
            _only(folder, self._folder)
        wanted = [(view, rows) for view in range(count)] + [(PLAIN, plain)] * bool(len(plain))
        missing = [(view, r) for view, r in wanted if not self._file(view, r, "pooled").exists()]
        progress = Progress("frozen layers", sum(len(r) for _, r in missing)) if missing else None
        if missing and not processes.rank():
            layers = Frozen(_Lowest(net, self.length), self._images(rows[:2], 0), images=images)
            for view, r in missing:
                self._compute(layers, view, r, progress)
        processes.wait()
        self._parts = {view: self._open(view, r) for view, r in wanted}

    def _images(self, rows: Rows, view: int) -> Tensor:
        return self._views.plain(rows) if view == PLAIN else self._views.batch(rows, view)

    def _file(self, view: int, rows: Rows, kind: str) -> Path:
        name = hashlib.md5(rows.tobytes()).hexdigest()[:12]
        return self._folder / f"{name}-{'plain' if view == PLAIN else view}-{kind}.npy"

    def _compute(self, layers: Frozen, view: int, rows: Rows, progress: Progress | None) -> None:
        """One view of all rows; the pooled file comes last, so that it stands for both."""
        pooled: list[Tensor] = []
        out = None
        target = self._file(view, rows, "activations")
        partial = target.with_suffix(".partial.npy")
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            x, found = layers(self._images(batch, view))
            pooled.append(found.float().cpu())
            x = as_half(x.permute(0, 2, 3, 1), "frozen layers' output").cpu()
            if out is None:
                out = np.lib.format.open_memmap(
                    partial, mode="w+", dtype=np.float16, shape=(len(rows), *x.shape[1:])
                )
            out[start : start + len(batch)] = x.numpy()
            if progress:
                progress.step(len(batch))
        assert out is not None
        out.flush()
        partial.replace(target)
        partial = self._file(view, rows, "pooled").with_suffix(".partial.npy")
        np.save(partial, torch.cat(pooled).numpy())
        partial.replace(self._file(view, rows, "pooled"))

    def _open(self, view: int, rows: Rows) -> tuple[NDArray[np.float16], Tensor]:
        activations = np.load(self._file(view, rows, "activations"), mmap_mode="r")
        return activations, torch.from_numpy(np.load(self._file(view, rows, "pooled")))

    def inputs(self, rows: Rows, view: int = PLAIN) -> tuple[Tensor, Tensor]:
        """What `Net.features_from` takes, for one view of images."""
        if not self._stored:
            x, pooled = self._net.prefix(self._images(rows, view).to(self._device), self.length)
            # As if it had been stored.
            return (x.half().float() if self.length else x), pooled
        place = (self._plain_place if view == PLAIN else self._place)[rows]
        activations, pooled = self._parts[view]
        x = torch.from_numpy(activations[place]).to(self._device).permute(0, 3, 1, 2).float()
        return x, pooled[torch.from_numpy(place)].to(self._device)

    def features(self, net: Net, rows: Rows, view: int = PLAIN) -> Tensor:
        """Features (B, F) of a network with these frozen links, for one view of images."""
        if not self.length:
            return net.features(self._images(rows, view).to(self._device))
        return net.features_from(*self.inputs(rows, view), self.length)

    def logits(self, net: Net, rows: Rows, view: int = PLAIN) -> Tensor:
        """Logits (B, K) of a network with these frozen links, for one view of images."""
        logits: Tensor = net.head(self.features(net, rows, view))
        return logits

    def evaluate(self, net: Net, rows: Rows) -> NDArray[np.float32]:
        """Logits (len(rows), K) of plain images, in evaluation mode, without gradients."""
        net.eval()
        with torch.inference_mode():
            found = [
                self.logits(net, batch).float().cpu().numpy() for batch in batched(rows, BATCH)
            ]
        return np.concatenate(found)


def validation(data: Dataset, prefix: Prefix) -> Callable[[Net], dict[str, float]]:
    """Figures of a network on the validation split."""
    rows = data.rows("val")

    def evaluate(net: Net) -> dict[str, float]:
        return {"val_auroc": metrics.auroc(prefix.evaluate(net, rows), data.labels[rows])}

    return evaluate


def _bytes_each(net: Net, length: int) -> int:
    """Size of one image's stored activations."""
    spec = net.spec
    shape = (1, spec.image_px, spec.image_px, spec.channels)
    net.eval()
    with torch.inference_mode():
        x, _ = net.prefix(torch.zeros(shape, dtype=torch.uint8, device=net.mean.device), length)
    return 2 * x.numel()


def _key(net: Net, length: int, views: Views, by: str) -> str:
    """Hash of the frozen links' weights, the images, how views are made, and what runs them."""
    found = hashlib.md5()
    read = net.backbone.feature_info.module_name()
    for name, module in net.links()[:length]:
        found.update(f"{name} {name in read}".encode())
        for tensor in module.state_dict().values():
            found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    spec = net.spec
    about = [spec.reduce, spec.mean, spec.std, views.seed, views.jitter, net.mean.device.type, by]
    code = digest_of(__name__)
    found.update(json.dumps([about, code, torch.__version__, timm.__version__]).encode())
    found.update(hashlib.blake2b(views.pixels.data).digest())
    return found.hexdigest()


def _only(folder: Path, kept: Path) -> None:
    """Delete all but the newest few of these files' folders: each is large."""
    others = sorted((p for p in folder.iterdir() if p != kept), key=lambda p: p.stat().st_mtime)
    for old in others[:-1]:
        shutil.rmtree(old, ignore_errors=True)
