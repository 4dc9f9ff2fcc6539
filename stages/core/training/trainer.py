"""What teacher, student and refinement share in training: inputs, loop, checkpoint, live curves."""

from pathlib import Path
from typing import Protocol

import pandas as pd

from stages.core.dataset.data import Dataset, Rows
from stages.core.dataset.views import Views
from stages.core.nets.net import Net
from stages.core.results import metrics, pictures
from stages.core.runner.checkpoint import Checkpoint
from stages.core.runner.runtime import Resources
from stages.core.training.fit import Loss, Recipe, fit
from stages.core.training.inputs import Inputs


class TrainingPaths(Protocol):
    """The paths of a stage that trains networks."""

    @property
    def cache(self) -> Path: ...
    @property
    def scratch(self) -> Path: ...
    @property
    def curves(self) -> Path: ...
    @property
    def picture(self) -> Path: ...


class Trainer:
    """Trains the networks of one stage, one after the other."""

    def __init__(
        self, data: Dataset, views: Views, paths: TrainingPaths, resources: Resources
    ) -> None:
        self.data, self.views = data, views
        self.device = resources.torch_device()
        self._paths, self._most_gb = paths, resources.cache_gb
        self._histories: list[pd.DataFrame] = []

    def inputs(self, net: Net, rows: Rows, view_count: int) -> Inputs:
        """The network's inputs: views 0 to `view_count` - 1 of `rows`, and the validation split."""
        return Inputs(
            net,
            self.views,
            rows,
            view_count,
            self._paths.cache,
            plain=self.data.rows("val"),
            most_gb=self._most_gb,
        )

    def train(
        self,
        net: Net,
        loss: Loss,
        rows: Rows,
        recipe: Recipe,
        *,
        inputs: Inputs,
        seed: int,
        name: str,
        what: str,
    ) -> None:
        """Train `net` in place; see `fit`. The curves grow by its history, epoch by epoch.

        Args:
            name: of the network in the curves and of its checkpoint, unique within the stage.
            what: names the work in progress lines.
        """
        val = self.data.rows("val")

        def evaluate(net: Net) -> dict[str, float]:
            return {"val_auroc": metrics.auroc(inputs.evaluate(net, val), self.data.labels[val])}

        history = fit(
            net,
            loss,
            rows,
            recipe,
            seed=seed,
            evaluate=evaluate,
            checkpoint=Checkpoint(self._paths.scratch, name.replace(", ", "_").replace(" ", "_")),
            what=what,
            watch=lambda history: self._draw([*self._histories, history.assign(net=name)]),
        )
        self._histories.append(history.assign(net=name))

    def finish(self) -> None:
        """Write curves and picture also when nothing was trained."""
        nothing = pd.DataFrame({"epoch": [], "loss": [], "val_auroc": [], "net": []})
        self._draw(self._histories or [nothing])

    def _draw(self, histories: list[pd.DataFrame]) -> None:
        pictures.learning_curves(self._paths.curves, self._paths.picture, histories)
