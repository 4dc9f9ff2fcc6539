"""The exam that every exported file sits: its answers, its promises, and the same of other formats.

Thresholds are chosen on the validation split by the file's own probabilities; what they do, and how
far the answers are from PyTorch's, is measured on the test split.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnxruntime import InferenceSession
from scipy.special import softmax

from stages.core.dataset.data import Dataset
from stages.core.nets.onnx_export import metadata_of, write
from stages.core.nets.onnx_run import EVIDENCE, OUTPUT, feed, probabilities, session
from stages.core.nets.variants import (
    CALIBRATION_BATCH,
    CALIBRATION_IMAGES,
    FP16,
    USUAL,
    Int8,
    as_fp16,
    as_int8,
    grid,
)
from stages.core.results import metrics, operating_point
from stages.core.results.operating_point import OperatingPoint
from stages.core.results.review import Cut, Probabilities
from stages.core.results.schema.shipped import Parity, Promise, Thresholds, Variant
from stages.core.runner.errors import Unavailable
from stages.core.runner.progress import Progress

# Among the promises, that of the params.
WANTED = "wanted"
VariantKind = Literal["none", "few", "grid"]


def parity(shipped: Probabilities, expected: Probabilities) -> Parity:
    """Of two models' probabilities (N, K), and of what they call the most probable class."""
    return Parity(
        images=len(shipped),
        max_abs=float(np.abs(shipped - expected).max()),
        decisions_changed=int((shipped.argmax(1) != expected.argmax(1)).sum()),
    )


# On the validation and on the test split.
Answers = tuple[Probabilities, Probabilities]


@dataclass(frozen=True)
class Exam:
    """What every exported file is asked, and compared with.

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
            parity(each, self.expected) for each in (self._ordered(running, answers), summed)
        ]
        return Parity(
            images=len(test),
            max_abs=max(each.max_abs for each in of_both),
            decisions_changed=max(each.decisions_changed for each in of_both),
        )


def make_variant(
    exam: Exam, original: Path, before: Answers, name: str, how: Int8 | None
) -> Variant:
    """Write the model in another format beside `original`, and compare the two.

    Args:
        before: what the original answers.
        how: to quantise; None for float16.
    """
    data = exam.data
    model = onnx.load(original)
    metadata = metadata_of(model)
    if how is None:
        model = as_fp16(model)
    else:
        train = data.rows("train")
        rows = train[np.linspace(0, len(train) - 1, CALIBRATION_IMAGES, dtype=np.int64)]
        batches = np.array_split(rows, CALIBRATION_IMAGES // CALIBRATION_BATCH)
        model = as_int8(model, how, [data.equivalent_inputs(batch) for batch in batches])
    after = exam.answers(model.SerializeToString())
    if not all(np.isfinite(each).all() for each in after):
        raise Unavailable("its answers are no numbers")
    file = original.with_name(f"{name}.onnx")
    thresholds = exam.thresholds(after[0])
    write(model, file, metadata | exam.as_metadata(thresholds))
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
        operating_point=exam.promises(thresholds, after[1]).get(WANTED),
        parity=parity(after[1], exam.expected),
    )


def variants(
    kind: VariantKind, exam: Exam, original: Path, before: Answers
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
            judged[name] = make_variant(exam, original, before, name, how)
        except Unavailable as error:
            failed[name] = str(error)
        except Exception as error:  # the converters raise whatever a network makes them raise
            reason = " ".join(str(error).split())[:200]
            failed[name] = f"{type(error).__name__}: {reason}"
        progress.step(where=name)
    return judged, failed
