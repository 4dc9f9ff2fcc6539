"""Transfer learning: a pretrained network learns to tell the user's classes apart.

First feature extraction: the frozen backbone's features, computed once, and a logistic regression
on them (the linear probe). Then fine-tuning from there at a low rate, from the top down to the
frozen layers (LP-FT, Kumar et al. 2022, arXiv 2202.10054; rates and unfreezing as in ULMFiT, Howard
& Ruder 2018, arXiv 1801.06146). Metrics carry both. With a target domain, it learns from the other
domains' labels and, adapting, from the target's images without theirs.

Reads:  data/validated/, data/weights/ (the user's own .safetensors files, if any)
Writes: data/models/teacher/ (member_0/model.safetensors, config.json, ...), metrics, curves,
        predictions
Params: teacher
Run:    dvc repro teacher
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from stages.core import metrics, pictures, predictions, report, stage
from stages.core.adaptation import adapt_statistics, confusion_of
from stages.core.checkpoint import Checkpoint
from stages.core.data import Dataset, load_dataset
from stages.core.errors import DataError
from stages.core.fit import Loss, Recipe, fit
from stages.core.inference import logits_of
from stages.core.nets import Ensemble, Net, build, count_macs, count_parameters, save_teacher
from stages.core.prefix import Prefix
from stages.core.runtime import Resources
from stages.core.supervision import Supervision
from stages.core.views import Views
from stages.core.weights import load_weights

Rows = NDArray[np.int64]


class Params(Supervision):
    """Section `teacher`."""

    backbones: list[str] = Field(min_length=1)
    weights: str = Field(min_length=1)
    stages: list[int] = Field(min_length=1)
    mode: Literal["finetune", "feature_extraction"]
    members: int = Field(ge=1, le=100)
    own_statistics: float = Field(ge=0, le=1)
    frozen_groups: int = Field(ge=0)
    views: int = Field(ge=1, le=1000)
    dropout: float = Field(ge=0, lt=1)
    jitter: float = Field(ge=0, lt=1)
    probe_c: float = Field(gt=0)
    adapt: Literal["none", "adabn", "mcc"]
    target_domain: str | None
    mcc_weight: float = Field(ge=0)
    recipe: Recipe
    seed: int = Field(ge=0)


# Several processes may share the work (resources.processes).
TRAINS_TOGETHER = True


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    weights: Path = stage.reads()
    cache: Path = stage.keeps()
    teacher: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes(live=True)
    picture: Path = stage.writes(live=True)
    predictions: Path = stage.writes()


@dataclass(frozen=True)
class Task:
    """What there is to learn from: rows of the data, by their use.

    Attributes:
        train, val, test: labelled images; with a target domain, test is of that domain and the
            others are not.
        unlabelled: training images of the target domain, if any.
    """

    train: Rows
    val: Rows
    test: Rows
    unlabelled: Rows


def task_of(data: Dataset, target_domain: str | None) -> Task:
    """Raises: DataError when the target domain, or the others, lack images."""
    train, val, test = (data.rows(split) for split in ("train", "val", "test"))
    if target_domain is None:
        return Task(train, val, test, train[:0])
    inside = data.domains == target_domain
    found = Task(train[~inside[train]], val[~inside[val]], test[inside[test]], train[inside[train]])
    if not all(map(len, (found.train, found.val, found.test, found.unlabelled))):
        domains = ", ".join(sorted(set(map(str, data.domains)))) or "none"
        raise DataError(
            f"teacher.target_domain = {target_domain!r}: the data has the domains {domains}; "
            "expected images of it in train and test, and of another one in train and val"
        )
    return found


def fit_probe(net: Net, features: NDArray[np.float32], labels: NDArray[np.int64], c: float) -> None:
    """Make the head a logistic regression.

    Args:
        features: (N, F) of plain images; the head's standardisation is fitted to them.
        labels: (N,).
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """
    standardized = net.head.standardize(torch.from_numpy(features).to(net.mean.device))
    regression = LogisticRegression(C=c, max_iter=3000)
    regression.fit(standardized.cpu().numpy(), labels)
    weight, bias = regression.coef_, regression.intercept_
    if len(net.spec.classes) == 2:
        # scikit-learn gives one row for two classes: the difference of two logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        net.head.linear.weight.copy_(torch.from_numpy(weight))
        net.head.linear.bias.copy_(torch.from_numpy(bias))


class Trainer:
    """Trains the members on one task; they share the frozen layers' views."""

    def __init__(self, params: Params, paths: Paths, data: Dataset, resources: Resources) -> None:
        self.params, self.paths, self.data, self.resources = params, paths, data, resources
        self.device = resources.torch_device()
        self.task = task_of(data, params.target_domain)
        self.views = Views(data.pixels, params.seed, params.jitter)
        self.curves: list[pd.DataFrame] = []

    def probe(self, member: int) -> Net:
        """A pretrained network with a linear head on its frozen features."""
        backbone = self.params.backbones[member % len(self.params.backbones)]
        torch.manual_seed(self.params.seed + member)
        net = build(
            backbone,
            load_weights(backbone, self.params.weights, self.paths.weights),
            stages=self.params.stages,
            data=self.data,
            dropout=self.params.dropout,
        ).to(self.device)
        share = 1.0 if self.params.adapt == "adabn" else self.params.own_statistics
        train = self.task.train
        features = adapt_statistics(net, self.views.plain, train, share)
        fit_probe(net, features, self.data.labels[train], self.params.probe_c)
        return net

    def fine_tune(self, net: Net, member: int, adapt: str) -> None:
        """Train head and unfrozen layers, with what `adapt` adds."""
        params, task = self.params, self.task
        name = f"member {member}, {adapt}" if params.target_domain else f"member {member}"
        if params.mode == "finetune":
            net.freeze_lowest(params.frozen_groups)
            seen = np.concatenate([task.train, task.unlabelled])
            prefix = Prefix(
                net,
                self.views,
                seen,
                min(params.views, params.recipe.epochs),
                self.paths.cache,
                plain=task.val,
                most_gb=self.resources.cache_gb,
            )
            loss = params.loss(self.data, prefix, params.views, params.seed + member)
            if adapt == "mcc":
                loss = self._with_confusion(loss, prefix)
            history = fit(
                net,
                loss,
                params.balance(self.data, task.train),
                params.recipe,
                seed=params.seed + member,
                evaluate=lambda net: {
                    "val_auroc": metrics.auroc(
                        prefix.evaluate(net, task.val), self.data.labels[task.val]
                    )
                },
                checkpoint=Checkpoint(self.paths.scratch, name.replace(", ", "_")),
                what=f"fine-tuning {name}",
                watch=lambda history: pictures.learning_curves(
                    self.paths.curves, self.paths.picture, [*self.curves, history.assign(net=name)]
                ),
            )
            self.curves.append(history.assign(net=name))
        if adapt == "adabn":
            adapt_statistics(net, self.views.plain, task.unlabelled)

    def _with_confusion(self, loss: Loss, prefix: Prefix) -> Loss:
        """`loss` and the class confusion of as many of the target's images, without labels."""
        params = self.params
        confusion = confusion_of(prefix, self.task.unlabelled, params.views, params.seed)
        return lambda net, rows, epoch: (
            loss(net, rows, epoch) + params.mcc_weight * confusion(net, rows, epoch)
        )

    def finish(self) -> None:
        """Write curves and picture also when nothing was trained."""
        nothing = pd.DataFrame({"epoch": [], "loss": [], "val_auroc": [], "net": []})
        pictures.learning_curves(self.paths.curves, self.paths.picture, self.curves or [nothing])


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Probe, fine-tune, measure both on the test split."""
    data = load_dataset(paths.validated)
    trainer = Trainer(params, paths, data, resources)
    test = trainer.task.test
    labels = data.labels[test]
    # Without a target domain there is nothing to adapt to, and nothing to compare with.
    ways = ["none"] if params.adapt == "none" else ["none", params.adapt]

    found: dict[str, list[NDArray[np.float32]]] = {name: [] for name in ("probe", *ways)}
    members = []
    for member in range(params.members):
        for adapt in ways:
            net = trainer.probe(member)
            if adapt == "none":
                found["probe"].append(logits_of(net, trainer.views.plain, test))
            trainer.fine_tune(net, member, adapt)
            found[adapt].append(logits_of(net, trainer.views.plain, test))
        members.append(net)
    trainer.finish()
    save_teacher(paths.teacher, members)

    val = trainer.task.val
    validation = np.mean([logits_of(net, trainer.views.plain, val) for net in members], axis=0)
    logits = {name: np.mean(each, axis=0) for name, each in found.items()}
    finetuned = logits[ways[-1]]
    shown = {"probe": logits["probe"], "finetuned": finetuned}
    if len(ways) > 1:
        shown["source_only"] = logits["none"]
    predictions.write(paths.predictions, data, test, shown)
    groups = data.groups[test]
    gain = metrics.paired_gain(finetuned, logits["probe"], labels, groups)
    figures: dict[str, object] = {
        name: metrics.classification(x, labels, data.classes) for name, x in shown.items()
    }
    if "source_only" in shown:
        figures["adaptation_gain"] = metrics.paired_gain(
            finetuned, shown["source_only"], labels, groups
        )
    ensemble = Ensemble(members)
    report.write_metrics(
        paths.metrics,
        {
            "backbone": " + ".join(members[i].spec.backbone for i in range(params.members)),
            "members": params.members,
            "parameters": count_parameters(ensemble),
            "macs": sum(count_macs(net) for net in members),
            **figures,
            "finetuning_gain": gain,
            "validation": {"auroc": metrics.auroc(validation, data.labels[val])},
        },
    )
    print(
        f"test AUROC {metrics.auroc(finetuned, labels):.3f}, gain {gain['gain']:+.3f}", flush=True
    )


if __name__ == "__main__":
    stage.main("teacher")
