"""The refined student as ONNX: raw images in, probabilities out.

They are calibrated with a temperature fitted on validation, if that is shown to help on groups that
it was not fitted on. Validation also chooses the thresholds of an operating point. The file is
compared with PyTorch on the real test images. Its metadata hold those thresholds, and the rules for
image files that the validate stage applied, so that predict.py applies the same.

Reads:  data/validated/, data/targets/, data/models/refined/
Writes: data/models/onnx/ (fp32.onnx, the same with evidence maps, other formats), metrics,
        predictions; a table of groups and domains; curves; the most confident mistakes
Params: export
Run:    dvc repro export
"""

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import pandas as pd
import torch
from pydantic import Field

from stages.core.dataset.data import Dataset, Rows, load_dataset
from stages.core.dataset.disturbances import disturbed
from stages.core.dataset.views import Views
from stages.core.nets.evidence import Evidence
from stages.core.nets.exam import WANTED, Exam, VariantKind, parity, variants
from stages.core.nets.files import load_net
from stages.core.nets.inference import logits_of, run_batched
from stages.core.nets.net import Net
from stages.core.nets.onnx_export import Calibrated, export, metadata_of, write
from stages.core.nets.onnx_run import EVIDENCE, Inputs, probabilities, session
from stages.core.nets.variants import FP32
from stages.core.results import metrics, operating_point, predictions, report, review
from stages.core.results.calibration import calibrate
from stages.core.results.operating_point import OperatingPoint
from stages.core.results.review import Cut, Probabilities
from stages.core.results.schema.shipped import Disturbed, ExportMetrics
from stages.core.runner import runtime, stage
from stages.core.runner.errors import DataError
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources
from stages.core.runner.text import say
from stages.core.training.targets import load_targets

# What wrote the file.
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu")


class Params(Section):
    """Section `export`."""

    max_temperature: float = Field(gt=1, le=100)
    variants: VariantKind
    operating_point: OperatingPoint | None


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    targets: Path = stage.reads()
    refined: Path = stage.reads()
    onnx: Path = stage.writes()
    metrics: Path = stage.writes()
    predictions: Path = stage.writes()
    parts: Path = stage.writes()
    ranking: Path = stage.writes()
    reliability: Path = stage.writes()
    mistakes: Path = stage.writes()


def review_test_split(
    paths: Paths, data: Dataset, net: Net, shipped: Probabilities, cut: Cut | None
) -> None:
    """Write and draw what the model answers (N of the test split, K), right and wrong."""
    test = data.rows("test")
    labels = data.labels[test]
    named = {"group": data.group_names, "domain": data.domains}
    parts = {kind: names[test] for kind, names in named.items() if len(set(names[test])) > 1}
    review.by_part(shipped, labels, parts).to_csv(
        paths.parts, index=False, float_format="%.4f", lineterminator="\n"
    )
    review.draw_ranking(paths.ranking, shipped, labels, data.classes, cut)
    review.draw_reliability(paths.reliability, shipped, labels)
    worst = review.mistakes(shipped, labels)
    images = data.pixels[test[worst]]
    with torch.inference_mode():
        evidence = Evidence(net)(torch.from_numpy(images)).numpy()
    review.draw_mistakes(
        paths.mistakes,
        images,
        evidence,
        shipped[worst],
        labels[worst],
        data.classes,
        data.files[test[worst]],
    )


def _disturbed(data: Dataset, kind: str, rows: Rows) -> Inputs:
    """What the model is given when something has happened to the images, not to backgrounds."""
    images, *backgrounds = data.model_inputs(rows)
    return disturbed(images, kind), *backgrounds


def contents_of(validated: Path, rows: Rows) -> str:
    """See `ExportMetrics.test_files`."""
    manifest = pd.read_csv(validated / "manifest.csv", usecols=["sha256"], dtype=str)
    return hashlib.md5("".join(manifest["sha256"].iloc[rows]).encode()).hexdigest()


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Calibrate, export, compare with PyTorch on the CPU."""
    data = load_dataset(paths.validated)
    net = load_net(paths.refined)
    views = Views(data.pixels, seed=0, jitter=0, symmetries=data.symmetries)
    val, test = data.rows("val"), data.rows("test")
    labels, groups = data.labels[test], data.groups[test]
    on_val = logits_of(net, views.plain, val)
    logits = logits_of(net, views.plain, test)
    if not (np.isfinite(on_val).all() and np.isfinite(logits).all()):
        raise DataError(
            f"{paths.refined}: found a network whose answers are no numbers (NaN or infinite), "
            "expected finite logits; train it again, at a lower rate if it diverged"
        )
    calibration = calibrate(on_val, data.labels[val], data.groups[val], params.max_temperature)
    temperature, gain = calibration.temperature, calibration.gain
    verdict = "shown to help" if gain.is_shown else "not shown to help, so left out"
    print(
        f"calibration with temperature {calibration.fitted:.3f}: mean cross-entropy on validation "
        f"lower by {gain} nats, {verdict}",
        flush=True,
    )
    points = operating_point.offered(params.operating_point, data.classes)
    if params.operating_point:
        points[WANTED] = params.operating_point
        on_validation = data.labels[val], data.groups[val]
        for line in operating_point.cannot_be_promised(
            points[WANTED], data.classes, *on_validation
        ):
            say(line)
    calibrated = Calibrated(net, temperature).eval()
    expected = run_batched(calibrated, views.plain, test, torch.device("cpu"))
    exam = Exam(data, points, expected, runtime.threads(resources))

    paths.onnx.mkdir()
    file = paths.onnx / f"{FP32}.onnx"
    metadata = {
        "inputs": json.dumps(stage.inputs_of(paths)),
        "params": params.model_dump_json(),
        "packages": json.dumps({name: version(name) for name in PACKAGES}),
        "temperature": repr(temperature),
        "bit_depth": str(data.rules.bit_depth),
        "max_pixels": str(data.rules.max_pixels),
        "fit": data.rules.fit,
        "min_source_px": str(data.rules.min_source_px),
        "min_contrast": repr(data.rules.min_contrast),
    }
    background = data.rules.background
    if background is not None:
        metadata["background_images"] = str(data.rules.background_images)
    explained = paths.onnx / f"{EVIDENCE}.onnx"
    export(
        net,
        file,
        temperature=temperature,
        metadata=metadata,
        background=background,
        explained=explained,
    )

    before = exam.answers(file)
    shipped_on_val, shipped = before["cpu"]
    thresholds = exam.thresholds(shipped_on_val)
    if deciding := exam.as_metadata(thresholds):
        for each in (file, explained):
            model = onnx.load(each)
            write(model, each, metadata_of(model) | deciding)
    log_shipped = np.log(shipped + 1e-12)
    teacher = load_targets(paths.targets, data).plain[test]
    models = {"uncalibrated": logits, "shipped": log_shipped}
    predictions.write(paths.predictions, data, test, models)
    cut = exam.cut(thresholds)
    review_test_split(paths, data, net, shipped, cut)
    running = session(file, "cpu", threads=exam.threads)
    under = {
        kind: np.log(probabilities(running, partial(_disturbed, data, kind), test) + 1e-12)
        for kind in get_args(Disturbed)
    }
    others, failed = variants(params.variants, exam, file, before["cpu"])
    promises = exam.promises(thresholds, shipped)
    report.write_metrics(
        paths.metrics,
        ExportMetrics(
            temperature=temperature,
            fitted_temperature=calibration.fitted,
            val_calibration_gain=gain,
            bytes=file.stat().st_size,
            test_files=contents_of(paths.validated, test),
            parity=parity({name: each[1] for name, each in before.items()}, expected, cut),
            evidence_parity=exam.evidence_parity(explained, temperature, cut),
            uncalibrated=metrics.classification(logits, labels, groups, data.classes),
            calibrated=metrics.classification(log_shipped, labels, groups, data.classes),
            **metrics.ranking(log_shipped, labels, groups).model_dump(exclude_unset=True),
            operating_point=promises.pop(WANTED, None),
            promises=promises,
            confusion=review.confusion(shipped, labels, data.classes, cut),
            gain_over_chance=metrics.paired_gain(
                log_shipped, np.zeros_like(log_shipped), labels, groups
            ),
            gain_over_teacher=metrics.paired_gain(log_shipped, teacher, labels, groups),
            robustness={
                kind: metrics.paired_gain(logits, log_shipped, labels, groups)
                for kind, logits in under.items()
            },
            variants=others,
            failed_variants=failed,
        ),
    )


if __name__ == "__main__":
    stage.main("export", Params, Paths, run)
