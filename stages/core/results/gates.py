"""What each gate holds against its limit, what its failure means in words, and what to try then."""

from typing import NamedTuple

from stages.core.results.schema.base import Difference, Number
from stages.core.results.schema.verdict import Gate

# Images of a group whose accuracy says something about it.
LEAST_GROUP = 20
# The gate that looks back. It says nothing of the model by itself, so its card does without it.
CHAMPION = "gain_over_champion"


class Meaning(NamedTuple):
    """Of a gate.

    Attributes:
        parameter: its key in the section `check` of params.yaml.
        words: what it holds against the limit.
        advice: what to try where it failed.
    """

    parameter: str
    words: str
    advice: str


# Of any model, when nothing else is known.
MORE = "label more images, of more groups, or train a stronger teacher (teacher.recipe, backbones)"
LESSON = (
    "give the student more views and epochs (targets.view_count, distill.recipe.epochs), or "
    "unlabelled images, or another alpha"
)
ODD_GROUPS = (
    "look for an odd group in the report's table, and give validation more groups like it "
    "(validate.val_folds), or promise less (export.operating_point)"
)
FAULT = "a fault of the export: keep the file, and report it"
MEANINGS = {
    "auroc": Meaning("min_auroc", "AUROC of the exported model", MORE),
    "auroc_within_groups": Meaning(
        "min_auroc_within_groups",
        "its AUROC within groups",
        "where groups differ in light or material, divide images by it (validate.background)",
    ),
    "worst_group_accuracy": Meaning(
        "min_worst_group_accuracy",
        f"lowest accuracy in a group of {LEAST_GROUP} images or more",
        "look at this group's images in the report's mistakes, and label more groups like it",
    ),
    "ece": Meaning(
        "max_ece",
        "expected calibration error of the exported model",
        "give validation more groups (validate.val_folds), so that a temperature can help",
    ),
    "asked": Meaning(
        "max_asked",
        "share of images that are left to a person",
        "promise less (export.operating_point), or give validation more groups (val_folds)",
    ),
    "recall_margin": Meaning(
        "min_promise_margin",
        "how far recall is above what export.operating_point promises",
        ODD_GROUPS,
    ),
    "false_alarm_margin": Meaning(
        "min_promise_margin",
        "how far false alarms are below what export.operating_point promises",
        ODD_GROUPS,
    ),
    "finetuning_gain": Meaning(
        "min_finetuning_gain",
        "gain in AUROC of the fine-tuned teacher over its linear probe",
        "lower teacher.recipe.learning_rate, or keep the probe (teacher.mode: feature_extraction)",
    ),
    "gain_over_teacher": Meaning(
        "min_gain_over_teacher",
        "gain in AUROC of the exported model over its teacher",
        "a deeper student may hold more (distill.out_indices; flows/overlays/photos.yaml has one)",
    ),
    "gain_over_control": Meaning(
        "min_gain_over_control", "gain in AUROC of the student over its control", LESSON
    ),
    "gain_over_control_within_groups": Meaning(
        "min_gain_over_control_within_groups",
        "gain in AUROC within groups of the student over its control",
        LESSON,
    ),
    CHAMPION: Meaning(
        "min_gain_over_champion",
        "gain in AUROC of the exported model over the one in use",
        "keep the model in use, and look at what changed since: data, params, code",
    ),
    "parameter_share": Meaning(
        "max_parameter_share",
        "student's parameters over the teacher's",
        "take a shallower student (distill.out_indices)",
    ),
    "parity_max_abs": Meaning(
        "max_parity", "difference of a probability between ONNX and PyTorch", FAULT
    ),
    "decisions_changed": Meaning(
        "max_decisions_changed", "decisions that differ between ONNX and PyTorch", FAULT
    ),
    "megabytes": Meaning(
        "max_megabytes",
        "size of the ONNX file in MB",
        "take a shallower student (distill.out_indices)",
    ),
    "speed_up": Meaning(
        "min_speed_up",
        "times that the student in ONNX Runtime is faster",
        "run the benchmark on a quiet machine, or show the student fewer pixels (distill.reduce)",
    ),
}


def meaning(name: str) -> Meaning:
    """The meaning of a gate, also of those for a class or a disturbance."""
    prefix, _, label = name.partition(" ")
    if prefix == "recall":
        return Meaning(
            f"min_recall[{label!r}]",
            f"recall of {label}",
            "weigh classes (teacher.imbalance)",
        )
    if prefix == "under":
        return Meaning(
            f"min_gain_under[{label!r}]",
            f"gain in AUROC of the exported model on disturbed images ({label}) over the others",
            "add such images to the training data, or raise jitter in teacher and targets",
        )
    return MEANINGS[name]


def shortfall(name: str, gate: Gate) -> str:
    """A failed gate in words: what it means, its value, its parameter with the limit, advice."""
    parameter, words, advice = meaning(name)
    interval = "" if gate.low is None else f" [{gate.low:.4g}, {gate.high:.4g}]"
    return (
        f"{words} is {gate.value:.4g}{interval}, but check.{parameter} is {gate.limit:g} "
        f"(to try: {advice})"
    )


def _gate(value: Number, limit: Number, margin: Number, suggested: Number | None = None) -> Gate:
    """A gate on a value without an interval."""
    if suggested is not None:
        suggested = float(f"{suggested:.2g}")  # As a person would set it.
    return Gate(
        value=value,
        low=None,
        high=None,
        limit=limit,
        margin=margin,
        passed=margin >= 0,
        suggested=suggested,
    )


def at_least(value: Number, limit: Number, *, suggested: Number | None = None) -> Gate:
    """A gate that needs a value of `limit` or more."""
    return _gate(value, limit, value - limit, suggested)


def at_most(value: Number, limit: Number, *, suggested: Number | None = None) -> Gate:
    """A gate that needs a value of `limit` or less."""
    return _gate(value, limit, limit - value, suggested)


def not_below(gain: Difference, limit: float, *, suggested: Number | None = None) -> Gate:
    """A gate that fails where a gain is clearly below `limit`: all of its interval is.

    Where the groups are too few for an interval, the gain itself decides.
    """
    high = gain.gain if gain.high is None else gain.high
    gate = _gate(gain.gain, limit, high - limit, suggested)
    return gate.model_copy(update={"low": gain.low, "high": gain.high})


def surely(gain_over_chance: Difference) -> float | None:
    """An AUROC that a model as good as this one has on other groups, too: its interval's low end.

    None where there is no interval.
    """
    return None if gain_over_chance.low is None else max(0.5 + gain_over_chance.low, 0.0)
