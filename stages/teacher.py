"""Transfer learning: a pretrained network learns to tell the user's classes apart.

First feature extraction: the frozen backbone's features, computed once, and a logistic regression
on them (the linear probe). Then fine-tuning from there at a low rate (LP-FT, Kumar et al. 2022,
arXiv 2202.10054), the lowest layers staying frozen. Metrics carry both.

Reads:  data/validated/, data/weights/ (the user's own .safetensors files, if any)
Writes: data/models/teacher/ (model.safetensors, config.json), metrics, curves
Params: teacher
Run:    dvc repro teacher
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression

from stages.core import metrics, pictures, predictions, report, stage
from stages.core.checkpoint import Checkpoint
from stages.core.data import Dataset, load_dataset
from stages.core.fit import Recipe, fit
from stages.core.inference import logits_of, run_batched
from stages.core.nets import Net, build, count_macs, count_parameters, save_net
from stages.core.params import Section
from stages.core.progress import Progress
from stages.core.runtime import Resources
from stages.core.views import Views
from stages.core.weights import load_weights


class Params(Section):
    """Section `teacher`."""

    backbone: str = Field(min_length=1)
    weights: str = Field(min_length=1)
    stages: list[int] = Field(min_length=1)
    frozen_groups: int = Field(ge=0)
    dropout: float = Field(ge=0, lt=1)
    jitter: float = Field(ge=0, lt=1)
    probe_c: float = Field(gt=0)
    recipe: Recipe
    seed: int = Field(ge=0)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    weights: Path = stage.reads()
    teacher: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes()
    picture: Path = stage.writes()
    predictions: Path = stage.writes()


def fit_probe(net: Net, data: Dataset, views: Views, c: float, device: torch.device) -> None:
    """Make the head a logistic regression on the frozen features of the plain training images.

    Args:
        c: inverse strength of the L2 penalty (scikit-learn's C).
    """
    rows = data.rows("train")
    progress = Progress("frozen features", len(rows))
    found = run_batched(net.features, views.plain, rows, device, progress=progress)
    features = torch.from_numpy(found).to(device)
    net.head.fit_statistics(features)
    regression = LogisticRegression(C=c, max_iter=3000)
    regression.fit(net.head.standardize(features).cpu().numpy(), data.labels[rows])
    weight, bias = regression.coef_, regression.intercept_
    if len(data.classes) == 2:
        # scikit-learn gives one row for two classes: the difference of two logits.
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    with torch.no_grad():
        net.head.linear.weight.copy_(torch.from_numpy(weight))
        net.head.linear.bias.copy_(torch.from_numpy(bias))


def fine_tune(
    net: Net, data: Dataset, views: Views, params: Params, device: torch.device, kept: Checkpoint
) -> pd.DataFrame:
    """Train head and unfrozen layers on a new view of every image in each epoch."""
    net.freeze_lowest(params.frozen_groups)
    labels = torch.from_numpy(data.labels)
    val = data.rows("val")

    def loss(net: Net, rows: np.ndarray, epoch: int) -> torch.Tensor:
        logits = net(views.batch(rows, epoch).to(device))
        return torch.nn.functional.cross_entropy(logits, labels[rows].to(device))

    def evaluate(net: Net) -> dict[str, float]:
        return {"val_auroc": metrics.auroc(logits_of(net, views.plain, val), data.labels[val])}

    return fit(
        net,
        loss,
        data.rows("train"),
        params.recipe,
        seed=params.seed,
        evaluate=evaluate,
        checkpoint=kept,
        what="fine-tuning",
    )


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Probe, fine-tune, measure both on the test split."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    views = Views(data.pixels, params.seed, params.jitter)
    torch.manual_seed(params.seed)
    net = build(
        params.backbone,
        load_weights(params.backbone, params.weights, paths.weights),
        stages=params.stages,
        data=data,
        dropout=params.dropout,
    ).to(device)
    test = data.rows("test")
    labels = data.labels[test]
    fit_probe(net, data, views, params.probe_c, device)
    probe = logits_of(net, views.plain, test)
    kept = Checkpoint(paths.scratch, "finetune")
    curves = fine_tune(net, data, views, params, device, kept)
    finetuned = logits_of(net, views.plain, test)
    save_net(paths.teacher, net)
    curves.to_csv(paths.curves, index=False)
    lines = {"fine-tuning": curves.set_index("epoch")["val_auroc"]}
    pictures.curves(paths.picture, lines, x="epoch", y="AUROC, validation")
    predictions.write(paths.predictions, data, "test", {"probe": probe, "finetuned": finetuned})
    gain = metrics.paired_gain(finetuned, probe, labels, data.groups[test])
    report.write_metrics(
        paths.metrics,
        {
            "backbone": params.backbone,
            "parameters": count_parameters(net),
            "macs": count_macs(net),
            "probe": metrics.classification(probe, labels, data.classes),
            "finetuned": metrics.classification(finetuned, labels, data.classes),
            "finetuning_gain": gain,
        },
    )
    print(
        f"test AUROC {metrics.auroc(finetuned, labels):.3f}, gain {gain['gain']:+.3f}", flush=True
    )


if __name__ == "__main__":
    stage.main("teacher")
