"""The metrics of every stage: what stands in its metrics.json, each key spelled here and once.

A stage writes an instance of its class with `report.write_metrics`; whoever wants the figures reads
them back as one with `report.read_metrics`. An optional field that is left out is not written; one
that is None is null.
"""

import math
from collections.abc import Iterable
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

Model = Literal["teacher", "student"]
Engine = Literal["torch", "compile", "ort", "ort_graph", "tensorrt"]
Provider = Literal["cpu", "cuda"]
# Whole numbers stay whole, so that a count is written as one.
Number = int | float


class Metrics(BaseModel):
    """Base of all classes here: a wrong or missing key is an error, and so is a wrong type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class Auroc(Metrics):
    """AUROC of one model on one split, 0 to 1.

    Attributes:
        auroc_within_groups: over the pairs of images of the same group; left out where no group
            has two classes, or where no groups are given.
    """

    auroc: float
    auroc_within_groups: float | None = None


class Quality(Auroc):
    """One model on one split.

    Attributes:
        accuracy, macro_f1, recall: 0 to 1; `recall` by class, in the order of the logits.
        ece: expected calibration error, 0 to 1.
        nll: mean cross-entropy in nats.
    """

    accuracy: float
    macro_f1: float
    ece: float
    nll: float
    recall: dict[str, float]


class Difference(Metrics):
    """Difference of two models on the same images, in AUROC where nothing else is said.

    Attributes:
        gain: above 0 if the first model is better.
        low, high: ends of the 95 % interval; None where there are too few groups for one.
    """

    gain: float
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.gain:+z.3f} [no interval: too few groups]"
        return f"{self.gain:+z.3f} [{self.low:+.3f}, {self.high:+.3f}]"

    @property
    def is_shown(self) -> bool:
        """Whether the first model is shown to be better: the interval lies above zero."""
        return self.low is not None and self.low > 0


class Gain(Difference):
    """Difference in AUROC of two models, overall and within groups.

    Attributes:
        within_groups: left out where no group has two classes, or where no groups are given.
    """

    within_groups: Difference | None = None


def count_intervals(gains: Iterable[Gain]) -> int:
    """How many intervals some gains have."""
    each = (part for gain in gains for part in (gain, gain.within_groups) if part is not None)
    return sum(part.low is not None for part in each)


def intervals_note(gains: Iterable[Gain]) -> str:
    """A sentence that says how many intervals a table of gains holds, and what that means."""
    count = count_intervals(gains)
    return f"95 % intervals: {count}; each misses the true gain one time in twenty."


class IngestMetrics(Metrics):
    """Counts of the built-in images: in all, by class and by domain."""

    images: int
    groups: int
    classes: dict[str, int]
    domains: dict[str, int]


class Duplicates(Metrics):
    """Pairs of images that are the same or nearly so.

    Attributes:
        across_groups, contradicting: pairs of two groups, and of two labels, among all of them.
    """

    identical: int
    near: int
    across_groups: int
    contradicting: int


class Leaks(Metrics):
    """What was done about near duplicates that would stand in two splits.

    Attributes:
        groups_joined: groups that became part of another.
        left_out: images, those without a label among them.
        leaking: images that leak all the same, where the split is the user's own.
    """

    groups_joined: int
    left_out: int
    leaking: int


class SplitCounts(Metrics):
    """Groups and labelled images of a split; images by class, too."""

    groups: int
    images: int
    classes: dict[str, int]


class Backgrounds(Metrics):
    """What images are divided by.

    Attributes:
        kind: `group`, or `both`, see params.yaml.
        groups: that have a background, the median of `min_images` images or more.
        kept: images that are not divided, since their group is smaller.
    """

    kind: Literal["group", "both"]
    min_images: int
    groups: int
    kept: int


class ValidateMetrics(Metrics):
    """What the images are, and how they are split.

    Attributes:
        channels: of what networks see.
        background: left out where images are not divided by any.
        bit_depth: of the grey values in the image files.
        fit: what became of images that are not square.
        symmetries: in which training shows the images.
        licence: of the images, if the folder names one.
        look_alikes: the symmetry that exchanges two classes, by their names; the clearest 20.
        groups: different groups; an image without one is a group of its own.
        groups_given: whether the images came with groups.
        expectations: how many the images fulfil.
        bad_images: images that were left out.
        other_files: files that are no images.
        split_tears_groups: whether a group stands in two splits.
        unlabelled: images that only teach: without a label, of a target domain, or with their label
            hidden (validate.labelled_share).
        drift: stability index of each column against the accepted data; empty where there is none.
        splits: train, val and test.
    """

    images: int
    layout: str
    channels: int
    image_px: int
    bit_depth: int
    fit: str
    symmetries: str
    licence: str | None = None
    look_alikes: dict[str, str]
    groups: int
    groups_given: bool
    background: Backgrounds | None = None
    expectations: int
    bad_images: int
    other_files: int
    duplicates: Duplicates
    leaks: Leaks
    split_method: str
    split_tears_groups: bool
    unlabelled: int
    drift: dict[str, float]
    splits: dict[str, SplitCounts]


class TeacherMetrics(Metrics):
    """The teacher, before and after fine-tuning, on the test split.

    Attributes:
        backbone: names, joined where there are several members.
        macs: multiply-accumulates per image.
        source_only: fine-tuned, before it is adapted to a target domain.
    """

    backbone: str
    members: int
    parameters: int
    macs: int
    probe: Quality
    finetuned: Quality
    source_only: Quality | None = None
    adaptation_gain: Gain | None = None
    finetuning_gain: Gain
    validation: Auroc


class TargetsMetrics(Metrics):
    """The teacher on labelled images that students learn from.

    Attributes:
        view_auroc, plain_auroc: on the first view, and on the images as they are.
    """

    views: int
    view_auroc: float
    plain_auroc: float


class Spread(Metrics):
    """Mean AUROC over the seeds, and its standard deviation where there are several."""

    mean: float
    deviation: float | None = None


class Seeds(Metrics):
    """Students and controls over all seeds."""

    count: int
    student: Spread
    control: Spread


class DistillMetrics(Metrics):
    """The student and its control on the test split.

    Attributes:
        macs: multiply-accumulates per image.
        student, control: of the first seed, the one that ships.
        gain_over_control: mean over the seeds.
        validation: by model and seed: `student`, `control`, `student 1` and so on.
    """

    backbone: str
    parameters: int
    macs: int
    student: Quality
    control: Quality
    seeds: Seeds
    gain_over_control: Gain
    gain_over_teacher: Gain
    validation: dict[str, Auroc]


class KernelDistance(Metrics):
    """KID over random subsets: mean, and deviation between them."""

    mean: float
    deviation: float


class Fidelity(Metrics):
    """Some images against real ones of the class or domain, in the features of a judge.

    Attributes:
        precision: share that lies among the real ones.
        recall: share of the real ones that lies among them.
        density: how many real neighbourhoods each lies in; about 1 for real images.
        coverage: share of the real ones that have one of them for a neighbour.
        authentic: share that is no copy of a training image.
        classification_score: on validation, of a probe that knows the class from these images
            alone; left out where it is no class that they are to show.
        probability: the teacher's mean probability of the class; left out likewise.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    authentic: float
    kernel_distance: KernelDistance
    classification_score: Auroc | None = None
    probability: float | None = None


class AugmentMetrics(Metrics):
    """The synthetic images.

    Attributes:
        mode: how they were made.
        to: the class, or the domain, that they are to show.
        images: how many passed, and go to `refine`.
        kept_share: images that the teacher's filter kept, of those that were made.
        refused: why all of them are left out; None where they are not.
        ended_early: why the GAN's training ended before its last step; None where it did not.
        snapshot: number of steps of the generator that made the images; left out without a GAN.
        synthetic: those that passed the filter, against half of the real training images, and as
            copies of all of them; None where fewer than two did.
        real: the other half of the real ones, against the same. This and what follows are left out
            where no images could be made.
        other: as many training images of the other classes or domains, untouched.
    """

    mode: Literal["translate", "paste", "synthesize"]
    to: str
    images: int
    kept_share: float
    refused: str | None
    ended_early: str | None
    snapshot: int | None = None
    synthetic: Fidelity | None = None
    real: Fidelity | None = None
    other: Fidelity | None = None


class ValidationAuroc(Metrics):
    """AUROC on validation: as distilled, refined on real images, and on synthetic ones too."""

    distilled: float
    real: float
    synthetic: float


class RefineMetrics(Metrics):
    """What refinement gives, on the test split but for what begins with `val_`.

    Without synthetic images nothing is refined, and all but the first three is left out.

    Attributes:
        accepted: whether validation shows that the synthetic images help: both gains over
            `real` and `distilled` are clear of zero there.
        winner: what goes on.
        seeds: number of times that each was refined; gains are means over them, and all other
            figures are of the first.
        val_auroc_within_groups: left out where there is none, as in `Auroc`.
        val_gain_over_real, val_gain_over_distilled: of `synthetic`.
    """

    accepted: bool
    winner: Literal["synthetic", "distilled"]
    distilled: Quality
    seeds: int | None = None
    val_auroc: ValidationAuroc | None = None
    val_auroc_within_groups: ValidationAuroc | None = None
    val_gain_over_real: Gain | None = None
    val_gain_over_distilled: Gain | None = None
    real: Quality | None = None
    synthetic: Quality | None = None
    gain_over_real: Gain | None = None

    @classmethod
    def without(cls, distilled: Quality) -> "RefineMetrics":
        """Where there are no synthetic images."""
        return cls(accepted=False, winner="distilled", distilled=distilled)

    @property
    def val_gain(self) -> Gain | None:
        """Of the two gains on validation the one that decides: that with the lower low end."""
        gains = (self.val_gain_over_real, self.val_gain_over_distilled)
        given = [gain for gain in gains if gain is not None]
        if not given:
            return None
        return min(given, key=lambda gain: -math.inf if gain.low is None else gain.low)


class Parity(Metrics):
    """The ONNX file against PyTorch: largest difference of a probability, decisions that differ."""

    images: int
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
        test: what the thresholds, chosen on the validation split, do on the test split.
    """

    label: str
    min_recall: float
    max_false_alarms: float
    thresholds: Thresholds
    test: Decisions


class Variant(Metrics):
    """The ONNX file in another number format, on the test split where nothing else is said.

    Attributes:
        bytes: the file's size.
        val_loss: on the validation split, the float32 file's accuracy less its own.
        loss: the same on the test split.
        gain: in AUROC over the float32 file.
        recall: by class.
        parity: with PyTorch.
    """

    bytes: int
    val_loss: float
    loss: float
    gain: Gain
    recall: dict[str, float]
    parity: Parity


class ExportMetrics(Metrics):
    """The ONNX file on the test split.

    Attributes:
        temperature: in the file; 1, which changes nothing, unless validation shows that the fitted
            one helps.
        fitted_temperature: the best one on validation.
        val_calibration_gain: how much lower the mean cross-entropy (nats) is on groups of the
            validation split that a temperature was not fitted on than without any.
        bytes: the file's size.
        evidence_parity: of the file that gives evidence maps, too.
        uncalibrated, calibrated: PyTorch, before and after `temperature`.
        auroc, auroc_within_groups: of the file itself; the latter as in `Auroc`.
        operating_point: what the file promises; None where its answer is the most probable class.
        promises: what others would cost, by a name for each; none where there is no class to make
            them about.
        confusion: by true class and decision, the number of images.
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


# Above this `Latency.spread`, something else was busy.
NOISY = 0.1


class Latency(Metrics):
    """One model, engine, provider, precision, batch size and number of threads.

    Attributes:
        calls: how many were timed.
        p50_ms, p90_ms, p95_ms, p99_ms, p999_ms, max_ms: percentiles of a call's time, from arrays
            in memory to the answer in memory; no call is left out.
        computation_ms: median without copies between host and device; left out on the CPU.
        images_per_s: from the median.
        rounds_ms: median of each round, by its number from 1.
        spread: how far these are apart, as a share of the least.
        is_stable: whether calls took the same time at the end of each warm-up.
        unavailable: why nothing was timed; then the rest is left out.
    """

    model: Model
    engine: Engine
    provider: Provider
    precision: str
    batch: int
    threads: int
    calls: int | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    p999_ms: float | None = None
    max_ms: float | None = None
    computation_ms: float | None = None
    images_per_s: float | None = None
    rounds_ms: dict[str, float] = {}
    spread: float | None = None
    is_stable: bool | None = None
    unavailable: str | None = None

    @property
    def is_noisy(self) -> bool:
        """Whether something else was busy."""
        return self.spread is not None and (self.spread > NOISY or not self.is_stable)


class Start(Metrics):
    """What it takes to get an engine ready, in a process of its own.

    Attributes:
        cold_start_ms, warm_start_ms: making it ready the first time in its process (weights read,
            graph optimised, engine built; libraries are imported already), and once again.
        first_ms: the first call.
        peak_mb: the most memory that its process had until the first call was answered, with all
            that it imports.
    """

    cold_start_ms: float
    warm_start_ms: float
    first_ms: float
    peak_mb: float


class Load(Metrics):
    """Single images that arrive by themselves, at random (a Poisson process), on average so often.

    Attributes:
        rate: images per second.
        p50_ms, p99_ms, max_ms: from arrival to answer, waiting included.
    """

    rate: float
    images: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class BenchmarkMetrics(Metrics):
    """How fast the models are.

    Attributes:
        device: the GPU's name where there is one, and the CPU's.
        speed_up: ratios of medians, by `FAST_over_SLOW_bBATCH`.
        bytes: size of each model's ONNX file.
        machine: what else there is to know of it.
        starts: by `MODEL_ENGINE_PROVIDER`, with `_PRECISION` unless it is fp32, and `_tTHREADS`
            unless it is the first number of threads asked for.
        rows: the same with `_bBATCH` after the provider.
        load: latency against load, of the student in ONNX Runtime on the CPU, by the rate as a
            share of what it could answer without a pause; empty where none was measured.
        highest_rate: of those that keep the 99th percentile below the limit that was asked for.
    """

    threads: int
    device: str
    machine: dict[str, str]
    speed_up: dict[str, float]
    bytes: dict[str, int]
    starts: dict[str, Start]
    rows: dict[str, Latency]
    load: dict[str, Load]
    highest_rate: float | None

    def variant_speed_ups(self, name: str) -> dict[Provider, float]:
        """How many times as fast as float32 a format is at batch 1, by provider if measured.

        In the round where it is least ahead: one busy moment must not make a format fast.
        """
        ratios: dict[Provider, float] = {}
        providers: tuple[Provider, ...] = get_args(Provider)
        for provider in providers:
            usual, other = (
                self.rows.get(f"student_ort_{provider}_b1{end}") for end in ("", f"_{name}")
            )
            if usual and other and usual.rounds_ms and other.rounds_ms:
                ratios[provider] = min(
                    usual.rounds_ms[number] / ms for number, ms in other.rounds_ms.items()
                )
        return ratios


class Gate(Metrics):
    """One condition for a release.

    A difference between two models fails only if its 95 % interval is clear of the limit, on the
    wrong side: a good model is not stopped by what chance alone explains.

    Attributes:
        low, high: ends of that interval; None where the value has none.
        margin: what there is to spare, negative where it failed.
        suggested: a limit that a run as good as this one clears; None where the limit that comes
            with the project means the same for all images.
    """

    value: Number
    low: float | None
    high: float | None
    limit: Number
    margin: Number
    passed: bool
    suggested: Number | None

    @property
    def verdict(self) -> str:
        """passed, failed, or open: passed with an interval that holds the limit."""
        if not self.passed:
            return "failed"
        return "open" if self.low is not None and self.low < self.limit else "passed"


class Offer(Metrics):
    """Whether a model in another number format ships beside the float32 one.

    Attributes:
        provider: where it ships; or else where it is fastest, compared with float32.
        speed_up: there, at batch 1, in the round where it is least ahead; None where nothing was
            measured.
        file: its name in the release, or None.
        reason: why it does not ship, or "".
    """

    provider: Provider
    speed_up: float | None
    file: str | None
    reason: str


class CheckMetrics(Metrics):
    """Every gate by name, and whether all of them passed; and what became of other formats."""

    passed: bool
    gates: dict[str, Gate]
    offers: dict[str, Offer]


SCHEMA: dict[str, type[Metrics]] = {
    "ingest": IngestMetrics,
    "validate": ValidateMetrics,
    "teacher": TeacherMetrics,
    "targets": TargetsMetrics,
    "distill": DistillMetrics,
    "augment": AugmentMetrics,
    "refine": RefineMetrics,
    "export": ExportMetrics,
    "benchmark": BenchmarkMetrics,
    "check": CheckMetrics,
}
