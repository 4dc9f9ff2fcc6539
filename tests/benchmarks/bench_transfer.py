"""Transfer learning with what is frozen computed once, against computing it in every epoch.

- probe: a logistic regression on frozen features, against a linear layer that learns for 20 epochs
  behind the frozen backbone;
- prefix: fine-tuning the teacher above a freeze boundary, on four views, from stored activations,
  against running the frozen layers in every step. Storing them counts. How much there is to win
  depends on the boundary: what lies above it must be run forwards and backwards in any case, which
  bounds the ratio; so it is measured for three of them: two that leave the top layer group,
  or two of them, to learn, and once the project's;
- folding: fine-tuning with BatchNorm folded into the convolutions (folding.py), against running it
  by itself: at the project's boundary from stored activations, and with nothing frozen.

On a part of the default run's training modules, large enough that what is stored comes from ONNX
Runtime, as it does in the default run; in every step it is PyTorch that runs the frozen layers.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from torch.nn import functional as F

from stages import teacher
from stages.core.dataset.data import Dataset
from stages.core.nets import folding
from stages.core.nets.inference import batched
from stages.core.nets.net import Net
from stages.core.runner.checkpoint import Checkpoint
from stages.core.training.fit import fit
from stages.core.training.inputs import Inputs
from tests.benchmarks.project import default_run, resources, section, work_paths
from tests.benchmarks.record import Result, interleaved, quiet, ratios, seconds

SHARE, PROBE_EPOCHS, EPOCHS, FEW_EPOCHS, VIEWS, ROUNDS = 0.4, 20, 24, 4, 4, 3


class Transfer:
    """One network's transfer, in the project's ways and in the plain ones."""

    def __init__(self, work: Path, data: Dataset, device: str = "cpu") -> None:
        self.work, self.data = work, data
        params = section("teacher", teacher.Params, dropout=0.0)
        paths = work_paths(teacher.Paths, work)
        self.trainer = teacher.TeacherTrainer(params, paths, data, resources(device))
        self.train = data.rows("train")

    def probed(self) -> Net:
        """A network with a new head that has learned, its backbone as it came."""
        with quiet():
            return self.trainer.probe(0)

    def probe(self) -> float:
        """Seconds of the project's probe."""
        with quiet():
            return seconds(lambda: self.trainer.probe(0))

    def plain_probe(self) -> float:
        """Seconds of a linear layer's training, the backbone run in every step."""
        net = self.probed()
        views, labels = self.trainer.views, torch.from_numpy(self.data.labels)
        optimizer = torch.optim.AdamW(net.head.parameters(), 1e-3)

        def epochs() -> None:
            for _ in range(PROBE_EPOCHS):
                for rows in batched(self.train, 32):
                    with torch.no_grad():
                        features = net.features(views.plain(rows))
                    optimizer.zero_grad()
                    F.cross_entropy(net.head(features), labels[rows]).backward()
                    optimizer.step()

        return seconds(epochs)

    def tune(self, net: Net, epochs: int, frozen: int, most_gb: float) -> float:
        """Seconds of fine-tuning above the lowest `frozen` layer groups."""
        net.freeze_lowest(frozen)
        recipe = self.trainer.params.recipe.model_copy(update={"epochs": epochs})

        def train(folder: Path) -> None:
            prefix = Inputs(
                net, self.trainer.views, self.train, VIEWS, folder / "kept",
                plain=self.train[:1], most_gb=most_gb,
            )  # fmt: skip
            loss = self.trainer.params.loss(self.data, prefix, VIEWS, 0)
            fit(
                net,
                loss,
                self.train,
                recipe,
                seed=0,
                evaluate=lambda _: {},
                checkpoint=Checkpoint(folder, "net"),
                what="fine-tuning",
            )

        with tempfile.TemporaryDirectory(dir=self.work) as folder, quiet():
            return seconds(lambda: train(Path(folder)))

    def tune_apart(self, net: Net, epochs: int, frozen: int) -> float:
        """Seconds of the same from stored activations, without folding."""
        with mock.patch.object(folding, "pairs", return_value=[]):
            return self.tune(net, epochs, frozen, 1e3)


def run(work: Path, scale: float) -> Iterator[Result]:
    """Measure; an hour in all, so each result is written as it comes."""
    transfer = Transfer(work, default_run(SHARE))
    epochs = max(round(EPOCHS * scale), 1)
    groups = len(transfer.probed().layer_groups())
    few = transfer.trainer.params.frozen_groups
    cells = f"{len(transfer.train)} cells"
    for name, frozen, rounds in (
        ("prefix_top", groups - 1, ROUNDS),
        ("prefix", groups - 2, ROUNDS),
        ("prefix_default", few, 1),
    ):

        def tune(most_gb: float, frozen: int = frozen) -> float:
            return transfer.tune(transfer.probed(), epochs, frozen, most_gb)

        slow, fast = interleaved(rounds, lambda: tune(0.0), lambda: tune(1e3))
        what = f"fine-tuning for {epochs} epochs, {cells}, {frozen} of {groups} layer groups frozen"
        yield Result(name, f"{what}: run in every step over stored", ratios(slow, fast), 3.0)
    epochs = max(round(FEW_EPOCHS * scale), 1)
    for name, frozen in (("folding_default", few), ("folding", 0)):

        def apart(frozen: int = frozen) -> float:
            return transfer.tune_apart(transfer.probed(), epochs, frozen)

        def together(frozen: int = frozen) -> float:
            return transfer.tune(transfer.probed(), epochs, frozen, 1e3)

        slow, fast = interleaved(ROUNDS, apart, together)
        what = f"fine-tuning for {epochs} epochs, {cells}, {frozen} of {groups} layer groups frozen"
        yield Result(name, f"{what}: BatchNorm by itself over folded", ratios(slow, fast))
    slow, fast = interleaved(ROUNDS, transfer.plain_probe, transfer.probe)
    what = f"{PROBE_EPOCHS} epochs, {cells}: a frozen backbone over its features, computed once"
    yield Result("probe", what, ratios(slow, fast), 10.0)
