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
from typing import Literal, get_args

import numpy as np
import onnx
import pandas as pd
import torch
from onnxruntime import InferenceSession
from pydantic import Field
from scipy.special import softmax

from stages.core.dataset.data import Dataset, Rows, load_dataset
from stages.core.dataset.disturbances import disturbed
from stages.core.dataset.views import Views
from stages.core.nets.evidence import Evidence
from stages.core.nets.files import load_net
from stages.core.nets.inference import logits_of, run_batched
from stages.core.nets.net import Net
from stages.core.nets.onnx_export import Calibrated, export, metadata_of, write
from stages.core.nets.onnx_run import EVIDENCE, OUTPUT, Inputs, feed, probabilities, session
from stages.core.nets.variants import (
    CALIBRATION_BATCH,
    CALIBRATION_IMAGES,
    FP16,
    FP32,
    USUAL,
    Int8,
    as_fp16,
    as_int8,
    grid,
)
from stages.core.results import metrics, operating_point, predictions, report, review
from stages.core.results.calibration import calibrate
from stages.core.results.operating_point import OperatingPoint
from stages.core.results.review import Cut, Probabilities
from stages.core.results.schema.shipped import (
    Disturbed,
    ExportMetrics,
    Parity,
    Promise,
    Thresholds,
    Variant,
)
from stages.core.runner import runtime, stage
from stages.core.runner.errors import DataError, Unavailable
from stages.core.runner.params import Section
from stages.core.runner.progress import Progress
from stages.core.runner.runtime import Resources
from stages.core.runner.text import say
from stages.core.training.targets import load_targets

# Among the promises, that of the params.
WANTED = "wanted"
# What wrote the file.
PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime-gpu")
VariantKind = Literal["none", "few", "grid"]


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


def _parity(shipped: Probabilities, expected: Probabilities) -> Parity:
    return Parity(
        images=len(shipped),
        max_abs=float(np.abs(shipped - expected).max()),
        decisions_changed=int((shipped.argmax(1) != expected.argmax(1)).sum()),
    )


# On the validation and on the test split.
Answers = tuple[Probabilities, Probabilities]


@dataclass(frozen=True)
class Judge:
    """What every file is held against.

    Attributes:
        points: what the files are asked to promise, by name.
        expected: PyTorch's probabilities on the test split (N, K).
        threads: of ONNX Runtime.
    """

    data: Dataset
    points: dict[str, OperatingPoint]
    expected: Probabilities
    threads: int

    def thresholds(self, on_val: Probabilities) -> dict[str, Thresholds]:
        """What keeps each promise on the validation split, by the probabilities there (N, K)."""
        data, val = self.data, self.data.rows("val")
        return {
            name: operating_point.choose(
                point, data.classes, on_val, data.labels[val], data.groups[val]
            )
            for name, point in self.points.items()
        }

    def cut(self, thresholds: dict[str, Thresholds]) -> Cut | None:
        """What a file decides by, if not for the most probable class."""
        if WANTED not in self.points:
            return None
        at = thresholds[WANTED]
        return Cut(self.points[WANTED].number(self.data.classes), at.low, at.high)

    def as_metadata(self, thresholds: dict[str, Thresholds]) -> dict[str, str]:
        """The same, for the file itself."""
        cut = self.cut(thresholds)
        return {} if cut is None else {"thresholds": json.dumps(cut)}

    def promises(
        self, thresholds: dict[str, Thresholds], on_test: Probabilities
    ) -> dict[str, Promise]:
        """What the thresholds do to a file's probabilities on the test split (N, K)."""
        data, test = self.data, self.data.rows("test")
        return {
            name: point.promise(
                data.classes, thresholds[name], on_test, data.labels[test], data.groups[test]
            )
            for name, point in self.points.items()
        }

    def answers(self, model: Path | bytes) -> Answers:
        """A model's probabilities on the validation and on the test split."""
        data = self.data
        running = session(model, "cpu", threads=self.threads)
        on_val = probabilities(running, data.equivalent_inputs, data.rows("val"))
        on_test = probabilities(running, data.model_inputs, data.rows("test"))
        return self._ordered(running, [on_val]), self._ordered(running, [on_test])

    def _ordered(self, running: InferenceSession, answers: list[Probabilities]) -> Probabilities:
        """A model's answers by the names that users will go by, in the order of the classes."""
        names = json.loads(running.get_modelmeta().custom_metadata_map["classes"])
        order = [names.index(name) for name in self.data.classes]
        return np.concatenate(answers)[:, order]

    def evidence_parity(self, model: Path, temperature: float) -> Parity:
        """Of a model's probabilities on the test split, and of what its evidence adds up to."""
        running = session(model, "cpu", threads=self.threads)
        test = self.data.rows("test")
        answers, logits = [], []
        for i in range(0, len(test), 64):
            inputs = feed(self.data.model_inputs(test[i : i + 64]))
            given, evidence = running.run([OUTPUT, EVIDENCE], inputs)
            answers.append(given)
            logits.append(evidence.sum((2, 3)))
        summed: Probabilities = softmax(np.concatenate(logits) / temperature, axis=1)
        of_both = [
            _parity(each, self.expected) for each in (self._ordered(running, answers), summed)
        ]
        return Parity(
            images=len(test),
            max_abs=max(each.max_abs for each in of_both),
            decisions_changed=max(each.decisions_changed for each in of_both),
        )


def make_variant(
    judge: Judge, original: Path, before: Answers, name: str, how: Int8 | None
) -> Variant:
    """Write the model in another format beside `original`, and compare the two.

    Args:
        before: what the original answers.
        how: to quantise; None for float16.
    """
    data = judge.data
    model = onnx.load(original)
    metadata = metadata_of(model)
    if how is None:
        model = as_fp16(model)
    else:
        train = data.rows("train")
        rows = train[np.linspace(0, len(train) - 1, CALIBRATION_IMAGES, dtype=np.int64)]
        batches = np.array_split(rows, CALIBRATION_IMAGES // CALIBRATION_BATCH)
        model = as_int8(model, how, [data.equivalent_inputs(batch) for batch in batches])
    after = judge.answers(model.SerializeToString())
    if not all(np.isfinite(each).all() for each in after):
        raise Unavailable("its answers are no numbers")
    file = original.with_name(f"{name}.onnx")
    thresholds = judge.thresholds(after[0])
    write(model, file, metadata | judge.as_metadata(thresholds))
    labels = {split: data.labels[data.rows(split)] for split in ("val", "test")}
    val_loss, loss = (
        float((old.argmax(1) == truth).mean() - (new.argmax(1) == truth).mean())
        for old, new, truth in zip(before, after, labels.values(), strict=True)
    )
    groups = data.groups[data.rows("test")]
    new_logits, old_logits = (np.log(each[1] + 1e-12) for each in (after, before))
    quality = metrics.classification(new_logits, labels["test"], groups, data.classes)
    return Variant(
        bytes=file.stat().st_size,
        val_loss=val_loss,
        loss=loss,
        gain=metrics.paired_gain(new_logits, old_logits, labels["test"], groups),
        recall=quality.recall,
        operating_point=judge.promises(thresholds, after[1]).get(WANTED),
        parity=_parity(after[1], judge.expected),
    )


def variants(
    kind: VariantKind, judge: Judge, original: Path, before: Answers
) -> tuple[dict[str, Variant], dict[str, str]]:
    """Write and judge the model in other formats, by their names.

    Returns: those; and why others could not be had, which ends no run: they are extras.
    """
    ways: dict[str, Int8 | None] = {}
    if kind != "none":
        ways[FP16] = None
        ways |= {how.name: how for how in (grid() if kind == "grid" else [USUAL])}
    progress = Progress("formats", len(ways))
    judged, failed = {}, {}
    for name, how in ways.items():
        try:
            judged[name] = make_variant(judge, original, before, name, how)
        except Unavailable as error:
            failed[name] = str(error)
        except Exception as error:  # the converters raise whatever a network makes them raise
            reason = " ".join(str(error).split())[:200]
            failed[name] = f"{type(error).__name__}: {reason}"
        progress.step(where=name)
    return judged, failed


def contents_of(validated: Path, rows: Rows) -> str:
    """See `ExportMetrics.test_files`."""
    manifest = pd.read_csv(validated / "manifest.csv", usecols=["sha256"], dtype=str)
    return hashlib.md5("".join(manifest["sha256"].iloc[rows]).encode()).hexdigest()


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Calibrate, export, compare with PyTorch. Always on the CPU."""
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
    judge = Judge(data, points, expected, runtime.threads(resources))
    thresholds = judge.thresholds(softmax(on_val / temperature, axis=1))

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
        **judge.as_metadata(thresholds),
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

    before = judge.answers(file)
    shipped = before[1]
    log_shipped = np.log(shipped + 1e-12)
    teacher = load_targets(paths.targets, data).plain[test]
    models = {"uncalibrated": logits, "shipped": log_shipped}
    predictions.write(paths.predictions, data, test, models)
    cut = judge.cut(thresholds)
    review_test_split(paths, data, net, shipped, cut)
    running = session(file, "cpu", threads=judge.threads)
    under = {
        kind: np.log(probabilities(running, partial(_disturbed, data, kind), test) + 1e-12)
        for kind in get_args(Disturbed)
    }
    others, failed = variants(params.variants, judge, file, before)
    promises = judge.promises(thresholds, shipped)
    report.write_metrics(
        paths.metrics,
        ExportMetrics(
            temperature=temperature,
            fitted_temperature=calibration.fitted,
            val_calibration_gain=gain,
            bytes=file.stat().st_size,
            test_files=contents_of(paths.validated, test),
            parity=_parity(shipped, expected),
            evidence_parity=judge.evidence_parity(explained, temperature),
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
