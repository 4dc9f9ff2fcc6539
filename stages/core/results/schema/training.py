"""The metrics of the stages that train without synthetic images: teacher, targets and distill."""

from stages.core.results.schema.base import Auroc, Gain, Metrics, Quality


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
