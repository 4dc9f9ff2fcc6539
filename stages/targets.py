"""The teacher's logits: for seeded views of what students learn from, and for every image as it is.

Students learn from the training images, and from unlabelled ones.

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
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn

from stages.core.dataset.data import Rows, load_dataset
from stages.core.dataset.views import Mix, Views
from stages.core.nets.files import load_teacher
from stages.core.nets.frozen import Frozen
from stages.core.nets.inference import BATCH, as_half, batched
from stages.core.nets.net import Ensemble
from stages.core.results import metrics, report
from stages.core.results.schema.training import TargetsMetrics
from stages.core.runner import stage
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress
from stages.core.runner.runtime import Resources
from stages.core.training.targets import save_targets


class Params(Section):
    """Section `targets`."""

    view_count: int = Field(ge=1, le=1000)
    features: bool
    jitter: float = Field(ge=0, lt=1)
    mix: Mix
    average_views: bool
    seed: int = Field(ge=0)

    @field_validator("mix")
    @classmethod
    def _some_view_is_mixed(cls, mix: Mix, info: ValidationInfo) -> Mix:
        if mix != "none" and info.data.get("view_count") == 1:
            raise PydanticCustomError(
                "mix", "mixes every second view, but view_count is 1: expected 2 views or more"
            )
        return mix

    @field_validator("average_views")
    @classmethod
    def _something_to_average(cls, average: bool, info: ValidationInfo) -> bool:
        if average and info.data.get("mix", "none") != "none":
            raise PydanticCustomError(
                "average",
                "an image is mixed with another one in each view, which no mean describes: set mix "
                "to none",
            )
        if average and info.data.get("features"):
            raise PydanticCustomError(
                "average", "features are not averaged, only logits: set features to false"
            )
        return average


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


class FrozenTeacher:
    """A teacher that no longer learns, run over many views."""

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
        module = TeacherOutputs(teacher, with_features=with_features)
        self._views, self._frozen = views, Frozen(module, example, images=images)

    def outputs(self, rows: Rows, view: int | None, progress: Progress) -> tuple[Tensor, Tensor]:
        """What it makes of one view of images, or of them as they are.

        Returns: logits (n, K), and features (n, G) as float16.
        """
        logits, features = [], []
        for batch in batched(rows, BATCH):
            images = self._views.plain(batch) if view is None else self._views.batch(batch, view)
            x, f = self._frozen(images)
            logits.append(x.float().cpu())
            features.append(as_half(f, "the teacher's features").cpu())
            progress.step(len(batch))
        return torch.cat(logits), torch.cat(features)


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Run the teacher over every view, a checkpoint per view."""
    data = load_dataset(paths.validated)
    teacher = load_teacher(paths.teacher).to(resources.torch_device())
    rows, everything = data.distillation_rows, np.arange(len(data.labels))
    partners = data.rows("train")
    views = Views(data.pixels, params.seed, params.jitter, data.symmetries, params.mix, partners)
    checkpoints = [Checkpoint(paths.scratch, f"view_{v}") for v in range(params.view_count)]
    done = sum(checkpoint.path.exists() for checkpoint in checkpoints)
    total = params.view_count * len(rows) + len(everything)
    frozen = FrozenTeacher(teacher, views, images=total, with_features=params.features)
    progress = Progress("teacher logits", total, done=done * len(rows))
    for view, checkpoint in enumerate(checkpoints[done:], done):
        logits, features = frozen.outputs(rows, view, progress)
        checkpoint.save((logits, features))
    plain = frozen.outputs(everything, None, progress)[0].numpy()
    outputs = (checkpoint.read() for checkpoint in checkpoints)
    if params.average_views:
        mean = sum(checkpoint.read()[0] for checkpoint in checkpoints) / len(checkpoints)
        outputs = ((mean, features) for _, features in outputs)
    save_targets(paths.targets, views, params.view_count, outputs, plain)
    labelled = data.labels[rows] >= 0
    labels = data.labels[rows][labelled]
    first_view, _ = checkpoints[0].read()
    report.write_metrics(
        paths.metrics,
        TargetsMetrics(
            views=params.view_count,
            view_auroc=metrics.auroc(first_view.numpy()[labelled], labels),
            plain_auroc=metrics.auroc(plain[rows][labelled], labels),
        ),
    )


if __name__ == "__main__":
    stage.main("targets", Params, Paths, run)
