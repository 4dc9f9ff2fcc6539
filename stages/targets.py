"""The teacher's logits: for seeded views of what students learn from, and for every image as it is.

Students learn from the training images, and from a target domain's without their labels.

Computed once, above what the teacher's frozen layers make of the views, which the student shares if
it has the same; a student that learns from them never waits for the teacher, and sees the very same
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
from torch import Tensor

from stages.core import metrics, report, stage
from stages.core.checkpoint import Checkpoint
from stages.core.data import load_dataset
from stages.core.inference import BATCH, as_half, batched, run_batched
from stages.core.nets import Ensemble, load_teacher
from stages.core.params import Section
from stages.core.prefix import Prefix
from stages.core.progress import Progress
from stages.core.runtime import Resources
from stages.core.targets import save_targets
from stages.core.views import Views

Rows = NDArray[np.int64]


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
    cache: Path = stage.keeps()
    targets: Path = stage.writes()
    metrics: Path = stage.writes()


def ask(
    teacher: Ensemble,
    prefixes: list[Prefix],
    rows: Rows,
    view: int,
    progress: Progress,
    *,
    with_features: bool,
) -> tuple[Tensor, Tensor]:
    """What the teacher says of one view of images.

    Args:
        prefixes: one for each of its networks.

    Returns: logits (n, K), and the standardised features (n, G) of all its networks as float16,
        G = 0 if they are not wanted.
    """
    logits, features = [], []
    with torch.inference_mode():
        for batch in batched(rows, BATCH):
            found = [
                member.head.standardize(prefix.features(member, batch, view))
                for member, prefix in zip(teacher.each(), prefixes, strict=True)
            ]
            each = [m.head.linear(x) for m, x in zip(teacher.each(), found, strict=True)]
            logits.append(torch.stack(each).mean(0).float().cpu())
            wanted = torch.cat(found, 1)[:, : None if with_features else 0]
            features.append(as_half(wanted, "the teacher's features").cpu())
            progress.step(len(batch))
    return torch.cat(logits), torch.cat(features)


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Run the teacher over every view, a checkpoint a view."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    teacher = load_teacher(paths.teacher).to(device)
    views = Views(data.pixels, params.seed, params.jitter)
    taught, everything = data.taught, np.arange(len(data.labels))
    prefixes = [
        Prefix(
            member, views, taught, params.views, paths.cache,
            plain=taught[:0], most_gb=resources.cache_gb,
        )
        for member in teacher.each()
    ]  # fmt: skip

    kept = Checkpoint(paths.scratch, "views")
    done: list[dict[str, Tensor]] = kept.load() or []
    total = params.views * len(taught) + len(everything)
    progress = Progress("teacher logits", total, done=len(done) * len(taught))
    for view in range(len(done), params.views):
        said, features = ask(
            teacher, prefixes, taught, view, progress, with_features=params.features
        )
        done.append({"logits": said, "features": features})
        kept.save(done)
    plain = run_batched(teacher, views.plain, everything, device, progress=progress)
    logits = torch.stack([found["logits"] for found in done]).numpy()
    features = torch.stack([found["features"] for found in done])
    save_targets(paths.targets, views, logits, plain, features.numpy() if params.features else None)
    labelled = data.labels[taught] >= 0
    labels = data.labels[taught][labelled]
    report.write_metrics(
        paths.metrics,
        {
            "views": params.views,
            "view_auroc": metrics.auroc(logits[0][labelled], labels),
            "plain_auroc": metrics.auroc(plain[taught][labelled], labels),
        },
    )


if __name__ == "__main__":
    stage.main("targets")
