"""The teacher's logits: for seeded views of the training images, and for every image as it is.

Computed once; a student that learns from them never waits for the teacher, and sees the very same
views (Beyer et al. 2022, arXiv 2106.05237: the function has to match, not just the labels).

Reads:  data/validated/, data/models/teacher/
Writes: data/targets/ (views.npy, plain.npy, views.json), metrics
Params: targets
Run:    dvc repro targets
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from stages.core import metrics, report, stage
from stages.core.checkpoint import Checkpoint
from stages.core.data import load_dataset
from stages.core.inference import run_batched
from stages.core.nets import load_net
from stages.core.params import Section
from stages.core.progress import Progress
from stages.core.runtime import Resources
from stages.core.targets import save_targets
from stages.core.views import Views


class Params(Section):
    """Section `targets`."""

    views: int = Field(ge=1, le=1000)
    jitter: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    teacher: Path = stage.reads()
    targets: Path = stage.writes()
    metrics: Path = stage.writes()


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Run the teacher over every view, a checkpoint a view."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    net = load_net(paths.teacher).to(device)
    views = Views(data.pixels, params.seed, params.jitter)
    train, everything = data.rows("train"), np.arange(len(data.labels))

    kept = Checkpoint(paths.scratch, "views")
    done = [view.numpy() for view in kept.load() or []]
    total = params.views * len(train) + len(everything)
    progress = Progress("teacher logits", total, done=len(done) * len(train))
    for view in range(len(done), params.views):
        images = lambda rows, view=view: views.batch(rows, view)  # noqa: E731
        done.append(run_batched(net, images, train, device, progress=progress))
        kept.save([torch.from_numpy(view) for view in done])
    plain = run_batched(net, views.plain, everything, device, progress=progress)
    save_targets(paths.targets, views, np.stack(done), plain)
    report.write_metrics(
        paths.metrics,
        {
            "views": params.views,
            "view_auroc": metrics.auroc(done[0], data.labels[train]),
            "plain_auroc": metrics.auroc(plain[train], data.labels[train]),
        },
    )


if __name__ == "__main__":
    stage.main("targets")
