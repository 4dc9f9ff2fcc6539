"""The exam that every exported file sits: its answers, its promises, and the same of other formats.

Thresholds are chosen on the validation split by the file's own probabilities on the CPU; what they
do, and how far the answers are from PyTorch's, is measured on the test split.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from onnxruntime import InferenceSession
from scipy.special import softmax

from stages.core.dataset.data import Dataset
from stages.core.nets.onnx_export import metadata_of, write
from stages.core.nets.onnx_run import EVIDENCE, OUTPUT, feed, probabilities, providers, session
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
from stages.core.results.review import Cut, Probabilities, decide
from stages.core.results.schema.shipped import Parity, Promise, Thresholds, Variant, VariantOn
from stages.core.results.schema.speed import Provider
from stages.core.runner.errors import AtelierError, DataError, Unavailable
from stages.core.runner.progress import Progress

# Among the promises, that of the params.
WANTED = "wanted"
VariantKind = Literal["none", "few", "grid"]


def parity(
    shipped: Mapping[Provider, Probabilities], expected: Probabilities, cut: Cut | None
) -> Parity:
    """Of a file's probabilities (N, K) on some providers with PyTorch's: the worst of each figure.

    Args:
        cut: what the file decides by, as in `Exam.cut`.
    """
    decided = decide(expected, cut)
    return Parity(
        images=len(expected),
        providers=", ".join(shipped),
        max_abs=float(np.max([np.abs(each - expected).max() for each in shipped.values()])),
        decisions_changed=max(
            int((decide(each, cut) != decided).sum()) for each in shipped.values()
        ),
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

    def answers(self, model: Path | bytes) -> dict[Provider, Answers]:
        """A model's probabilities, by the providers of this machine that run it; the CPU has to.

        Raises: DataError where they are no numbers.
        """
        data = self.data
        found: dict[Provider, Answers] = {}
        for provider, running in self._running(model):
            on_val = probabilities(running, data.equivalent_inputs, data.rows("val"))
            on_test = probabilities(running, data.model_inputs, data.rows("test"))
            _require_numbers(on_val, on_test, provider=provider)
            found[provider] = self._ordered(running, on_val), self._ordered(running, on_test)
        return found

    def _running(self, model: Path | bytes) -> Iterator[tuple[Provider, InferenceSession]]:
        for provider in providers():
            try:
                running = session(model, provider, threads=self.threads)
            except Unavailable:
                if provider == "cpu":
                    raise
                continue
            yield provider, running

    def _ordered(self, running: InferenceSession, answers: Probabilities) -> Probabilities:
        """A model's answers by the names that users will go by, in the order of the classes."""
        names = json.loads(running.get_modelmeta().custom_metadata_map["classes"])
        return answers[:, [names.index(name) for name in self.data.classes]]

    def evidence_parity(self, model: Path, temperature: float, cut: Cut | None) -> Parity:
        """Of a model's probabilities on the test split, and of what its evidence adds up to.

        Raises: DataError where they are no numbers.
        """
        test = self.data.rows("test")
        given: dict[Provider, Probabilities] = {}
        summed: dict[Provider, Probabilities] = {}
        for provider, running in self._running(model):
            answers, logits = [], []
            for i in range(0, len(test), 64):
                inputs = feed(self.data.model_inputs(test[i : i + 64]))
                answer, evidence = running.run([OUTPUT, EVIDENCE], inputs)
                answers.append(answer)
                logits.append(evidence.sum((2, 3)))
            given[provider] = self._ordered(running, np.concatenate(answers))
            summed[provider] = softmax(np.concatenate(logits) / temperature, axis=1)
            _require_numbers(given[provider], summed[provider], provider=provider)
        plain, of_evidence = (parity(each, self.expected, cut) for each in (given, summed))
        return plain.model_copy(
            update={
                "max_abs": max(plain.max_abs, of_evidence.max_abs),
                "decisions_changed": max(plain.decisions_changed, of_evidence.decisions_changed),
            }
        )


def _require_numbers(*answers: Probabilities, provider: Provider) -> None:
    if not all(np.isfinite(each).all() for each in answers):
        raise DataError(
            f"the ONNX file: found answers on {provider} that are no numbers (NaN or infinite), "
            "expected probabilities"
        )


def make_variant(
    exam: Exam, original: Path, before: Answers, name: str, how: Int8 | None
) -> Variant:
    """Write the model in another format beside `original`, and compare the two.

    Args:
        before: what the original answers on the CPU.
        how: to quantise; None for float16.

    Raises: DataError where its answers are no numbers.
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
    thresholds = exam.thresholds(after["cpu"][0])
    labels = {split: data.labels[data.rows(split)] for split in ("val", "test")}
    groups = data.groups[data.rows("test")]
    old_logits = np.log(before[1] + 1e-12)
    on: dict[Provider, VariantOn] = {}
    for provider, answers in after.items():
        val_loss, loss = (
            float((old.argmax(1) == truth).mean() - (new.argmax(1) == truth).mean())
            for old, new, truth in zip(before, answers, labels.values(), strict=True)
        )
        logits = np.log(answers[1] + 1e-12)
        on[provider] = VariantOn(
            val_loss=val_loss,
            loss=loss,
            gain=metrics.paired_gain(logits, old_logits, labels["test"], groups),
            recall=metrics.classification(logits, labels["test"], groups, data.classes).recall,
            operating_point=exam.promises(thresholds, answers[1]).get(WANTED),
            parity=parity({provider: answers[1]}, exam.expected, exam.cut(thresholds)),
        )
    file = original.with_name(f"{name}.onnx")
    write(model, file, metadata | exam.as_metadata(thresholds))
    return Variant(bytes=file.stat().st_size, on=on)


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
        except AtelierError as error:
            failed[name] = str(error)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the converters raise whatever a network makes them raise
            reason = " ".join(str(error).split())[:200]
            failed[name] = f"{type(error).__name__}: {reason}"
        progress.step(where=name)
    return judged, failed
