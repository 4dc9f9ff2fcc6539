"""The teacher's logits: for seeded views of what students learn from, and for every image as it is.

Students learn from the training images, and from a target domain's without their labels.

Computed once: a student that learns from them never waits for the teacher, and sees the very same
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
from torch import Tensor, nn

from stages.core.dataset.data import load_dataset
from stages.core.dataset.views import Views
from stages.core.nets.frozen import Frozen
from stages.core.nets.inference import BATCH, as_half, batched
from stages.core.nets.net import Ensemble, load_teacher
from stages.core.results import metrics, report
from stages.core.runner import stage
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress
from stages.core.runner.runtime import Resources
from stages.core.training.targets import save_targets

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
    targets: Path = stage.writes()
    metrics: Path = stage.writes()


class TeacherOutputs(nn.Module):
    """Images to the teacher's logits (B, K) and the features (B, G) that they come from.

    G = 0 if features are not wanted; else they are standardised, of all networks side by side.
    """

    def __init__(self, teacher: Ensemble, *, with_features: bool) -> None:
        super().__init__()
        self.teacher, self.with_features = teacher, with_features

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        members = self.teacher.each()
        features = [member.head.standardize(member.features(images)) for member in members]
        pairs = zip(members, features, strict=True)
        logits = torch.stack([m.head.linear(x) for m, x in pairs]).mean(0)
        return logits, torch.cat(features, 1)[:, : None if self.with_features else 0]


class Asked:
    """A teacher that no longer learns, to be asked about many views."""

    def __init__(
        self, teacher: Ensemble, views: Views, *, images: int, with_features: bool
    ) -> None:
        """Prepare it.

        Args:
            teacher: on its device.
            images: how many it is going to see.
        """
        device = teacher.each()[0].mean.device
        example = views.plain(np.arange(2)).to(device)
        self._views = views
        self._said = Frozen(
            TeacherOutputs(teacher, with_features=with_features), example, images=images
        )

    def about(self, rows: Rows, view: int | None, progress: Progress) -> tuple[Tensor, Tensor]:
        """What it says of one view of images, or of them as they are.

        Returns: logits (n, K), and features (n, G) as float16.
        """
        logits, features = [], []
        for batch in batched(rows, BATCH):
            shown = self._views.plain(batch) if view is None else self._views.batch(batch, view)
            said, found = self._said(shown)
            logits.append(said.float().cpu())
            features.append(as_half(found, "the teacher's features").cpu())
            progress.step(len(batch))
        return torch.cat(logits), torch.cat(features)


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Run the teacher over every view, a checkpoint a view."""
    data = load_dataset(paths.validated)
    teacher = load_teacher(paths.teacher).to(resources.torch_device())
    views = Views(data.pixels, params.seed, params.jitter)
    taught, everything = data.distillation_rows, np.arange(len(data.labels))
    kept = Checkpoint(paths.scratch, "views")
    done: list[dict[str, Tensor]] = kept.load() or []
    total = params.views * len(taught) + len(everything)
    asked = Asked(teacher, views, images=total, with_features=params.features)
    progress = Progress("teacher logits", total, done=len(done) * len(taught))
    for view in range(len(done), params.views):
        said, features = asked.about(taught, view, progress)
        done.append({"logits": said, "features": features})
        kept.save(done)
    plain = asked.about(everything, None, progress)[0].numpy()
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
