"""Knowledge distillation: a small student learns the teacher's soft targets.

The control is the same student, trained the same way on the same views, from the labels alone: what
the student gains over it is what the teacher has taught. Where both start from the teacher's own
layers (`weights: teacher`), that is what its soft targets add to them. Unlabelled images give both
of them BatchNorm's statistics; only the student learns from them, and the control takes as many
steps on the labelled ones. With several seeds the first one ships, declared beforehand; the gain is
the mean over all.

Reads:  data/validated/, data/targets/, data/models/teacher/, data/weights/ (the user's own
        .safetensors files, if any)
Writes: data/models/student/ (model.safetensors, config.json), metrics, curves, predictions
Params: distill
Run:    dvc repro distill
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import Dataset, Rows, load_dataset
from stages.core.nets.files import load_teacher, save_net
from stages.core.nets.inference import logits_of
from stages.core.nets.net import Net, build, count_macs, count_parameters
from stages.core.nets.weights import Weights, checked_source, load_weights
from stages.core.results import metrics, predictions, report
from stages.core.results.schema.base import Auroc
from stages.core.results.schema.training import DistillMetrics, Seeds, Spread
from stages.core.runner import stage
from stages.core.runner.errors import ParamsError
from stages.core.runner.runtime import Resources
from stages.core.training.adaptation import adapt_statistics
from stages.core.training.fit import Recipe
from stages.core.training.student import Lesson, distillation_loss
from stages.core.training.targets import Targets, load_targets
from stages.core.training.trainer import Trainer

# What `weights` may say beside what weights.py knows.
TEACHER = "teacher"


class Params(Lesson):
    """Section `distill`."""

    backbone: str = Field(min_length=1)
    weights: str
    width: float = Field(gt=0, le=1)
    depth: float = Field(gt=0, le=1)
    out_indices: list[int] = Field(min_length=1)
    reduce: int = Field(ge=1, le=8)
    own_statistics: float = Field(ge=0, le=1)
    frozen_groups: int = Field(ge=0)
    recipe: Recipe
    seeds: int = Field(ge=1, le=100)
    seed: int = Field(ge=0)

    @field_validator("weights")
    @classmethod
    def _known_source(cls, weights: str) -> str:
        return weights if weights == TEACHER else checked_source(weights)

    @field_validator("frozen_groups")
    @classmethod
    def _something_to_keep(cls, groups: int, info: ValidationInfo) -> int:
        thin = info.data.get("width", 1) < 1 or info.data.get("depth", 1) < 1
        if groups and (thin or info.data.get("weights") == "none"):
            weights = "a selection of weights (width, depth)" if thin else "random weights"
            raise PydanticCustomError(
                "frozen", "would freeze {weights}: expected 0", {"weights": weights}
            )
        return groups


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    targets: Path = stage.reads()
    teacher: Path = stage.reads()
    weights: Path = stage.reads()
    cache: Path = stage.keeps()
    student: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes(live=True)
    picture: Path = stage.writes(live=True)
    predictions: Path = stage.writes()


def initial_weights(params: Params, paths: Paths) -> Weights | None:
    """The initial weights of students and controls; with `teacher`, those of its first such member.

    Raises: ParamsError, Unavailable.
    """
    if params.weights != TEACHER:
        return load_weights(params.backbone, params.weights, paths.weights)
    members = {net.spec.backbone: net for net in reversed(load_teacher(paths.teacher).each())}
    if params.backbone not in members:
        raise ParamsError(
            f"distill.weights = {TEACHER!r}: expected a backbone of the teacher's as "
            f"distill.backbone ({', '.join(members)}), found {params.backbone!r}"
        )
    deepest = members[params.backbone].spec.out_indices[-1]
    if params.out_indices[-1] > deepest:
        raise ParamsError(
            f"distill.weights = {TEACHER!r}: the teacher's deepest feature map is {deepest}; "
            f"expected distill.out_indices up to it, found {params.out_indices}"
        )
    weights: Weights = members[params.backbone].backbone.model.state_dict()
    return weights


def repeated(rows: Rows, count: int, seed: int) -> Rows:
    """`count` of `rows`: all of them as often as they fit, and then a random part."""
    whole, rest = divmod(count, len(rows))
    part = np.random.default_rng(seed).permutation(rows)[:rest]
    return np.concatenate([np.tile(rows, whole), part])


class StudentTrainer:
    """Trains students and controls; they share the frozen layers' views."""

    def __init__(
        self,
        params: Params,
        paths: Paths,
        data: Dataset,
        targets: Targets,
        resources: Resources,
    ) -> None:
        self.params, self.data, self.targets = params, data, targets
        self.weights = initial_weights(params, paths)
        self.trainer = Trainer(data, targets.views, paths, resources)

    def untrained(self, seed: int) -> Net:
        """A student of the given params, its head blank; the same for the same seed."""
        params = self.params
        torch.manual_seed(seed)
        net = build(
            params.backbone,
            self.weights,
            out_indices=params.out_indices,
            data=self.data,
            width=params.width,
            depth=params.depth,
            reduce=params.reduce,
        ).to(self.trainer.device)
        images = self.targets.views.plain
        adapt_statistics(net, images, self.data.distillation_rows, params.own_statistics)
        net.freeze_lowest(params.frozen_groups)
        return net

    def train(self, seed: int, *, control: bool, name: str) -> Net:
        """A trained student, or control: as many steps, on the labelled images alone."""
        net, rows = self.untrained(seed), self.data.distillation_rows
        view_count = min(self.targets.view_count, self.params.recipe.epochs)
        inputs = self.trainer.inputs(net, rows, view_count)
        self.trainer.train(
            net,
            distillation_loss(self.data, self.targets, inputs, self.params, control=control),
            repeated(self.data.rows("train"), len(rows), seed) if control else rows,
            self.params.recipe,
            inputs=inputs,
            seed=seed,
            name=name,
            what=name,
        )
        return net


def spread(aurocs: list[float]) -> Spread:
    """Mean of a figure over the seeds; of several, its deviation."""
    if len(aurocs) == 1:
        return Spread(mean=aurocs[0])
    return Spread(mean=float(np.mean(aurocs)), deviation=float(np.std(aurocs, ddof=1)))


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Train students and controls, measure them and the teacher on the test split."""
    data = load_dataset(paths.validated)
    targets = load_targets(paths.targets, data)
    params.check_method(len(data.classes), targets.views.mix)
    if params.method == "feature" and not targets.has_features:
        raise ParamsError("distill.method = 'feature': set targets.features to true for it")
    test, val = data.rows("test"), data.rows("val")
    labels, groups = data.labels[test], data.groups[test]
    trainer = StudentTrainer(params, paths, data, targets, resources)

    pairs: list[metrics.Paired] = []
    students: list[Net] = []
    validation: dict[str, Auroc] = {}
    by_model: dict[str, metrics.Logits] = {"teacher": targets.plain[test]}
    for number in range(params.seeds):
        suffix = f" {number}" if number else ""
        logits = []
        for name in ("student", "control"):
            control = name == "control"
            net = trainer.train(params.seed + number, control=control, name=name + suffix)
            logits.append(logits_of(net, targets.views.plain, test))
            on_val = logits_of(net, targets.views.plain, val)
            of_val = metrics.ranking(on_val, data.labels[val], data.groups[val])
            validation[name + suffix] = of_val
            by_model[name + suffix] = logits[-1]
            if name == "student":
                students.append(net)
        pairs.append(metrics.Paired(logits[0], logits[1], labels, groups))

    save_net(paths.student, students[0])
    predictions.write(paths.predictions, data, test, by_model)
    first, teacher = pairs[0], by_model["teacher"]
    report.write_metrics(
        paths.metrics,
        DistillMetrics(
            backbone=params.backbone,
            parameters=count_parameters(students[0]),
            macs=count_macs(students[0]),
            student=metrics.classification(first.better, labels, groups, data.classes),
            control=metrics.classification(first.worse, labels, groups, data.classes),
            seeds=Seeds(
                count=params.seeds,
                student=spread([metrics.auroc(pair.better, labels) for pair in pairs]),
                control=spread([metrics.auroc(pair.worse, labels) for pair in pairs]),
            ),
            gain_over_control=metrics.mean_paired_gain(pairs),
            gain_over_teacher=metrics.paired_gain(first.better, teacher, labels, groups),
            validation=validation,
        ),
    )


if __name__ == "__main__":
    stage.main("distill", Params, Paths, run, trains_together=True)
