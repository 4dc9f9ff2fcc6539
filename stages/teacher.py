"""Transfer learning: a pretrained network learns to tell the user's classes apart.

First feature extraction: the frozen backbone's features, computed once, and a logistic regression
on them (the linear probe). Then fine-tuning from there at a low rate, from the top down to the
frozen layers (LP-FT, Kumar et al. 2022, arXiv 2202.10054; rates and unfreezing as in ULMFiT, Howard
& Ruder 2018, arXiv 1801.06146). Metrics carry both. It can adapt to unlabelled images: the folder's
own, or those of the domain that validate.target_domain names.

Reads:  data/validated/, data/weights/ (the user's own .safetensors files, if any)
Writes: data/models/teacher/ (member_0/model.safetensors, config.json, ...), metrics, curves,
        predictions
Params: teacher
Run:    dvc repro teacher
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError
from sklearn.linear_model import LogisticRegression
from torch.nn.modules.batchnorm import _BatchNorm

from stages.core.dataset.data import Dataset, load_dataset
from stages.core.dataset.views import Views
from stages.core.nets.files import save_teacher
from stages.core.nets.inference import logits_of
from stages.core.nets.net import Ensemble, Net, build, count_macs, count_parameters
from stages.core.nets.weights import checked_source, load_weights
from stages.core.results import metrics, predictions, report
from stages.core.results.schema.base import Auroc
from stages.core.results.schema.training import TeacherMetrics
from stages.core.runner import processes, stage
from stages.core.runner.errors import ParamsError
from stages.core.runner.runtime import Resources
from stages.core.training.adaptation import Adversary, Confusion, WithTarget, adapt_statistics
from stages.core.training.fit import Loss, Recipe
from stages.core.training.inputs import Inputs
from stages.core.training.supervision import Supervision
from stages.core.training.trainer import Trainer

# Ways of adapting that are a part of the loss.
LEARNED = ("mcc", "dann")


class Params(Supervision):
    """Section `teacher`."""

    backbones: list[str] = Field(min_length=1)
    weights: Annotated[str, AfterValidator(checked_source)]
    out_indices: list[int] = Field(min_length=1)
    mode: Literal["finetune", "feature_extraction"]
    members: int = Field(ge=1, le=100)
    own_statistics: float = Field(ge=0, le=1)
    frozen_groups: int = Field(ge=0)
    view_count: int = Field(ge=1, le=1000)
    dropout: float = Field(ge=0, lt=1)
    jitter: float = Field(ge=0, lt=1)
    probe_c: float = Field(gt=0)
    adapt: Literal["none", "adabn", "mcc", "dann"]
    adapt_weight: float = Field(ge=0)
    recipe: Recipe
    seed: int = Field(ge=0)

    @field_validator("mode")
    @classmethod
    def _something_to_teach(cls, mode: str, info: ValidationInfo) -> str:
        # A logistic regression knows none of these.
        found = {
            "soft_labels": info.data.get("soft_labels"),
            "imbalance: focal": info.data.get("imbalance") == "focal",
            "label_smoothing": info.data.get("label_smoothing"),
            "mixup": info.data.get("mixup"),
        }
        if mode == "feature_extraction" and any(found.values()):
            names = ", ".join(name for name, value in found.items() if value)
            raise PydanticCustomError(
                "probe", "a linear probe cannot learn with {names}: finetune does", {"names": names}
            )
        return mode

    @field_validator("frozen_groups")
    @classmethod
    def _something_to_keep(cls, groups: int, info: ValidationInfo) -> int:
        random = info.data.get("weights") == "none" and info.data.get("mode") == "finetune"
        if groups and random:
            raise PydanticCustomError(
                "frozen", "would freeze random weights (weights: none): expected 0"
            )
        return groups

    @field_validator("members")
    @classmethod
    def _each_its_own(cls, members: int, info: ValidationInfo) -> int:
        backbones = info.data.get("backbones", [])
        if members < len(backbones):
            raise PydanticCustomError("members", "leaves backbones out: expected one for each")
        pretrained = info.data.get("weights", "none") != "none"
        probes = info.data.get("mode") == "feature_extraction" and pretrained
        if probes and 0 < len(set(backbones)) < members:
            raise PydanticCustomError(
                "probes",
                "a probe of the same backbone is the same network: expected at most {count}, one "
                "per different backbone, or mode finetune",
                {"count": len(set(backbones))},
            )
        return members

    @field_validator("adapt")
    @classmethod
    def _something_to_adapt(cls, adapt: str, info: ValidationInfo) -> str:
        if adapt == "adabn" and info.data.get("own_statistics") != 1:
            raise PydanticCustomError(
                "adabn", "replaces statistics that should be the source's: set own_statistics to 1"
            )
        if adapt in LEARNED and info.data.get("mode") == "feature_extraction":
            raise PydanticCustomError(
                "learned", "is learned by fine-tuning, but mode is feature_extraction"
            )
        return adapt


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


def fit_probe(
    net: Net,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64] | None,
    c: float,
) -> None:
    """Make the head a logistic regression.

    Args:
        features: (N, F) of plain images; the head's standardisation is fitted to them.
        labels: (N,).
        weights: (N,), of the images; None: all have the same.
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """
    standardized = net.head.standardize(torch.from_numpy(features).to(net.mean.device))
    regression = LogisticRegression(C=c, max_iter=3000)
    regression.fit(standardized.cpu().numpy(), labels, weights)
    weight, bias = regression.coef_, regression.intercept_
    if len(net.spec.classes) == 2:
        # scikit-learn gives one row for two classes: the difference of two logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        net.head.linear.weight.copy_(torch.from_numpy(weight))
        net.head.linear.bias.copy_(torch.from_numpy(bias))


class TeacherTrainer:
    """Trains the members; they share the frozen layers' views. Raises: ParamsError."""

    def __init__(self, params: Params, paths: Paths, data: Dataset, resources: Resources) -> None:
        self.params, self.paths, self.data = params, paths, data
        self.train, self.unlabelled = data.rows("train"), data.rows("unlabelled")
        if params.adapt != "none" and not len(self.unlabelled):
            raise ParamsError(
                f"teacher.adapt = {params.adapt!r}: there are no unlabelled images; expected some "
                "in the folder, or a domain's name as validate.target_domain"
            )
        if params.adapt in LEARNED:
            processes.require_single_process(f"teacher.adapt = {params.adapt!r}")
        # One table of views for the teacher that adapts and for the one that does not.
        more = self.unlabelled if params.adapt in LEARNED else self.train[:0]
        self.viewed = np.concatenate([self.train, more])
        self.views = Views(data.pixels, params.seed, params.jitter, data.symmetries)
        self.trainer = Trainer(data, self.views, paths, resources)

    def probe(self, member: int) -> Net:
        """A pretrained network with a linear head on its frozen features."""
        params = self.params
        backbone = params.backbones[member % len(params.backbones)]
        torch.manual_seed(params.seed + member)
        net = build(
            backbone,
            load_weights(backbone, params.weights, self.paths.weights),
            out_indices=params.out_indices,
            data=self.data,
            dropout=params.dropout,
        ).to(self.trainer.device)
        if params.adapt == "adabn" and not any(isinstance(m, _BatchNorm) for m in net.modules()):
            raise ParamsError(
                f"teacher.adapt = 'adabn': {backbone} has no BatchNorm, whose statistics adapt; "
                "expected none, mcc or dann"
            )
        rows, features = adapt_statistics(net, self.views.plain, self.train, params.own_statistics)
        weights = params.image_weights(self.data, rows)
        fit_probe(net, features, self.data.labels[rows], weights, params.probe_c)
        return net

    def fine_tune(self, net: Net, member: int, *, adapting: bool = False) -> None:
        """Train head and unfrozen layers; `adapting` (MCC, DANN), on the unlabelled images too."""
        params = self.params
        if params.mode == "feature_extraction":
            return
        name = f"member {member}" + f", {params.adapt}" * adapting
        net.freeze_lowest(params.frozen_groups)
        view_count = min(params.view_count, params.recipe.epochs)
        inputs = self.trainer.inputs(net, self.viewed, view_count)
        seed = params.seed + member
        loss = params.loss(self.data, inputs, params.view_count, seed)
        self.trainer.train(
            net,
            self._with_target(net, loss, inputs, seed) if adapting else loss,
            params.balance(self.data, self.train),
            params.recipe,
            inputs=inputs,
            seed=seed,
            name=name,
            what=f"fine-tuning {name}",
        )

    def _with_target(self, net: Net, loss: Loss, inputs: Inputs, seed: int) -> Loss:
        """`loss`, and what as many unlabelled images add to it."""
        params = self.params
        draws = (inputs, self.unlabelled, params.view_count, seed)
        unlabelled: Loss
        if params.adapt == "mcc":
            unlabelled = Confusion(*draws)
        else:
            unlabelled = Adversary(net, *draws, params.recipe.epochs)
        return WithTarget(loss, unlabelled, params.adapt_weight)


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Probe, fine-tune, measure both on the test split."""
    data = load_dataset(paths.validated)
    teacher = TeacherTrainer(params, paths, data, resources)
    views, test = teacher.views, data.rows("test")
    each: dict[str, list[NDArray[np.float32]]] = {}

    def measure(name: str, net: Net) -> None:
        each.setdefault(name, []).append(logits_of(net, views.plain, test))

    members = []
    for member in range(params.members):
        net = teacher.probe(member)
        measure("probe", net)
        teacher.fine_tune(net, member)
        if params.adapt != "none":
            measure("source_only", net)
        if params.adapt in LEARNED:
            net = teacher.probe(member)
            teacher.fine_tune(net, member, adapting=True)
        elif params.adapt == "adabn":
            adapt_statistics(net, views.plain, teacher.unlabelled)
        measure("finetuned", net)
        members.append(net)
    teacher.trainer.finish()
    save_teacher(paths.teacher, members)
    logits = {name: np.mean(of_members, axis=0) for name, of_members in each.items()}
    predictions.write(paths.predictions, data, test, logits)
    val = data.rows("val")
    on_val = np.mean([logits_of(net, views.plain, val) for net in members], axis=0)
    validation = metrics.ranking(on_val, data.labels[val], data.groups[val])
    report.write_metrics(paths.metrics, figures(members, data, logits, validation))


def figures(
    members: list[Net], data: Dataset, logits: dict[str, metrics.Logits], validation: Auroc
) -> TeacherMetrics:
    """The stage's metrics.

    Args:
        logits: (test images, K) of the probe, the finished teacher and, where it adapts, the
            teacher that does not.
    """
    test = data.rows("test")
    labels, groups = data.labels[test], data.groups[test]
    finetuned = logits["finetuned"]
    gain = metrics.paired_gain(finetuned, logits["probe"], labels, groups)
    quality = {
        name: metrics.classification(x, labels, groups, data.classes) for name, x in logits.items()
    }
    adaptation: dict[str, Any] = {}
    if "source_only" in logits:
        before = metrics.paired_gain(finetuned, logits["source_only"], labels, groups)
        adaptation = {"source_only": quality["source_only"], "adaptation_gain": before}
    print(f"test AUROC {metrics.auroc(finetuned, labels):.3f}, gain {gain.gain:+.3f}", flush=True)
    return TeacherMetrics(
        backbone=" + ".join(net.spec.backbone for net in members),
        members=len(members),
        parameters=count_parameters(Ensemble(members)),
        macs=sum(count_macs(net) for net in members),
        probe=quality["probe"],
        finetuned=quality["finetuned"],
        **adaptation,
        finetuning_gain=gain,
        validation=validation,
    )


if __name__ == "__main__":
    stage.main("teacher", Params, Paths, run, trains_together=True)
