"""The refined student as ONNX: raw images in, calibrated probabilities out.

The temperature is fitted on validation (Guo et al. 2017, arXiv 1706.04599), and the file is
compared with PyTorch on the real test images. Its metadata hold the rules for image files that
validation applied, so that predict.py applies the same.

Reads:  data/validated/, data/models/refined/
Writes: data/models/onnx/ (fp32.onnx), metrics
Params: export
Run:    dvc repro export
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import minimize_scalar

from stages.core.dataset.data import load_dataset
from stages.core.dataset.views import Views
from stages.core.nets.inference import logits_of, run_batched
from stages.core.nets.net import load_net
from stages.core.nets.onnx_export import Calibrated, export
from stages.core.nets.onnx_run import probabilities, session
from stages.core.results import metrics, report
from stages.core.results.schema import ExportMetrics, Parity
from stages.core.runner import runtime, stage
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources


class Params(Section):
    """Section `export`."""

    max_temperature: float = Field(gt=1, le=100)


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    refined: Path = stage.reads()
    onnx: Path = stage.writes()
    metrics: Path = stage.writes()


def fit_temperature(logits: metrics.Logits, labels: metrics.Labels, highest: float) -> float:
    """The temperature in 1 / highest to highest with the lowest negative log-likelihood."""
    optimum = minimize_scalar(
        lambda log_t: metrics.negative_log_likelihood(logits / np.exp(log_t), labels),
        bounds=(-np.log(highest), np.log(highest)),
        method="bounded",
    )
    return float(np.exp(optimum.x))


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Calibrate, export, compare with PyTorch. Always on the CPU."""
    data = load_dataset(paths.validated)
    net = load_net(paths.refined)
    views = Views(data.pixels, seed=0, jitter=0, symmetries=data.symmetries)
    val, test = data.rows("val"), data.rows("test")
    labels, groups = data.labels[test], data.groups[test]
    temperature = fit_temperature(
        logits_of(net, views.plain, val), data.labels[val], params.max_temperature
    )

    paths.onnx.mkdir()
    file = paths.onnx / "fp32.onnx"
    metadata = {
        "inputs": json.dumps(stage.inputs_of(paths)),
        "params": params.model_dump_json(),
        "temperature": repr(temperature),
        "bit_depth": str(data.rules.bit_depth),
        "max_pixels": str(data.rules.max_pixels),
        "fit": data.rules.fit,
    }
    background = data.rules.background
    if background is not None:
        metadata["background_images"] = str(data.rules.background_images)
    export(net, file, temperature=temperature, metadata=metadata, background=background)

    logits = logits_of(net, views.plain, test)
    calibrated = Calibrated(net, temperature).eval()
    expected = run_batched(calibrated, views.plain, test, torch.device("cpu"))
    running = session(file, "cpu", threads=runtime.threads(resources))
    shipped = probabilities(running, data.model_inputs, test)
    report.write_metrics(
        paths.metrics,
        ExportMetrics(
            temperature=temperature,
            bytes=file.stat().st_size,
            parity=Parity(
                images=len(test),
                max_abs=float(np.abs(shipped - expected).max()),
                decisions_changed=int((shipped.argmax(1) != expected.argmax(1)).sum()),
            ),
            uncalibrated=metrics.classification(logits, labels, groups, data.classes),
            calibrated=metrics.classification(logits / temperature, labels, groups, data.classes),
            **metrics.ranking(np.log(shipped + 1e-12), labels, groups).model_dump(
                exclude_unset=True
            ),
        ),
    )


if __name__ == "__main__":
    stage.main("export", Params, Paths, run)
