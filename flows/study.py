"""A study: many runs of the graph with different params, and the tables of their results."""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from flows.graph import Graph
from flows.ui import flatten
from stages.core.results import predictions
from stages.core.results.escape import markdown_cell
from stages.core.results.metrics import Paired, mean_paired_gain
from stages.core.results.report import read_metrics
from stages.core.results.schema import SCHEMA, Gain
from stages.core.runner.disk import settle
from stages.core.runner.params import Section, load_yaml, parse_section

# Columns of predictions that hold names: `01` is no number there.
NAMES = {"file_name": str, "group": str}
RESULTS = Path("data/reports/studies")
# The columns of a row that are not metrics.
TRIAL, PARAMS, COMMIT, STATE, MESSAGE = "trial", "params", "commit", "state", "message"
# Rows from before these were recorded lack them.
DATA, CODE, DEVICE = "data", "code", "device"
TEXTS = (TRIAL, "name", PARAMS, DATA, CODE, COMMIT, DEVICE, STATE, MESSAGE)
# Longer lists of names give their number instead.
MOST_NAMES = 6


class Study(Section):
    """A file in flows/studies/.

    Attributes:
        question: what the study asks.
        answer: what its rows say, in Markdown; a template, see flows/docs.py.
        target: the last stage of each trial.
        base: a params overlay for all trials.
        trials: a params overlay by name.
        grid: dotted key of params.yaml to its values; every trial is run with all combinations.
        show: heading to dotted metric (STAGE.KEY): the columns of the summary.
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


class Figures:
    """What the rows of a study say, trial by trial.

    Attributes:
        done, failed: rows of the study's trials, by how they ended.
    """

    def __init__(self, study: Study, results: Results) -> None:
        self._study = study
        rows = results.rows
        rows = rows[rows[TRIAL].isin([trial.label for trial in trials(study)])]
        self.failed = rows[rows[STATE] != "done"]
        self.done = rows[rows[STATE] == "done"].copy()
        places = [tuple(str(row.get(k)) for k in study.grid) for _, row in self.done.iterrows()]
        self.done["_place"] = places
        self._row_at = {(row["name"], row["_place"]): row for _, row in self.done.iterrows()}
        self._predictions = results.predictions

    def mean(self, trial: str, metric: str) -> str:
        """Mean and deviation of a metric over the grid; a dash where it was not measured.

        Args:
            metric: STAGE.KEY.
        """
        rows = self.done[self.done["name"] == trial]
        if metric not in rows or rows[metric].isna().all():
            return "-"
        numbers = rows[metric].astype(float)
        if numbers.nunique() == 1:
            return f"{numbers.iloc[0]:,.3f}" if numbers.iloc[0] % 1 else f"{numbers.iloc[0]:,.0f}"
        return f"{numbers.mean():.3f} ± {numbers.std():.3f}"

    def gain(self, trial: str, heading: str) -> Gain | None:
        """Mean paired gain of one model over another, over seeds and the places on the grid.

        Returns: None if a model would be compared with itself, if one of the two was not run, or
            if they were tested on different images.
        """
        models, rows = self._models(trial, heading), self._rows_of_pairs(trial, heading)
        if models[0] == models[1] or not rows:
            return None
        pairs = []
        numbers: dict[str, int] = {}
        for both in rows:
            tables = [
                self._predictions[self._predictions[TRIAL] == row[TRIAL]].dropna(axis=1)
                for row in both
            ]
            left, right = (
                predictions.of_all_seeds(table, model.split("/")[1])
                for table, model in zip(tables, models, strict=True)
            )
            if tables[0]["file_name"].tolist() != tables[1]["file_name"].tolist():
                return None
            labels = tables[0]["label"].to_numpy(np.int64)
            # By name: in each trial's own numbers, one group may have several, and two the same.
            groups = np.array([numbers.setdefault(g, len(numbers)) for g in tables[0]["group"]])
            # A single teacher is compared with the students of all seeds.
            count = max(len(left), len(right))
            seeds = zip(*(x * (count // len(x)) for x in (left, right)), strict=True)
            pairs += [Paired(one, other, labels, groups) for one, other in seeds]
        return mean_paired_gain(pairs)

    def differences(self, trial: str, heading: str) -> set[str]:
        """How the two rows of a gain's pairs differ besides the trial: in code, in device.

        If the code is not recorded, another commit counts as other code.
        """
        different = set()
        for one, other in self._rows_of_pairs(trial, heading):
            if one[DEVICE] != other[DEVICE]:
                different.add(DEVICE)
            codes = [row[CODE] or f"commit {row[COMMIT]}" for row in (one, other)]
            if codes[0] != codes[1]:
                different.add(CODE)
        return different

    def _models(self, trial: str, heading: str) -> list[str]:
        return [m if "/" in m else f"{trial}/{m}" for m in self._study.gains[heading]]

    def _rows_of_pairs(self, trial: str, heading: str) -> list[tuple[pd.Series, pd.Series]]:
        """The two rows of each place on the grid; no pairs if any row is missing."""
        names = [model.split("/")[0] for model in self._models(trial, heading)]
        pairs = []
        for place in self.done.loc[self.done["name"] == trial, "_place"]:
            if any((name, place) not in self._row_at for name in names):
                return []
            one, other = (self._row_at[name, place] for name in names)
            pairs.append((one, other))
        return pairs


def _markdown(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [head, "|" + "---|" * len(rows[0]), *rest]


def _front(study: Study, done: pd.DataFrame) -> set[str]:
    """Names of the trials on the Pareto front of `study.front`, by their means."""
    keys = [study.show[heading] for heading in study.front]
    means = (
        done.reindex(columns=["name", *keys])
        .groupby("name")
        .agg(lambda column: column.astype(float).mean())
        .dropna()
    )
    is_beaten = [
        ((means >= row).all(axis=1) & (means > row).any(axis=1)).any()
        for _, row in means.iterrows()
    ]
    return set(means.index[~np.array(is_beaten, dtype=bool)])


def summary(study: Study, results: Results, planned: Mapping[str, Inputs] | None = None) -> str:
    """The study's table as Markdown: mean and deviation over the grid, paired gains, 95 %.

    Args:
        planned: what each trial depends on now, by its label; rows that ran with something
            else are named. Without it, no row is compared with the present.
    """
    figures = Figures(study, results)
    done = figures.done
    table, gains = [], []
    on_front = _front(study, done) if study.front else set()
    for name in study.trials:
        runs = int((done["name"] == name).sum())
        if not runs:
            continue
        start = {"trial": name, "runs": str(runs)}
        gain = {heading: str(figures.gain(name, heading) or "-") for heading in study.gains}
        for model, prefix in study.models.items():
            cells = {h: figures.mean(name, f"{prefix}.{key}") for h, key in study.show.items()}
            table.append({**start, "model": model, **cells})
        if study.models:
            gains.append({"trial": name, **gain})
        else:
            cells = {heading: figures.mean(name, key) for heading, key in study.show.items()}
            if study.front:
                cells["on the front"] = "yes" if name in on_front else "no"
            table.append({**start, **cells, **gain})
    lines = _markdown(table) + (["", *_markdown(gains)] if gains and study.gains else [])
    over = ", ".join(study.grid)
    commits = ", ".join(dict.fromkeys(commit for commit in done[COMMIT] if commit))
    by = f" (commits {commits})" if commits else ""
    count = len(trials(study))
    lines += ["", f"{len(done)} of {count} trials{by}; mean ± deviation over {over}."]
    lines += _warnings(figures, study, planned)
    lines += [
        f"{row[TRIAL]} failed: {markdown_cell(row[MESSAGE])}"
        for _, row in figures.failed.iterrows()
    ]
    return "\n".join(lines)


def _warnings(
    figures: Figures, study: Study, planned: Mapping[str, Inputs] | None
) -> Iterable[str]:
    """What a reader has to know about the rows, one line per warning."""
    done = figures.done
    for kind, word in ((CODE, "code"), (DEVICE, "devices")):
        unlike = [
            f"{heading} ({name})"
            for heading in study.gains
            for name in study.trials
            if kind in figures.differences(name, heading)
        ]
        if unlike:
            yield f"Gains that pair rows of different {word}: {_names(unlike, 'gains')}."
    unknown = done[(done[CODE] == "") | (done[DATA] == "")][TRIAL].tolist()
    if unknown:
        yield f"Code and data are not recorded for: {_names(unknown, 'trials')}."
    if planned is None:
        return
    for kind in ("params", "data", "code"):
        stale = [
            row[TRIAL]
            for _, row in done.iterrows()
            if row[kind] not in ("", getattr(planned[row[TRIAL]], kind))
        ]
        if stale:
            again = "; delete their rows to run them again" if kind == "code" else ""
            yield f"Run with {kind} that changed since: {_names(stale, 'trials')}{again}."


def _names(names: list[str], what: str) -> str:
    return ", ".join(names) if len(names) <= MOST_NAMES else f"{len(names)} {what}"


def load(path: Path) -> Study:
    """A study's file. Raises: ParamsError."""
    return parse_section({"study": load_yaml(path)}, "study", Study, source=path.name)
