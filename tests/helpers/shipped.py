"""Images, what validation made of them, and a network as a release."""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stages import export
from stages.core.dataset.data import Dataset, load_dataset
from stages.core.dataset.views import Views
from stages.core.intake.contract import Contract
from stages.core.nets.exam import VariantKind
from stages.core.nets.files import save_net
from stages.core.nets.net import build
from stages.core.nets.onnx_export import Calibrated
from stages.core.nets.weights import packaged
from stages.core.release import predict
from stages.core.results.operating_point import OperatingPoint
from stages.core.results.schema.shipped import ExportMetrics
from stages.core.training.targets import save_targets
from tests.conftest import RESOURCES, draw_images, outputs
from tests.helpers.classroom import LITE, filled
from tests.helpers.front_door import run as validate


@dataclass
class Shipped:
    """Images, what validation made of them, and a network as a release."""

    root: Path
    data: Dataset
    net: Any
    metrics: ExportMetrics

    def expected(self, group: str) -> Any:
        """Probabilities of a group's images by PyTorch, in the order of the files' names."""
        chosen = [i for i, n in enumerate(self.data.files) if str(n).startswith(group)]
        rows = sorted(chosen, key=lambda i: str(self.data.files[i]))
        model = Calibrated(self.net, self.metrics.temperature).eval()
        with torch.inference_mode():
            return model(torch.from_numpy(self.data.pixels[rows])).numpy()

    def copy(self, group: str, folder: Path) -> Path:
        """A folder with a group's images."""
        folder.mkdir(parents=True)
        for image in (self.root / "images").glob(f"{group}_*.png"):
            shutil.copy(image, folder)
        return folder

    def predict(self, *arguments: str, at: Path, status: int = 0) -> tuple[Any, list[str]]:
        """Probabilities and errors of the release's script, in a process of its own."""
        script = str(self.root / "release" / "predict.py")
        command = [sys.executable, "-I", script, "--format", "json", *arguments]
        ended = subprocess.run(command, cwd=at, capture_output=True, text=True)
        assert "Traceback" not in ended.stderr, ended.stderr
        assert ended.returncode == status, ended.stderr
        rows = json.loads(ended.stdout) if ended.stdout else []
        answers = [[row["probabilities"][name] for name in self.data.classes] for row in rows]
        return np.array(answers), ended.stderr.splitlines()


def save_teachers_logits(folder: Path, data: Dataset) -> None:
    """Those of a teacher that draws them."""
    draws, shape = np.random.default_rng(0), (len(data.labels), len(data.classes))
    of_view = np.zeros((1, len(data.distillation_rows), shape[1]), np.float32)
    plain = draws.normal(size=shape).astype(np.float32)
    save_targets(folder, Views(data.pixels, 0, 0, data.symmetries), 1, outputs(of_view), plain)


def exported(
    root: Path,
    validated: Path,
    net: Any,
    *,
    point: OperatingPoint | None = None,
    variants: VariantKind = "none",
) -> Any:
    """What a run of the export stage on this network leaves."""
    if not (root / "refined").exists():
        root.mkdir(exist_ok=True)
        save_net(root / "refined", net)
        save_teachers_logits(root / "targets", load_dataset(validated))
    inputs = {name: root / name for name in ("targets", "refined")} | {"validated": validated}
    paths = filled(export.Paths, root / "export", **inputs)
    params = export.Params(max_temperature=10.0, operating_point=point, variants=variants)
    export.run(params, paths=paths, resources=RESOURCES)
    return paths


def network(data: Dataset) -> Any:
    """One whose answers differ from image to image."""
    net = build(LITE, packaged(LITE), out_indices=[0, 1], data=data)
    torch.manual_seed(0)
    torch.nn.init.normal_(net.head.linear.weight, std=0.1)
    features = net.features(torch.from_numpy(data.pixels[data.rows("train")])).detach()
    net.head.fit_statistics(features)
    return net


def parity(paths: Any) -> ExportMetrics:
    return ExportMetrics.model_validate_json(paths.metrics.read_text())


def ship(root: Path, kind: str) -> Shipped:
    draw_images(root / "images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Contract, "document", lambda _: None)
        out = validate(root, background=kind)
    data = load_dataset(out / "validated")
    net = network(data)
    paths = exported(root, out / "validated", net)
    (root / "release").mkdir()
    shutil.copy(paths.onnx / "fp32.onnx", root / "release" / "model.onnx")
    shutil.copy(str(predict.__file__), root / "release")
    return Shipped(root, data, net, parity(paths))
