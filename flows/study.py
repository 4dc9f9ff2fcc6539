"""A study: many runs of the graph with different params, and their results, row by row."""

import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import Field

from flows.graph import Graph
from flows.ui import flatten
from stages.core.results.every_stage import SCHEMA
from stages.core.results.report import read_metrics
from stages.core.runner.disk import settle
from stages.core.runner.errors import ParamsError
from stages.core.runner.params import Section, load_yaml, parse_section

# Columns of predictions that hold names: `01` is no number there.
NAMES = {"file_name": str, "group": str}
RESULTS = Path("data/reports/studies")
# The columns of a row that are not metrics.
TRIAL, PARAMS, COMMIT, STATE, MESSAGE = "trial", "params", "commit", "state", "message"
# Rows from before these were recorded lack them.
DATA, CODE, DEVICE = "data", "code", "device"
TEXTS = (TRIAL, "name", PARAMS, DATA, CODE, COMMIT, DEVICE, STATE, MESSAGE)
# What a metric's name ends with that is the AUROC within groups.
WITHIN = "_within_groups"
# No stage's metrics, but the table's own: recall of the last of two classes, at 5 % false alarms;
# and AUROC over those built-in cells that the raters agree on.
RECALL, AGREED = "recall_at_5_percent_false_alarms", "auroc_where_raters_agree"


class Study(Section):
    """A file in flows/studies/.

    Attributes:
        question: what the study asks.
        answer: what its rows say, in Markdown; a template, see flows/docs.py.
        target: the last stage of each trial.
        base: a params overlay for all trials.
        trials: a params overlay by name.
        grid: dotted key of params.yaml to its values; every trial is run with all combinations.
        show: heading to dotted metric (STAGE.KEY): the columns of the summary. Beside each AUROC
            stands the one within groups. `RECALL`, `AGREED` and the latter within groups, as
            STAGE.MODEL.KEY, are computed from the predictions.
        models: name to the metrics of one model (STAGE.MODEL), in which the keys of `show` are then
            looked up: the summary has a line for each. Without it, one line per trial.
        gains: heading to two models, the better one and its reference. A model is a name
            in the predictions of the stages, of the same trial, or of another one as TRIAL/NAME.
        front: headings of `show`, the higher the better: the summary says which trials are on the
            Pareto front, those that no other beats in one of them and equals in the rest.
    """

    question: str
    answer: str = ""
    target: str = "distill"
    base: dict[str, Any] = Field(default={})
    trials: dict[str, dict[str, Any]] = Field(min_length=1)
    grid: dict[str, list[Any]] = Field(default={})
    show: dict[str, str] = Field(min_length=1)
    models: dict[str, str] = Field(default={})
    gains: dict[str, list[str]] = Field(default={})
    front: list[str] = Field(default=[])

    @property
    def columns(self) -> dict[str, str]:
        """`show`, with the AUROC within groups after each AUROC."""
        columns = {}
        for heading, key in self.show.items():
            columns[heading] = key
            if key.split(".")[-1] == "auroc":
                columns[f"{heading}, within groups"] = key + WITHIN
        return columns

    @property
    def metrics(self) -> list[str]:
        """All metrics of the columns, as STAGE.KEY."""
        prefixes = [f"{prefix}." for prefix in self.models.values()] or [""]
        return [prefix + key for prefix in prefixes for key in self.columns.values()]


@dataclass(frozen=True)
class Inputs:
    """md5 of all that a trial's row depends on: params, data, and code."""

    params: str
    data: str
    code: str


@dataclass(frozen=True)
class Trial:
    """One run: `name`, its place on the grid, and the keys of params.yaml that differ."""

    name: str
    place: dict[str, Any]
    changes: dict[str, Any]

    @property
    def label(self) -> str:
        """Name and place as text, usable as a file name."""
        parts = [f"{key.split('.')[-1]}{value}" for key, value in self.place.items()]
        return re.sub(r"[^\w.+-]+", "_", "-".join([self.name, *parts]))


def _nested(key: str, value: Any) -> dict[str, Any]:
    *parents, last = key.split(".")
    nested = {last: value}
    for parent in reversed(parents):
        nested = {parent: nested}
    return nested


def _merged(*overlays: dict[str, Any]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for overlay in overlays:
        for key, value in overlay.items():
            both = isinstance(value, dict) and isinstance(merged.get(key), dict)
            merged[key] = _merged(merged[key], value) if both else value
    return merged


def trials(study: Study) -> list[Trial]:
    """All trials, place by place of the grid: trials of one place share most stages."""
    places = [
        dict(zip(study.grid, values, strict=True))
        for values in itertools.product(*study.grid.values())
    ]
    return [
        Trial(
            name,
            place,
            _merged(study.base, changes, *(_nested(k, v) for k, v in place.items())),
        )
        for place in places
        for name, changes in study.trials.items()
    ]


class Results:
    """The rows of a study so far, and every model's predictions; both are written as they come."""

    def __init__(self, folder: Path, name: str) -> None:
        self._rows = folder / f"{name}.csv"
        self._predictions = folder / f"{name}.parquet"

    @property
    def rows(self) -> pd.DataFrame:
        """One row per trial: what was run, how it ended, its place on the grid, all metrics."""
        if not self._rows.exists():
            return pd.DataFrame(columns=list(TEXTS))
        kinds = dict.fromkeys(TEXTS, str)
        rows = pd.read_csv(self._rows, keep_default_na=False, na_values=[""], dtype=kinds)
        texts = rows.reindex(columns=list(TEXTS)).astype(object).fillna("")
        return pd.concat([texts, rows.drop(columns=list(TEXTS), errors="ignore")], axis=1)

    @property
    def predictions(self) -> pd.DataFrame:
        """One row per trial and test image, as `predictions.write` has it; logits as float16."""
        return pd.read_parquet(self._predictions) if self._predictions.exists() else pd.DataFrame()

    def is_done(self, trial: Trial, inputs: Inputs) -> bool:
        """Whether this trial has succeeded with these params and data.

        A row from other code counts as done: the summary names such rows, and deleting them makes
        them run again. So does a row that does not record its data.
        """
        rows = self.rows
        same = (rows[TRIAL] == trial.label) & (rows[PARAMS] == inputs.params)
        same &= rows[DATA].isin([inputs.data, ""])
        return bool((rows.loc[same, STATE] == "done").any())

    def add(self, trial: Trial, row: dict[str, Any], logits: pd.DataFrame | None) -> None:
        """Write a trial's row, in place of an older one."""
        self._rows.parent.mkdir(parents=True, exist_ok=True)
        # The predictions first: a row vouches for both.
        if logits is not None:
            old = self.predictions
            others = old[old[TRIAL] != trial.label] if len(old) else old
            new = logits.assign(**{TRIAL: trial.label})
            floats = new.select_dtypes("float64").columns
            everything = pd.concat([others, new.astype(dict.fromkeys(floats, "float16"))])
            _replace(self._predictions, lambda path: everything.to_parquet(path, index=False))
        rows = self.rows
        new = pd.DataFrame([{TRIAL: trial.label, "name": trial.name, **trial.place, **row}])
        table = pd.concat([rows[rows[TRIAL] != trial.label].astype(object), new.astype(object)])
        _replace(self._rows, lambda path: table.to_csv(path, index=False, lineterminator="\n"))


def _replace(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".partial.{path.name}")
    write(partial)
    settle(partial, path)


def collect(graph: Graph) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Metrics and predictions of all stages of a graph that has been run.

    Returns: metrics as STAGE.KEY, and one table with the models of all stages, or None.

    Raises: DataError for metrics that other code wrote.
    """
    metrics: dict[str, Any] = {}
    tables = []
    for file in (file for node in graph.nodes for file in node.metrics):
        stage = file.parent.name
        content = read_metrics(file, SCHEMA[stage])
        metrics |= flatten(content.model_dump(by_alias=True, exclude_unset=True), f"{stage}.")
        if (path := file.with_name("predictions.csv")).exists():
            tables.append(pd.read_csv(path, dtype=NAMES, keep_default_na=False, na_values=[""]))
    if not tables:
        return metrics, None
    merged = tables[0]
    for table in tables[1:]:
        new = ["file_name", *(c for c in table if c not in merged)]
        merged = merged.merge(table[new], on="file_name", validate="one_to_one")
    return metrics, merged


def load(path: Path) -> Study:
    """A study's file. Raises: ParamsError."""
    study = parse_section({"study": load_yaml(path)}, "study", Study, source=path.name)
    for name, changes in study.trials.items():
        if both := study.grid.keys() & flatten(changes).keys():
            raise ParamsError(
                f"{path.name}: study.trials.{name}: sets {', '.join(sorted(both))}, which the grid "
                "would replace; take it out of one of the two"
            )
    return study
