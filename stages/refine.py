"""Do the synthetic images help? The student goes on learning with and without them.

Both go on from the same distilled student, on the same recipe, for the same number of steps; in
one, part of every batch is synthetic. Validation decides: unless it shows that the synthetic images
help, against real images alone and against no refinement at all, the distilled student goes through
byte for byte.

Reads:  data/validated/, data/targets/, data/augmented/, data/models/student/
Writes: data/models/refined/ (model.safetensors, config.json), metrics, curves, predictions
Params: refine
Run:    dvc repro refine
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from stages.core.dataset.data import Dataset, Rows, load_dataset
from stages.core.dataset.resize import resize
from stages.core.nets.inference import logits_of
from stages.core.nets.net import Net, load_net, save_net
from stages.core.results import metrics, predictions, report
from stages.core.results.schema import RefineMetrics, ValidationAuroc
from stages.core.runner import stage
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources
from stages.core.training.fit import Loss, Recipe
from stages.core.training.student import Lesson, distillation_loss, label_loss
from stages.core.training.targets import Targets, load_targets
from stages.core.training.trainer import Trainer


class Params(Section):
    """Section `refine`."""

    temperature: float = Field(gt=0, le=100)
    alpha: float = Field(gt=0, le=1)
    synthetic_share: float = Field(gt=0, lt=1)
    frozen_groups: int = Field(ge=0)
    recipe: Recipe
    seed: int = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    targets: Path = stage.reads()
    augmented: Path = stage.reads()
    student: Path = stage.reads()
    cache: Path = stage.keeps()
    refined: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes(live=True)
    picture: Path = stage.writes(live=True)
    predictions: Path = stage.writes()


# What the student goes on with; both start from it as it is.
WAYS = ("real", "synthetic")


@dataclass(frozen=True)
class Synthetic:
    """Synthetic images: uint8 (M, P, P, C), the teacher's logits (M, K), their class (M,)."""

    pixels: torch.Tensor
    logits: torch.Tensor
    labels: torch.Tensor


def load_synthetic(folder: Path, image_px: int) -> Synthetic:
    """What the augment stage wrote, at the size of the real images."""
    pixels, logits, labels = (
        torch.from_numpy(np.load(folder / f"{name}.npy")) for name in ("pixels", "logits", "labels")
    )
    return Synthetic(resize(pixels, image_px), logits, labels)


def with_synthetic(
    real: Loss, synthetic: Synthetic, lesson: Lesson, share: float, seed: int
) -> Loss:
    """`real`, but with a share of every batch replaced by synthetic images; one stays real."""

    def loss(net: Net, rows: Rows, epoch: int) -> torch.Tensor:
        count = min(round(share * len(rows)), len(rows) - 1)
        if not count:
            return real(net, rows, epoch)
        draws = np.random.default_rng([seed, epoch, int(rows[0])])
        chosen = torch.from_numpy(draws.integers(len(synthetic.labels), size=count))
        images, teacher, labels = (
            x[chosen].to(net.mean.device)
            for x in (synthetic.pixels, synthetic.logits, synthetic.labels)
        )
        logits = net(images)
        of_synthetic = lesson.mixed(
            label_loss(logits, labels) / len(labels), lesson.soft_loss(logits, teacher, labels)
        )
        rest = rows[count:]
        return (real(net, rest, epoch) * len(rest) + of_synthetic * count) / len(rows)

    return loss


def refine(
    params: Params,
    paths: Paths,
    data: Dataset,
    targets: Targets,
    synthetic: Synthetic,
    resources: Resources,
) -> dict[str, Net]:
    """The distilled student as it was, and refined in both ways."""
    trainer = Trainer(data, targets.views, paths, resources)
    nets = {name: load_net(paths.student).to(trainer.device) for name in ("distilled", *WAYS)}
    for name in WAYS:
        nets[name].freeze_lowest(params.frozen_groups)
    rows = data.distillation_rows
    # The same frozen layers, so the same inputs.
    view_count = min(targets.view_count, params.recipe.epochs)
    inputs = trainer.inputs(nets["real"], rows, view_count)
    lesson = Lesson(
        method="kd", standardize_logits=False, temperature=params.temperature, alpha=params.alpha
    )
    real = distillation_loss(data, targets, inputs, lesson)
    mixed = with_synthetic(real, synthetic, lesson, params.synthetic_share, params.seed)
    for name, loss in {"real": real, "synthetic": mixed}.items():
        trainer.train(
            nets[name],
            loss,
            rows,
            params.recipe,
            inputs=inputs,
            seed=params.seed,
            name=name,
            what=f"refining, {name}",
        )
    return nets


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Refine twice, decide on validation, report on test."""
    data = load_dataset(paths.validated)
    targets = load_targets(paths.targets, data)
    synthetic = load_synthetic(paths.augmented, data.image_px)
    nets = refine(params, paths, data, targets, synthetic, resources)

    images, val, test = targets.views.plain, data.rows("val"), data.rows("test")
    on_val, on_test = (
        {name: logits_of(net, images, rows) for name, net in nets.items()} for rows in (val, test)
    )
    labels, groups = data.labels[val], data.groups[val]
    rankings = {name: metrics.ranking(x, labels, groups) for name, x in on_val.items()}
    over_real, over_distilled = (
        metrics.paired_gain(on_val["synthetic"], on_val[name], labels, groups)
        for name in ("real", "distilled")
    )
    accepted = over_real.is_shown and over_distilled.is_shown
    if accepted:
        save_net(paths.refined, nets["synthetic"])
    else:
        shutil.copytree(paths.student, paths.refined)
    within = {name: each.auroc_within_groups for name, each in rankings.items()}
    labels, groups = data.labels[test], data.groups[test]
    figures: dict[str, Any] = {
        name: metrics.classification(x, labels, groups, data.classes) for name, x in on_test.items()
    }
    if None not in within.values():
        figures["val_auroc_within_groups"] = within
    refined = {name: on_test[name] for name in WAYS}
    predictions.write(paths.predictions, data, test, refined)
    result = RefineMetrics(
        accepted=accepted,
        winner="synthetic" if accepted else "distilled",
        val_auroc=ValidationAuroc(**{name: each.auroc for name, each in rankings.items()}),
        val_gain_over_real=over_real,
        val_gain_over_distilled=over_distilled,
        **figures,
        gain_over_real=metrics.paired_gain(on_test["synthetic"], on_test["real"], labels, groups),
    )
    report.write_metrics(paths.metrics, result)
    verdict = "accepted: shown" if accepted else "left out: not shown"
    print(f"synthetic images {verdict} to help on validation, {result.val_gain}", flush=True)


if __name__ == "__main__":
    stage.main("refine", Params, Paths, run)
