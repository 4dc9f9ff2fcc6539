"""Synthetic images of a class or domain, judged before any student learns from them.

A generator learns against a discriminator to move real images to the rarest class, or to another
domain (`translate`), or to make images of that class from noise (`synthesize`); `paste` does
without a GAN, and is what a GAN has to beat. The teacher filters what is made by what it thinks of
held-out real images, and the whole set is refused where it copies training images or lacks their
variety. Beside the synthetic images stand as many real ones at the same resolution: the next
stage's control.

Reads:  data/validated/, data/models/teacher/
Writes: data/augmented/ (synthetic/ and real/: pixels.npy, labels.npy, logits.npy, views.json),
        metrics, curves, pictures of some images and of what the teacher thinks of all of them
Params: augment
Run:    dvc repro augment
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from stages.core.dataset.data import UNLABELLED, Dataset, load_dataset
from stages.core.gan import game, paste, synthesize, translate
from stages.core.gan.game import as_pixels, scaled
from stages.core.gan.judge import Judge, Jury
from stages.core.gan.making import FEWEST_WANTED, Made, Maker, Makers, Task
from stages.core.nets.files import load_teacher
from stages.core.results import pictures, report
from stages.core.results.schema.synthetic import AugmentMetrics, Fidelity
from stages.core.runner import stage
from stages.core.runner.errors import ParamsError, TrainingDiverged
from stages.core.runner.params import Section
from stages.core.runner.runtime import Resources
from stages.core.runner.text import say
from stages.core.training.supplement import Supplement, save_supplement, seen


class Params(Section):
    """Section `augment`."""

    mode: Literal["translate", "paste", "synthesize"]
    to: Literal["class", "domain"]
    translate: translate.Params
    paste: paste.Params
    synthesize: synthesize.Params
    images: int = Field(ge=FEWEST_WANTED)
    keep_quantile: float = Field(gt=0, le=1)
    min_kept: float = Field(ge=-1, le=1)
    min_authentic: float = Field(ge=0)
    min_coverage: float = Field(ge=0)
    view_count: int = Field(ge=1, le=1000)
    jitter: float = Field(ge=0, lt=1)
    judge_backbone: str = Field(min_length=1)
    judge_out_indices: list[int] = Field(min_length=1)
    probe_c: float = Field(gt=0)
    seed: int = Field(ge=0)

    @field_validator("to")
    @classmethod
    def _only_translation_makes_a_domain(cls, to: str, info: ValidationInfo) -> str:
        if to == "domain" and info.data.get("mode", "translate") != "translate":
            raise PydanticCustomError(
                "domain", "expected class: only mode translate makes a domain"
            )
        return to


@dataclass(frozen=True, kw_only=True)
class Paths(stage.Paths):
    """What dvc.yaml hands to the command line."""

    validated: Path = stage.reads()
    teacher: Path = stage.reads()
    augmented: Path = stage.writes()
    metrics: Path = stage.writes()
    curves: Path = stage.writes()
    samples: Path = stage.writes()
    probabilities: Path = stage.writes()


# Images that each kept state of a GAN is chosen by.
AUDITION = 100
# Images in the picture, and real ones among which the nearest are looked for.
SHOWN, MOST_SEARCHED = 10, 1000
# From fewer real images, no share says whether synthetic ones copy them or lack their variety.
FEWEST_JUDGED = 20


def find_task(params: Params, data: Dataset) -> Task:
    """What the images are to show: the rarest class, or the domain of unlabelled images.

    Raises: ParamsError where there is no such domain.
    """
    train = data.rows("train")
    labels = data.labels[train]
    if params.to == "class":
        label = int(np.bincount(labels, minlength=len(data.classes)).argmin())
        return Task(data.classes[label], label, train[labels == label], train[labels != label])
    unlabelled = data.rows(UNLABELLED)
    known = {"", *data.domains[train]}
    elsewhere = unlabelled[[domain not in known for domain in data.domains[unlabelled]]]
    if not len(elsewhere):
        raise ParamsError(
            "augment.to = 'domain': found no unlabelled images of another domain than those of the "
            "training images; expected validate.target_domain, or augment.to = 'class'"
        )
    return Task(" and ".join(sorted(set(data.domains[elsewhere]))), None, elsewhere, train)


def find_makers(
    params: Params, data: Dataset, task: Task, device: torch.device, scratch: Path
) -> Makers:
    """Whatever makes the images, after its training. Raises: TrainingDiverged."""
    if params.mode == "paste":
        makers = paste.makers(params.paste, data, task)
    elif params.mode == "translate":
        makers = translate.makers(params.translate, data, task, params.seed, device, scratch)
    else:
        makers = synthesize.makers(params.synthesize, data, task, params.seed, device, scratch)

    def wrapped(make: Maker) -> Maker:
        return lambda count, seed: consistent(make(count, seed), data)

    by_step = {step: wrapped(make) for step, make in makers.by_step.items()}
    return dataclasses.replace(makers, by_step=by_step)


def best_step(makers: Makers, jury: Jury, seed: int) -> int:
    """The kept state whose images teach a probe the class best; without a class, the last."""
    if jury.task.label is None or len(makers.by_step) == 1:
        return max(makers.by_step)

    def score(step: int) -> tuple[float, int]:
        found = jury.rehearsal(jury.features(makers.by_step[step](AUDITION, seed).pixels))
        assert found is not None
        within = found.auroc_within_groups
        return (found.auroc if within is None else within), step

    return max(makers.by_step, key=score)


def refusal(
    params: Params,
    kept_share: float,
    untouched_share: float | None,
    synthetic: Fidelity | None,
    real: Fidelity,
    wanted: int,
) -> str:
    """Why a whole set of synthetic images is left out; empty where it is not.

    Args:
        kept_share, untouched_share: see `AugmentMetrics`.
        wanted: number of real training images.
    """
    if synthetic is None:
        return f"the teacher's filter kept {kept_share:.1%} of them, fewer than two"
    if kept_share - (untouched_share or 0.0) < params.min_kept:
        beside = "" if untouched_share is None else f", and {untouched_share:.1%} of their sources"
        return (
            f"the teacher's filter kept {kept_share:.1%} of them{beside}; min_kept asks for "
            f"{params.min_kept:.0%} more"
        )
    for name, what, least in (
        ("authentic", "the share of them that are no copies of real ones", params.min_authentic),
        ("coverage", "the share of real images that have a neighbour here", params.min_coverage),
    ):
        mine, theirs = getattr(synthetic, name), getattr(real, name)
        if wanted >= FEWEST_JUDGED and mine < least * theirs:
            return (
                f"{name}, {what}, is {mine:.3f}; for real images it is {theirs:.3f}, and "
                f"min_{name} asks for {least:g} times that"
            )
    return ""


def consistent(made: Made, data: Dataset) -> Made:
    """Images with their background beside them: the source's own, and the quotient of both."""
    if data.rules.background != "both":
        return made
    sources = made.pixels if made.sources is None else data.pixels[made.sources]
    images, backgrounds = (scaled(torch.from_numpy(x)) for x in (made.pixels, sources))
    whole = game.consistent(images, backgrounds, data.rules)
    return dataclasses.replace(made, pixels=as_pixels(whole).numpy())


def supplement(
    judge: Judge,
    data: Dataset,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.int64],
    params: Params,
) -> Supplement:
    """Images in seeded views, with the teacher's logits of each."""
    views = seen(pixels, data, params.seed, params.jitter)
    rows = np.arange(len(labels))
    logits = np.zeros((params.view_count, len(labels), len(data.classes)), np.float32)
    for view in range(params.view_count if len(labels) else 0):
        logits[view] = judge.logits(views.batch(rows, view).numpy())
    return Supplement(views, labels, logits)


def draw(path: Path, made: Made, data: Dataset, jury: Jury) -> None:
    """Some of the images: with what they were made of, or with the real ones nearest to them."""
    if made.sources is None:
        real = jury.resized(jury.task.wanted[:MOST_SEARCHED])
        pictures.beside_nearest(path, made.pixels, real, count=SHOWN)
        return
    sources, results = data.pixels[made.sources[:SHOWN]], made.pixels[:SHOWN]
    change = results.astype(np.int16) - sources
    rows = {
        "source": [*sources],
        "result": [*results],
        "difference": [*(change // 2 + 128).astype(np.uint8)],
    }
    pictures.grid(path, rows)


@dataclass(frozen=True)
class Result:
    """Images that a student may learn from, the real ones in their place, and all figures."""

    synthetic: Made
    real: NDArray[np.uint8]
    metrics: AugmentMetrics


def judged(params: Params, paths: Paths, data: Dataset, makers: Makers, jury: Jury) -> Result:
    """Make images, filter and compare them, and draw some of them."""
    task, step = jury.task, best_step(makers, jury, params.seed + 1)
    made = makers.by_step[step](params.images, params.seed)
    look = jury.look(made)
    likely = np.flatnonzero(jury.likely(made.labels, look.logits, params.keep_quantile))
    passed = made.take(likely)
    untouched_share = None
    if (logits := jury.untouched(made)) is not None:
        untouched_share = float(jury.likely(made.labels, logits, params.keep_quantile).mean())
    synthetic, of_real, of_other = jury.compare(look.take(likely))
    kept_share = len(likely) / len(made.labels)
    refused = refusal(params, kept_share, untouched_share, synthetic, of_real, len(task.wanted))
    draw(paths.samples, passed, data, jury)
    by_name = {"synthetic": look.take(likely), "real": jury.real, "other": jury.other}
    chances = {k: jury.probability(seen) for k, seen in by_name.items() if task.label is not None}
    pictures.histograms(paths.probabilities, chances, x=f"the teacher's probability of {task.to}")
    if refused:
        passed = passed.take(np.empty(0, np.int64))
    places = passed.sources
    if places is None or task.label is not None:
        shuffled = np.random.default_rng(params.seed).permutation(task.wanted)
        places = np.resize(shuffled, len(passed.labels))
    known: dict[str, Any] = {"snapshot": step} if step else {}
    if untouched_share is not None:
        known["untouched_share"] = untouched_share
    figures = AugmentMetrics(
        mode=params.mode,
        to=task.to,
        images=len(passed.labels),
        kept_share=kept_share,
        refused=refused or None,
        ended_early=makers.failure,
        **known,
        synthetic=synthetic,
        real=of_real,
        other=of_other,
    )
    return Result(passed, jury.resized(places), figures)


def nothing(params: Params, paths: Paths, data: Dataset, task: Task, reason: str) -> Result:
    """Where no images can be made: none, and why."""
    pictures.grid(paths.samples, {})
    pictures.histograms(paths.probabilities, {}, x=f"the teacher's probability of {task.to}")
    pixels = np.empty((0, *data.pixels.shape[1:]), np.uint8)
    figures = AugmentMetrics(
        mode=params.mode, to=task.to, images=0, kept_share=0.0, refused=reason, ended_early=None
    )
    return Result(Made(pixels, np.empty(0, np.int64), None), pixels, figures)


def run(params: Params, *, paths: Paths, resources: Resources) -> None:
    """Make images and judge them; write those that may be used beside their control."""
    device = resources.torch_device()
    data = load_dataset(paths.validated)
    task = find_task(params, data)
    teacher = load_teacher(paths.teacher).to(device)
    if params.judge_backbone in {member.spec.backbone for member in teacher.each()}:
        raise ParamsError(
            f"augment.judge_backbone = {params.judge_backbone!r}: the teacher is such a network, "
            "and would judge itself; expected another one"
        )
    count = 2 * params.images * (1 + params.view_count) + 2 * len(data.rows("val"))
    judge = Judge(
        data, teacher, params.judge_backbone, params.judge_out_indices, device, images=count
    )
    curves = pd.DataFrame({"step": []})
    if len(task.wanted) < FEWEST_WANTED:
        reason = (
            f"there are only {len(task.wanted)} real training images of {task.to}; to make others "
            f"like them takes {FEWEST_WANTED}"
        )
        result = nothing(params, paths, data, task, reason)
    else:
        try:
            makers = find_makers(params, data, task, device, paths.scratch)
        except TrainingDiverged as error:
            result = nothing(params, paths, data, task, str(error))
        else:
            curves = makers.curves
            jury = Jury(
                judge,
                data,
                task,
                image_px=makers.image_px,
                probe_c=params.probe_c,
                seed=params.seed,
            )
            result = judged(params, paths, data, makers, jury)
    labels = result.synthetic.labels
    for name, pixels in {"synthetic": result.synthetic.pixels, "real": result.real}.items():
        views = supplement(judge, data, pixels, labels, params)
        save_supplement(paths.augmented / name, pixels, views)
    curves.to_csv(paths.curves, index=False)
    report.write_metrics(paths.metrics, result.metrics)
    refused = result.metrics.refused
    said = f"refused: {refused}" if refused else f"{len(labels)} passed"
    say(f"synthetic images {said}")


if __name__ == "__main__":
    stage.main("augment", Params, Paths, run)
