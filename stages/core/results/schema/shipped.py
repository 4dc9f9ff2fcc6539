"""The metrics of the export stage: what the ONNX file answers."""

from typing import Literal

from stages.core.results.schema.base import Difference, Gain, Metrics, Quality
from stages.core.results.schema.speed import Provider


class Parity(Metrics):
    """The ONNX file against PyTorch.

    Attributes:
        images: number of images that were compared.
        providers: what the file ran on, with commas between; the worst figures of them follow.
        max_abs: largest difference of a probability.
        decisions_changed: number of images that are answered differently, at the operating point
            if there is one.
    """

    images: int
    providers: str
    max_abs: float
    decisions_changed: int


class Thresholds(Metrics):
    """Probabilities of a class: answered with it from `high` on, and with another below `low`."""

    low: float
    high: float


class Decisions(Metrics):
    """What two thresholds do on some images, as shares of them, 0 to 1.

    Attributes:
        recall: of the class's images, those answered with it, or left to a person.
        false_alarms: of the other images, those answered with the class.
        asked: of all images, those left to a person.
    """

    recall: float
    false_alarms: float
    asked: float


# What may happen to images in use; see `disturbances`.
Disturbed = Literal["blur", "noise", "darker", "brighter", "jpeg"]


class Promise(Metrics):
    """What is promised about a class, and whether it is kept.

    Attributes:
        label: name of the class.
        min_recall, max_false_alarms: None for what is not promised.
        test: what the thresholds, chosen on the validation split, do on the test split.
        recall_margin: how far recall there is above what was promised, with its 95 % interval over
            groups; below 0 if the promise is broken. None where nothing was promised.
        false_alarm_margin: how far false alarms are below, likewise.
    """

    label: str
    min_recall: float | None
    max_false_alarms: float | None
    thresholds: Thresholds
    test: Decisions
    recall_margin: Difference | None
    false_alarm_margin: Difference | None


class VariantOn(Metrics):
    """What the ONNX file in another number format answers on one provider.

    On the test split, and the most probable class, where nothing else is said.

    Attributes:
        val_loss: on the validation split, the accuracy of the float32 file on the CPU less its own.
        loss: the same on the test split.
        gain: in AUROC over the float32 file.
        recall: by class.
        operating_point: what the file promises, by its own thresholds; None as in `ExportMetrics`.
        parity: with PyTorch.
    """

    val_loss: float
    loss: float
    gain: Gain
    recall: dict[str, float]
    operating_point: Promise | None
    parity: Parity


class Variant(Metrics):
    """The ONNX file in another number format.

    Attributes:
        bytes: the file's size.
        on: what it answers, by the providers that ran it; the CPU is one of them.
    """

    bytes: int
    on: dict[Provider, VariantOn]


class ExportMetrics(Metrics):
    """The ONNX file on the test split.

    Attributes:
        temperature: in the file; 1, which changes nothing, unless validation shows that the fitted
            one helps.
        fitted_temperature: the best one on validation.
        val_calibration_gain: how much lower the mean cross-entropy (nats) is on groups of the
            validation split that a temperature was not fitted on than without any.
        bytes: the file's size.
        test_files: md5 of the SHA-256 of the test images' files, in order.
        evidence_parity: of the file that gives evidence maps, too: of its probabilities, and of
            those that its evidence adds up to, the worse.
        uncalibrated: PyTorch, before `temperature`.
        calibrated: the file itself.
        auroc, auroc_within_groups: of the file itself; the latter as in `Auroc`.
        operating_point: what the file promises; None where its answer is the most probable class.
        promises: what others would cost, by a name for each; none where there is no class to make
            them about.
        confusion: by true class and decision, the number of images; with an operating point, the
            decision "" counts those left to a person.
        gain_over_chance: of the file over a model that knows nothing, whose AUROC is 0.5.
        gain_over_teacher: of the file over the teacher.
        robustness: of the file on images to which something has happened over the same file on the
            images as they are, by kind (see `disturbances`).
        variants: the other files, by their names.
        failed_variants: why others could not be written, by their names.
    """

    temperature: float
    fitted_temperature: float
    val_calibration_gain: Difference
    bytes: int
    test_files: str
    parity: Parity
    evidence_parity: Parity
    uncalibrated: Quality
    calibrated: Quality
    auroc: float
    auroc_within_groups: float | None = None
    operating_point: Promise | None
    promises: dict[str, Promise]
    confusion: dict[str, dict[str, int]]
    gain_over_chance: Gain
    gain_over_teacher: Gain
    robustness: dict[Disturbed, Gain]
    variants: dict[str, Variant]
    failed_variants: dict[str, str]
