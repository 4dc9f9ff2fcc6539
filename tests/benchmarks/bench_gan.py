"""What a GAN's images are worth after so many seconds of training, on the default run's cells.

The translation of functional cells to defective ones, as in the project's params. After each time,
300 images of the averaged generator, all of them, are judged as `augment` does: how well a probe
that learned the class from them alone finds it in real validation cells, within modules; which
share of real defective cells has one of them for a neighbour; and the teacher's probability of a
defect. Beside them real defective cells, and functional ones as they are.
"""

import copy
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from stages import augment
from stages.core.gan import translate
from stages.core.gan.judge import Judge, Jury, Seen
from stages.core.gan.training import Players
from stages.core.nets.files import load_teacher
from tests.benchmarks.project import TEACHER, default_run, section
from tests.benchmarks.record import Result, quiet

SECONDS = (30, 60, 120, 300)
IMAGES = 300


def figures(jury: Jury, seen: Seen, name: str, what: str) -> Iterator[Result]:
    """The figures of some images."""
    score = jury.score(seen.features)
    assert score is not None
    assert score.auroc_within_groups is not None
    mine, _, _ = jury.compare(seen)
    assert mine is not None
    for key, value, meaning in (
        ("probe", 100 * score.auroc_within_groups, "AUROC within groups of a probe taught by them"),
        ("coverage", 100 * mine.coverage, "real images that have one for a neighbour"),
        ("probability", 100 * float(jury.probability(seen).mean()), "teacher's mean probability"),
    ):
        yield Result(f"gan_{name}_{key}", f"{what}: {meaning}", [value], unit="%")


def run(work: Path, scale: float) -> Iterator[Result]:
    """Train once, and look at it after each time."""
    data, params, cpu = default_run(), section("augment", augment.Params), torch.device("cpu")
    task = augment.find_task(params, data)
    game = translate.game(params.translate, data, task)
    players = Players(game, params.translate, params.seed, cpu)
    kept: dict[int, nn.Module] = {}
    spent, steps = 0.0, 0
    for seconds in SECONDS:
        while spent < scale * seconds:
            started = time.perf_counter()
            players.step(steps)
            spent, steps = spent + time.perf_counter() - started, steps + 1
        kept[seconds] = copy.deepcopy(players.average).eval()
        print(f"  {steps} steps in {spent:.0f} s", flush=True)
    rate = steps * params.translate.batch_size / spent
    what = f"training on cells of {data.image_px} px, both players"
    yield Result("gan_training", what, [rate], unit="images/s")
    with quiet():
        teacher, outs = load_teacher(TEACHER), params.judge_out_indices
        judge = Judge(data, teacher, params.judge_backbone, outs, cpu, images=10 * IMAGES)
        jury = Jury(
            judge, data, task,
            image_px=data.image_px, probe_c=params.probe_c, seed=params.seed,
        )  # fmt: skip
    yield from figures(jury, jury.real, "real", "real defective cells")
    yield from figures(jury, jury.other, "functional", "functional cells as they are")
    for seconds, generator in kept.items():
        made = translate.maker(generator, data, task, cpu)(IMAGES, params.seed)
        yield from figures(
            jury, jury.look(made), f"{seconds}_s", f"translated, after {seconds} s of training"
        )
