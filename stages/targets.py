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
from numpy.typing import NDArray
from pydantic import Field

from stages.core import metrics, report, stage
from stages.core.checkpoint import Checkpoint
from stages.core.data import load_dataset
from stages.core.inference import run_batched
from stages.core.nets import Ensemble, load_teacher
from stages.core.params import Section
from stages.core.progress import Progress
from stages.core.runtime import Resources
from stages.core.targets import save_targets
from stages.core.views import Views


class Params(Section):
    """Section `targets`."""

    views: int = Field(ge=1, le=1000)
    features: bool
    jitter: float = Field(ge=0, lt=1)
    seed: int = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    teacher: Path = stage.reads()
    targets: Path = stage.writes()
    metrics: Path = stage.writes()


def _one_view(
    teacher: Ensemble,
    views: Views,
    rows: NDArray[np.int64],
    view: int,
    params: Params,
    progress: Progress,
) -> dict[str, torch.Tensor]:
    """Logits (n, K) and, if they are wanted, features (n, G) as float16, else (n, 0)."""
    members = teacher.each()

    def compute(images: torch.Tensor) -> torch.Tensor:
        features = [m.head.standardize(m.features(images)) for m in members]
        logits = [m.head.linear(f) for m, f in zip(members, features, strict=True)]
        mean = torch.stack(logits).mean(0)
        return torch.cat([mean, *features], 1) if params.features else mean

    device = next(teacher.parameters()).device
    found = torch.from_numpy(
        run_batched(compute, lambda rows: views.batch(rows, view), rows, device, progress=progress)
    )
    classes = len(teacher.spec.classes)
    return {"logits": found[:, :classes], "features": found[:, classes:].half()}


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Run the teacher over every view, a checkpoint a view."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    teacher = load_teacher(paths.teacher).to(device)
    views = Views(data.pixels, params.seed, params.jitter)
    train, everything = data.rows("train"), np.arange(len(data.labels))

    kept = Checkpoint(paths.scratch, "views")
    done: list[dict[str, torch.Tensor]] = kept.load() or []
    total = params.views * len(train) + len(everything)
    progress = Progress("teacher logits", total, done=len(done) * len(train))
    for view in range(len(done), params.views):
        done.append(_one_view(teacher, views, train, view, params, progress))
        kept.save(done)
    plain = run_batched(teacher, views.plain, everything, device, progress=progress)
    logits = torch.stack([found["logits"] for found in done]).numpy()
    features = torch.stack([found["features"] for found in done]).numpy()
    save_targets(paths.targets, views, logits, plain, features if params.features else None)
    report.write_metrics(
        paths.metrics,
        {
            "views": params.views,
            "view_auroc": metrics.auroc(logits[0], data.labels[train]),
            "plain_auroc": metrics.auroc(plain[train], data.labels[train]),
        },
    )


if __name__ == "__main__":
    stage.main("targets")
