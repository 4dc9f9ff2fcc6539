"""Validated images, a teacher, what it says of them, and students that learn it."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from stages import distill, targets
from stages.core.dataset.data import Dataset, FileRules, load_dataset, save_dataset
from stages.core.nets.files import save_teacher
from stages.core.nets.net import Ensemble, build
from stages.core.nets.weights import packaged
from stages.core.results import predictions
from stages.core.runner.params import parse_section
from stages.core.runner.stage import Paths
from tests.conftest import RECIPE, RESOURCES

LITE = "tf_efficientnet_lite0"
VIEWS = 3
CLASSES = ["sound", "cracked"]
SPLITS = ["train", "test", "train", "val", "train", "test", "train", "train"]


def validated(
    folder: Path, *, target: bool = True, hidden: float = 1.0, contrast: float = 1.0
) -> Path:
    """What `validate` leaves: noise, in one class with stripes.

    With `target`, also unlabelled images, of a brighter domain, as the test images are then. In
    column p the unlabelled ones' class could be found: `hidden`. They have this `contrast`.
    """
    draws = np.random.default_rng(0)
    table, images = [], []
    for i in range(64 if target else 48):
        unlabelled = i >= 48
        split = "unlabelled" if unlabelled else SPLITS[i // 2 % 8]
        cracked = i % (2 if split == "val" else 3) == 0
        poly = target and split in ("unlabelled", "test")
        image = draws.normal(0, 30 * (contrast if unlabelled else 1), (32, 32, 1))
        image[::4] += 2 * cracked
        images.append((image + (160 if poly else 90)).clip(0, 255).astype(np.uint8))
        label, p = ("", hidden) if unlabelled else (CLASSES[cracked], float(cracked))
        named = {"file_name": f"{i}.png", "label": label, "group": f"g{i // 2}", "p": p}
        table.append(named | {"domain": "poly" if poly else "mono", "split": split})
    # So that no split's rows follow one another.
    order = np.random.default_rng(1).permutation(len(table))
    folder.mkdir()
    np.save(folder / "pixels.npy", np.stack(images)[order])
    manifest = pd.DataFrame(table).iloc[order]
    save_dataset(folder, manifest, CLASSES, FileRules(8, 10**8, "pad"), "mirror")
    return folder


def params(**changes: Any) -> distill.Params:
    values = {
        "backbone": LITE, "weights": "packaged", "width": 1.0, "depth": 1.0, "out_indices": [0, 1],
        "reduce": 1, "own_statistics": 1.0, "frozen_groups": 2, "method": "kd",
        "standardize_logits": False, "temperature": 2.0, "alpha": 0.5, "seeds": 1, "seed": 3,
        "recipe": RECIPE | {"learning_rate": 3e-3},
    }  # fmt: skip
    return parse_section({"distill": values | changes}, "distill", distill.Params, source="here")


def filled(kind: type[Paths], folder: Path, **inputs: Path) -> Any:
    folder.mkdir()
    outputs = {name: folder / name for name in kind.outputs()}
    caches = {"cache": folder.parent / "cache"} if "cache" in kind.options() else {}
    return kind(scratch=folder / "scratch", **caches, **inputs, **outputs)


def two_networks(data: Dataset) -> Ensemble:
    """A teacher whose members have different depths, and heads of their own."""
    members = []
    for number, out_indices in enumerate([[0, 1], [1, 2]]):
        net = build(LITE, packaged(LITE), out_indices=out_indices, data=data)
        torch.manual_seed(number)
        torch.nn.init.normal_(net.head.linear.weight, std=0.1)
        features = net.features(torch.from_numpy(data.pixels[data.rows("train")])).detach()
        net.head.fit_statistics(features)
        net.freeze_lowest(2)
        members.append(net)
    return Ensemble(members).eval()


@dataclass
class Classroom:
    """Validated images, a teacher, and what it has said of them."""

    root: Path
    validated: Path
    teacher: Path
    targets: Path
    featureless: Path

    def __post_init__(self) -> None:
        self.data = load_dataset(self.validated)
        self.runs: dict[str, Distilled] = {}

    def changed(self, name: str, change: Callable[[Path], None]) -> Path:
        """A copy of the targets that is not quite the same."""
        folder = self.root / name
        shutil.copytree(self.targets, folder)
        change(folder)
        return folder

    def paths(self, name: str, folder: Path | None = None) -> Any:
        inputs = {name: getattr(self, name) for name in ("validated", "teacher")}
        inputs["weights"] = self.root / "none"
        return filled(distill.Paths, self.root / name, targets=folder or self.targets, **inputs)

    def distil(self, folder: Path | None = None, **changes: Any) -> "Distilled":
        """What a run of the stage on these targets leaves; run once in the same way."""
        key = json.dumps([str(folder), changes])
        if key not in self.runs:
            paths = self.paths(f"run {len(self.runs)}", folder)
            distill.run(params(**changes), paths=paths, resources=RESOURCES)
            self.runs[key] = Distilled(self.data, paths)
        return self.runs[key]


@dataclass
class Distilled:
    """What a run of the stage has left."""

    data: Dataset
    paths: distill.Paths

    def __post_init__(self) -> None:
        self.table = pd.read_csv(self.paths.predictions)
        self.metrics = json.loads(self.paths.metrics.read_text())
        self.weights = load_file(self.paths.student / "model.safetensors")
        self.labels = self.data.labels[self.data.rows("test")]

    def logits_by(self, name: str) -> Any:
        actual = predictions.logits(self.table, name)
        assert actual.size
        return actual


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def enrolled(root: Path, *, target: bool) -> Classroom:
    """Images, with `target` also unlabelled ones, and what a teacher says of them."""
    images = validated(root / "validated", target=target)
    save_teacher(root / "teacher", two_networks(load_dataset(images)).each())
    written = []
    for features in (True, False):
        inputs = {"validated": images, "teacher": root / "teacher"}
        paths = filled(targets.Paths, root / f"features {features}", **inputs)
        how = targets.Params(
            view_count=VIEWS, features=features, jitter=0.1, seed=2, mix="none", average_views=False
        )
        targets.run(how, paths=paths, resources=RESOURCES)
        written.append(paths.targets)
    return Classroom(root, images, root / "teacher", *written)


def close(actual: Any, expected: Any, tolerance: float = 1e-2) -> bool:
    return bool(np.abs(np.asarray(actual) - np.asarray(expected)).max() < tolerance)
