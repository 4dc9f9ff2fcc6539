"""Knowledge distillation: a small student learns the teacher's soft targets.

The control is the same student, trained the same way on the same views, from the labels alone: what
the student gains over it is what the teacher has taught.

Reads:  data/validated/, data/targets/, data/weights/ (the user's own .safetensors files, if any)
Writes: data/models/student/ (model.safetensors, config.json), metrics, curves
Params: distill
Run:    dvc repro distill
"""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from pydantic import Field
from torch.optim.swa_utils import update_bn

from stages.core import metrics, pictures, predictions, report, stage
from stages.core.checkpoint import Checkpoint
from stages.core.data import Dataset, load_dataset
from stages.core.fit import Recipe, fit
from stages.core.inference import BATCH, run_batched
from stages.core.nets import Net, batched, build, count_macs, count_parameters, save_net
from stages.core.params import Section
from stages.core.runtime import Resources
from stages.core.student import distillation_loss, plain_logits, validation
from stages.core.targets import Targets, load_targets
from stages.core.weights import Weights, load_weights


class Params(Section):
    """Section `distill`."""

    backbone: str = Field(min_length=1)
    weights: str = Field(min_length=1)
    width: float = Field(gt=0, le=1)
    depth: float = Field(gt=0, le=1)
    stages: list[int] = Field(min_length=1)
    reduce: int = Field(ge=1, le=8)
    frozen_groups: int = Field(ge=0)
    temperature: float = Field(gt=0, le=100)
    alpha: float = Field(gt=0, le=1)
    recipe: Recipe
    seed: int = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    targets: Path = stage.reads()
    weights: Path = stage.reads()
    student: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes()
    picture: Path = stage.writes()
    predictions: Path = stage.writes()


def train_student(
    data: Dataset,
    targets: Targets,
    weights: Weights | None,
    params: Params,
    device: torch.device,
    kept: Checkpoint,
    *,
    alpha: float,
    what: str,
) -> tuple[Net, pd.DataFrame]:
    """A student of the given params; `alpha` is the teacher's share of the loss."""
    # Student and control start from the same weights.
    torch.manual_seed(params.seed)
    net = build(
        params.backbone,
        weights,
        stages=params.stages,
        data=data,
        width=params.width,
        depth=params.depth,
        reduce=params.reduce,
    ).to(device)
    train = data.rows("train")
    if not net.frozen_statistics:
        update_bn((targets.views.plain(rows) for rows in batched(train, BATCH)), net, device)
    features = run_batched(net.features, targets.views.plain, train, device)
    net.head.fit_statistics(torch.from_numpy(features).to(device))
    net.freeze_lowest(params.frozen_groups)
    curves = fit(
        net,
        distillation_loss(data, targets, device, temperature=params.temperature, alpha=alpha),
        train,
        params.recipe,
        seed=params.seed,
        evaluate=validation(data, targets),
        checkpoint=kept,
        what=what,
    )
    return net, curves


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Train student and control, measure both and the teacher on the test split."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    targets = load_targets(paths.targets, data)
    test = data.rows("test")
    labels, groups = data.labels[test], data.groups[test]

    weights = load_weights(params.backbone, params.weights, paths.weights)
    logits, curves, nets = {}, {}, {}
    for name, alpha in (("student", params.alpha), ("control", 0.0)):
        kept = Checkpoint(paths.scratch, name)
        nets[name], curves[name] = train_student(
            data, targets, weights, params, device, kept, alpha=alpha, what=name
        )
        logits[name] = plain_logits(nets[name], data, targets, "test")
    teacher = targets.plain[test]

    save_net(paths.student, nets["student"])
    predictions.write(paths.predictions, data, "test", {"teacher": teacher, **logits})
    pd.concat([c.assign(net=name) for name, c in curves.items()]).to_csv(paths.curves, index=False)
    lines = {name: c.set_index("epoch")["val_auroc"] for name, c in curves.items()}
    pictures.curves(paths.picture, lines, x="epoch", y="AUROC, validation")
    figures = {name: metrics.classification(x, labels, data.classes) for name, x in logits.items()}
    report.write_metrics(
        paths.metrics,
        {
            "backbone": params.backbone,
            "parameters": count_parameters(nets["student"]),
            "macs": count_macs(nets["student"]),
            **figures,
            "gain_over_control": metrics.paired_gain(
                logits["student"], logits["control"], labels, groups
            ),
            "gain_over_teacher": metrics.paired_gain(logits["student"], teacher, labels, groups),
            "retention": metrics.auroc(logits["student"], labels) / metrics.auroc(teacher, labels),
        },
    )


if __name__ == "__main__":
    stage.main("distill")
