"""Do the synthetic images help? The student goes on learning with and without them.

Both go on from the same distilled student, on the same recipe, for the same number of steps, and
see the same real images. Every batch has some more images added to it: synthetic ones, or as many
real ones in their place, as `augment` wrote both. Validation decides: unless it shows that the
synthetic images help, against the real ones and against no refinement at all, the distilled student
goes through byte for byte. With several seeds, the gains are means over them; their intervals say
what other groups of images could bring, not what other seeds could.

Reads:  data/validated/, data/targets/, data/augmented/, data/models/student/
Writes: data/models/refined/ (model.safetensors, config.json), metrics, curves, predictions
Params: refine
Run:    dvc repro refine
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from stages.core.dataset.data import Dataset, Rows, load_dataset
from stages.core.nets.files import load_net, save_net
from stages.core.nets.inference import logits_of
from stages.core.nets.net import Net
from stages.core.results import metrics, predictions, report
from stages.core.results.schema.base import Auroc, Gain
from stages.core.results.schema.synthetic import RefineMetrics, ValidationAuroc
from stages.core.runner import stage
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources
from stages.core.training.fit import Loss, Recipe
from stages.core.training.inputs import Inputs
from stages.core.training.student import Lesson, distillation_loss, label_loss
from stages.core.training.supplement import Supplement, load_supplement
from stages.core.training.targets import Targets, load_targets
from stages.core.training.trainer import Trainer


class Params(Section):
    """Section `refine`."""

    temperature: float = Field(gt=0, le=100)
    alpha: float = Field(gt=0, le=1)
    added_share: float = Field(gt=0, le=4)
    added_alpha: float = Field(gt=0, le=1)
    frozen_groups: int = Field(ge=0)
    recipe: Recipe
    seeds: int = Field(ge=1, le=100)
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


# What is added to the real images that the student goes on with.
ADDED = ("real", "synthetic")


@contextmanager
def statistics_kept(net: Net) -> Iterator[None]:
    """Let no BatchNorm of a network in training learn its statistics for a while."""
    learns = not net.frozen_statistics
    if learns:
        net.frozen_statistics = True
        net.train()
    try:
        yield
    finally:
        if learns:
            net.frozen_statistics = False
            net.train()


def with_supplement(
    real: Loss, supplement: Supplement, lesson: Lesson, share: float, seed: int
) -> Loss:
    """`real`, with `share` times as many images of the supplement added to every batch.

    These are mostly of one class, so BatchNorm, where it learns, learns from the real ones alone.
    """

    def loss(net: Net, rows: Rows, epoch: int) -> torch.Tensor:
        count = max(round(share * len(rows)), 1)
        draws = np.random.default_rng([seed, epoch, int(rows[0])])
        chosen = draws.integers(len(supplement), size=count)
        batch = supplement.batch(chosen, epoch)
        images, labels, teacher = (x.to(net.mean.device) for x in batch)
        with statistics_kept(net):
            logits = net(images)
        added = lesson.mixed(
            label_loss(logits, labels) / count, lesson.soft_loss(logits, teacher, labels)
        )
        return (real(net, rows, epoch) * len(rows) + added * count) / (len(rows) + count)

    return loss


class Refiner:
    """Refines the distilled student, each time from where distillation left it."""

    def __init__(
        self, params: Params, paths: Paths, data: Dataset, targets: Targets, resources: Resources
    ) -> None:
        self._params, self._paths, self._data, self._targets = params, paths, data, targets
        self._trainer = Trainer(data, targets.views, paths, resources)
        self._inputs: Inputs | None = None

    def distilled(self) -> Net:
        """The student as distillation left it."""
        return load_net(self._paths.student).to(self._trainer.device)

    def refined(self, supplement: Supplement, name: str, number: int) -> Net:
        """The student after it has learned with a supplement, with seed number `number`."""
        params, rows = self._params, self._data.distillation_rows
        net = self.distilled()
        net.freeze_lowest(params.frozen_groups)
        if self._inputs is None:
            # All of them have the same frozen layers, and so the same inputs.
            view_count = min(self._targets.view_count, params.recipe.epochs)
            self._inputs = self._trainer.inputs(net, rows, view_count)
        inputs = self._inputs
        lessons = {
            alpha: Lesson(
                method="kd", standardize_logits=False, temperature=params.temperature, alpha=alpha
            )
            for alpha in (params.alpha, params.added_alpha)
        }
        seed = params.seed + number
        real = distillation_loss(self._data, self._targets, inputs, lessons[params.alpha])
        lesson = lessons[params.added_alpha]
        self._trainer.train(
            net,
            with_supplement(real, supplement, lesson, params.added_share, seed),
            rows,
            params.recipe,
            inputs=inputs,
            seed=seed,
            name=name,
            what=f"refining, {name}",
        )
        return net

    def finish(self) -> None:
        """See `Trainer.finish`."""
        self._trainer.finish()


@dataclass(frozen=True)
class Judged:
    """Logits of the three students on one split, by name and seed."""

    logits: dict[str, list[metrics.Logits]]
    labels: metrics.Labels
    groups: metrics.Groups

    def gain(self, over: str) -> Gain:
        """Of `synthetic`, over another one."""
        pairs = zip(self.logits["synthetic"], self.logits[over], strict=True)
        return metrics.mean_paired_gain(
            [metrics.Paired(x, y, self.labels, self.groups) for x, y in pairs]
        )

    def rankings(self) -> dict[str, Auroc]:
        """AUROC of the first seed, by name."""
        return {
            name: metrics.ranking(logits[0], self.labels, self.groups)
            for name, logits in self.logits.items()
        }


def verdict(on_val: Judged, on_test: Judged, classes: list[str]) -> RefineMetrics:
    """What validation decides, and what the test split shows."""
    over_real, over_distilled = on_val.gain("real"), on_val.gain("distilled")
    accepted = over_real.is_shown and over_distilled.is_shown
    rankings = on_val.rankings()
    inside = {name: each.auroc_within_groups for name, each in rankings.items()}
    within = {name: value for name, value in inside.items() if value is not None}
    figures: dict[str, Any] = {
        name: metrics.classification(logits[0], on_test.labels, on_test.groups, classes)
        for name, logits in on_test.logits.items()
    }
    if len(within) == len(inside):
        figures["val_auroc_within_groups"] = ValidationAuroc(**within)
    return RefineMetrics(
        accepted=accepted,
        winner="synthetic" if accepted else "distilled",
        seeds=len(on_val.logits["synthetic"]),
        val_auroc=ValidationAuroc(**{name: each.auroc for name, each in rankings.items()}),
        val_gain_over_real=over_real,
        val_gain_over_distilled=over_distilled,
        **figures,
        gain_over_real=on_test.gain("real"),
    )


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Refine in both ways, decide on validation, report on test."""
    data = load_dataset(paths.validated)
    targets = load_targets(paths.targets, data)
    added = {name: load_supplement(paths.augmented / name, data) for name in ADDED}
    refiner = Refiner(params, paths, data, targets, resources)
    distilled = refiner.distilled()
    images, val, test = targets.views.plain, data.rows("val"), data.rows("test")
    if not len(added["synthetic"]):
        refiner.finish()
        shutil.copytree(paths.student, paths.refined)
        logits = logits_of(distilled, images, test)
        quality = metrics.classification(logits, data.labels[test], data.groups[test], data.classes)
        predictions.write(paths.predictions, data, test, {"distilled": logits})
        report.write_metrics(paths.metrics, RefineMetrics.without(quality))
        print("no synthetic images: the distilled student goes on", flush=True)
        return

    nets: dict[str, list[Net]] = {"distilled": [distilled] * params.seeds}
    for name in ADDED:
        nets[name] = [
            refiner.refined(added[name], f"{name} {number}" if number else name, number)
            for number in range(params.seeds)
        ]

    def judged(rows: Rows) -> Judged:
        logits = {"distilled": [logits_of(distilled, images, rows)] * params.seeds}
        for name in ADDED:
            logits[name] = [logits_of(net, images, rows) for net in nets[name]]
        return Judged(logits, data.labels[rows], data.groups[rows])

    on_val, on_test = judged(val), judged(test)
    result = verdict(on_val, on_test, data.classes)
    if result.accepted:
        save_net(paths.refined, nets["synthetic"][0])
    else:
        shutil.copytree(paths.student, paths.refined)
    by_seed = {
        f"{name} {number}" if number else name: logits
        for name in ADDED
        for number, logits in enumerate(on_test.logits[name])
    }
    predictions.write(paths.predictions, data, test, by_seed)
    report.write_metrics(paths.metrics, result)
    said = "accepted: shown" if result.accepted else "left out: not shown"
    print(f"synthetic images {said} to help on validation, {result.val_gain}", flush=True)


if __name__ == "__main__":
    stage.main("refine", Params, Paths, run)
