"""Distillation on cached views against loops that run the teacher in every step.

All train the project's student from the same start, with its params but for the number of epochs,
on half of the default run's training modules, and are judged on all of its test images, once,
after the clock has stopped.

- cached, the project's way: the teacher's logits of VIEWS views, once, what the student's frozen
  layers make of them, once, then the epochs; all of that counts;
- live: the same loop, but teacher and frozen layers run in every step, on a new view every epoch;
- torchdistill, from the package registry: its DistillationBox with KDLoss on the same networks and
  packed images, its usual DataLoader with two workers, the same optimizer and schedule.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import RandomSampler
from torchdistill.core.distillation import DistillationBox

from stages import distill, targets
from stages.core.dataset.data import Dataset
from stages.core.dataset.views import Views
from stages.core.nets.files import load_teacher
from stages.core.nets.inference import logits_of
from stages.core.nets.net import Ensemble, Net
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.progress import Progress
from stages.core.training.fit import WARM_UP, fit
from stages.core.training.inputs import Inputs
from stages.core.training.student import distillation_loss
from stages.core.training.targets import Targets, load_targets, save_targets
from tests.benchmarks.project import TEACHER, default_run, resources, section, work_paths
from tests.benchmarks.record import Result, interleaved, quiet, ratios, seconds

SHARE, VIEWS, EPOCHS, ROUNDS = 0.5, 4, 24, 3


@dataclass(frozen=True)
class Once(Views):
    """Views that teacher and student ask for one after the other, each made once."""

    last: dict[tuple[bytes, int], torch.Tensor] = field(default_factory=dict)

    def batch(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        key = (rows.tobytes(), view)
        if key not in self.last:
            self.last.clear()
            self.last[key] = super().batch(rows, view)
        return self.last[key]


class Live(Targets):
    """A teacher that is asked in every step."""

    teacher: Ensemble

    @classmethod
    def asked(cls, teacher: Ensemble, views: Views, count: int) -> "Live":
        """`count` views, none of them known beforehand."""
        nothing = np.empty((0, len(teacher.spec.classes)), np.float32)
        live = cls(views, count, nothing, torch.empty(0), None, np.empty(0, np.int64))
        object.__setattr__(live, "teacher", teacher)
        return live

    def logits(self, rows: NDArray[np.int64], view: int) -> torch.Tensor:
        with torch.no_grad():
            logits: torch.Tensor = self.teacher(self.views.batch(rows, view))
        return logits


class RandomViews(TorchDataset[tuple[torch.Tensor, int]]):
    """Training images as torchdistill wants them: one at a time, another view each time."""

    def __init__(self, data: Dataset, views: Views) -> None:
        self.data, self.views, self.rows = data, views, data.rows("train")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        row = self.rows[index : index + 1]
        one = Views(self.data.pixels[row], int(torch.randint(2**31, ())), self.views.jitter, "all")
        return one.batch(np.array([0]), 0)[0], int(self.data.labels[row[0]])


class Distillation:
    """The student's training, in three ways; `seed` differs from round to round."""

    def __init__(self, work: Path, data: Dataset, epochs: int) -> None:
        self.work, self.data, self.seed = work, data, 0
        params = section("distill", distill.Params)
        recipe = params.recipe.model_copy(update={"epochs": epochs})
        self.params = params.model_copy(update={"recipe": recipe})
        self.teacher = load_teacher(TEACHER)
        self.views = Views(data.pixels, seed=2, jitter=0.2, symmetries="all")
        self.accuracies: dict[str, list[float]] = {}

    def _seconds(self, name: str, train: Callable[[Path], Net]) -> float:
        """Time one way, and measure what it has trained."""
        net: list[Net] = []
        with tempfile.TemporaryDirectory(dir=self.work) as folder, quiet():
            elapsed = seconds(lambda: net.append(train(Path(folder))))
        test = self.data.rows("test")
        logits = logits_of(net[0], self.views.plain, test)
        accuracy = (logits.argmax(1) == self.data.labels[test]).mean()
        self.accuracies.setdefault(name, []).append(100 * float(accuracy))
        return elapsed

    def _untrained(self, folder: Path, given: Targets) -> Net:
        paths = work_paths(distill.Paths, folder)
        trainer = distill.StudentTrainer(self.params, paths, self.data, given, resources())
        return trainer.untrained(self.seed)

    def _targets(self, folder: Path) -> Targets:
        """What the targets stage makes, but for the images as they are."""
        train = self.data.rows("train")
        images = VIEWS * len(train)
        frozen = targets.FrozenTeacher(self.teacher, self.views, images=images, with_features=False)
        progress = Progress("teacher logits", images)
        outputs = (frozen.outputs(train, view, progress) for view in range(VIEWS))
        plain = np.zeros((len(self.data.labels), len(self.data.classes)), np.float32)
        save_targets(folder, self.views, VIEWS, outputs, plain)
        return load_targets(folder, self.data)

    def _fit(self, folder: Path, given: Targets, most_gb: float) -> Net:
        net, recipe = self._untrained(folder, given), self.params.recipe
        train = self.data.rows("train")
        views, nothing = min(given.view_count, recipe.epochs), train[:0]
        inputs = Inputs(
            net, given.views, train, views, folder / "kept", plain=nothing, most_gb=most_gb
        )
        fit(
            net,
            distillation_loss(self.data, given, inputs, self.params),
            train,
            recipe,
            seed=self.seed,
            evaluate=lambda _: {},
            checkpoint=Checkpoint(folder, "net"),
            what="student",
        )
        return net

    def cached(self) -> float:
        """Seconds of the project's way; a new seed."""
        self.seed += 1
        return self._seconds("cached", lambda at: self._fit(at, self._targets(at / "made"), 1e3))

    def live(self) -> float:
        """Seconds with a live teacher."""
        views = Once(self.views.pixels, self.views.seed, self.views.jitter, "all")
        asked = Live.asked(self.teacher, views, self.params.recipe.epochs)
        return self._seconds("live", lambda at: self._fit(at, asked, 0.0))

    def torchdistill(self) -> float:
        """Seconds of torchdistill."""
        return self._seconds("torchdistill", self._in_a_box)

    def _in_a_box(self, folder: Path) -> Net:
        params, recipe = self.params, self.params.recipe
        torch.manual_seed(self.seed)
        asked = Live.asked(self.teacher, self.views, recipe.epochs)
        net = self._untrained(folder, asked)
        images = RandomViews(self.data, self.views)
        steps = recipe.epochs * -(-len(images) // recipe.batch_size)
        both = {f"{who}_module_path": "." for who in ("student", "teacher")}
        both |= {f"{who}_module_io": "output" for who in ("student", "teacher")}
        loss = {"temperature": params.temperature, "alpha": 1 - params.alpha}
        box = DistillationBox(
            self.teacher,
            net,
            {"train": images},
            {
                "num_epochs": recipe.epochs,
                "train_data_loader": {
                    "dataset_id": "train",
                    "sampler": {"class_or_func": RandomSampler},
                    "kwargs": {"batch_size": recipe.batch_size, "num_workers": 2},
                },
                "teacher": {"forward_proc": "forward_batch_only", "requires_grad": False},
                "student": {"forward_proc": "forward_batch_only"},
                "optimizer": {
                    "key": "AdamW",
                    "kwargs": {"lr": recipe.learning_rate, "weight_decay": recipe.weight_decay},
                },
                "scheduler": {
                    "key": "OneCycleLR",
                    "kwargs": {
                        "max_lr": recipe.learning_rate, "total_steps": steps,
                        "pct_start": WARM_UP,
                    },
                    "scheduling_step": 1,
                },
                "criterion": {
                    "key": "WeightedSumLoss",
                    "kwargs": {
                        "sub_terms": {
                            "kd": {
                                "criterion": {"key": "KDLoss", "kwargs": {**both, **loss}},
                                "weight": 1.0,
                            }
                        }
                    },
                },
            },
            torch.device("cpu"), [], False, 1,
        )  # fmt: skip
        for epoch in range(recipe.epochs):
            box.pre_epoch_process(epoch=epoch)
            for batch, labels, more in box.train_data_loader:
                box.pre_forward_process()
                box.post_forward_process(box.forward_process(batch, labels, more))
            box.post_epoch_process()
        return net

    def lost(self, other: str) -> float:
        """Points of accuracy that the cached way loses against another, mean of the rounds."""
        return float(np.mean(self.accuracies[other]) - np.mean(self.accuracies["cached"]))


def run(work: Path, scale: float) -> list[Result]:
    """Measure."""
    epochs = max(round(EPOCHS * scale), 1)
    benchmark = Distillation(work, default_run(SHARE), epochs)
    cached, *others = interleaved(ROUNDS, benchmark.cached, benchmark.live, benchmark.torchdistill)
    results = []
    for name, other, goal in zip(("live", "torchdistill"), others, (3.0, None), strict=True):
        what = f"{epochs} epochs of {len(benchmark.data.rows('train'))} cells, {VIEWS} cached views"
        results += [
            Result(f"distill_{name}", f"{what}, targets included: {name} over them",
                   ratios(other, cached), goal),
            Result(f"distill_{name}_accuracy", f"{what}: accuracy lost against {name}",
                   [benchmark.lost(name)], goal and 0.5, unit="points"),
        ]  # fmt: skip
    print(f"  accuracies in per cent: {benchmark.accuracies}", flush=True)
    return results
