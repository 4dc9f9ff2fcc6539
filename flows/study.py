"""A study: many runs of the graph with other params, and the tables that come of them."""

import itertools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from flows.graph import Graph
from flows.ui import flatten
from stages.core.results import predictions
from stages.core.results.metrics import Paired, mean_paired_gain
from stages.core.runner.params import Section, load_yaml, parse_section

RESULTS = Path("data/reports/studies")
# Columns of the table of rows that are no metrics.
TRIAL, PARAMS, COMMIT, STATE, MESSAGE = "trial", "params", "commit", "state", "message"


class Study(Section):
    """A file in flows/studies/.

    Attributes:
        question: what the study is to answer.
        target: the last stage of each trial.
        base: a params overlay for all trials.
        trials: a params overlay by name.
        grid: dotted key of params.yaml to its values; every trial is run with all combinations.
        show: heading to dotted metric (STAGE.KEY): the columns of the summary.
        models: name to the metrics of one model (STAGE.MODEL), in which the keys of `show` are then
            looked up: the summary has a line for each. Without, a line a trial.
        gains: heading to two models, the better one and what it is held against. A model is a name
            in the predictions of the stages, of the same trial, or of another one as TRIAL/NAME.
        front: headings of `show`, the higher the better: the summary says which trials are on the
            Pareto front, those that no other beats in one of them and equals in the rest.
    """

    question: str
    target: str = "distill"
    base: dict[str, Any] = Field(default={})
    trials: dict[str, dict[str, Any]] = Field(min_length=1)
    grid: dict[str, list[Any]] = Field(default={})
    show: dict[str, str] = Field(min_length=1)
    models: dict[str, str] = Field(default={})
    gains: dict[str, list[str]] = Field(default={})
    front: list[str] = Field(default=[])


@dataclass(frozen=True)
class Trial:
    """One run: `name`, its place on the grid, and the keys of params.yaml that differ."""

    name: str
    place: dict[str, Any]
    changes: dict[str, Any]

    @property
    def label(self) -> str:
        """Name and place as text, fit for a file's name."""
        parts = [f"{key.split('.')[-1]}{value}" for key, value in self.place.items()]
        return re.sub(r"[^\w.+-]+", "_", "-".join([self.name, *parts]))


def _nested(key: str, value: Any) -> dict[str, Any]:
    *parents, last = key.split(".")
    made = {last: value}
    for parent in reversed(parents):
        made = {parent: made}
    return made


def _merged(*overlays: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for overlay in overlays:
        for key, value in overlay.items():
            both = isinstance(value, dict) and isinstance(made.get(key), dict)
            made[key] = _merged(made[key], value) if both else value
    return made


def trials(study: Study) -> list[Trial]:
    """All trials: those of one place of the grid after each other, since they share most stages."""
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
        """One row a trial: what was run, how it ended, its place on the grid, all metrics."""
        if not self._rows.exists():
            return pd.DataFrame(columns=[TRIAL, "name", PARAMS, COMMIT, STATE, MESSAGE])
        return pd.read_csv(self._rows, keep_default_na=False, na_values=[""])

    @property
    def predictions(self) -> pd.DataFrame:
        """One row a trial, model and test image: see `core/predictions.py`; logits as float16."""
        return pd.read_parquet(self._predictions) if self._predictions.exists() else pd.DataFrame()

    def is_done(self, trial: Trial, params: str) -> bool:
        """Whether this trial has ended well with these params."""
        rows = self.rows
        same = (rows[TRIAL] == trial.label) & (rows[PARAMS] == params)
        return bool((rows.loc[same, STATE] == "done").any())

    def add(self, trial: Trial, row: dict[str, Any], found: pd.DataFrame | None) -> None:
        """Write a trial's row in place of an older one of the same trial."""
        self._rows.parent.mkdir(parents=True, exist_ok=True)
        # The predictions first: the row stands for both.
        if found is not None:
            old = self.predictions
            kept = old[old[TRIAL] != trial.label] if len(old) else old
            new = found.assign(**{TRIAL: trial.label})
            floats = new.select_dtypes("float64").columns
            everything = pd.concat([kept, new.astype(dict.fromkeys(floats, "float16"))])
            _replace(self._predictions, lambda path: everything.to_parquet(path, index=False))
        rows = self.rows
        new = pd.DataFrame([{TRIAL: trial.label, "name": trial.name, **trial.place, **row}])
        table = pd.concat([rows[rows[TRIAL] != trial.label].astype(object), new.astype(object)])
        _replace(self._rows, lambda path: table.to_csv(path, index=False, lineterminator="\n"))


def _replace(path: Path, write: Any) -> None:
    partial = path.with_name(f".partial.{path.name}")
    write(partial)
    partial.replace(path)


def collect(graph: Graph) -> tuple[dict[str, Any], pd.DataFrame | None]:
    """Metrics and predictions of all stages of a graph that has been run.

    Returns: metrics as STAGE.KEY, and one table with the models of all stages, or None.
    """
    metrics: dict[str, Any] = {}
    tables = []
    for file in (file for node in graph.nodes for file in node.metrics):
        metrics |= flatten(json.loads(file.read_text()), f"{file.parent.name}.")
        if (beside := file.with_name("predictions.csv")).exists():
            tables.append(pd.read_csv(beside))
    if not tables:
        return metrics, None
    merged = tables[0]
    for table in tables[1:]:
        new = ["file_name", *(c for c in table if c not in merged)]
        merged = merged.merge(table[new], on="file_name", validate="one_to_one")
    return metrics, merged


def _markdown(rows: list[dict[str, str]]) -> list[str]:
    if not rows:
        return []
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [head, "|" + "---|" * len(rows[0]), *rest]


def _shown(rows: pd.DataFrame, metric: str) -> str:
    """Mean and deviation of a metric, a dash where it was not measured."""
    if metric not in rows:
        return "-"
    numbers = rows[metric].astype(float)
    if numbers.nunique() == 1:
        return f"{numbers.iloc[0]:,.3f}" if numbers.iloc[0] % 1 else f"{numbers.iloc[0]:,.0f}"
    return f"{numbers.mean():.3f} ± {numbers.std():.3f}"


def _gain(results: pd.DataFrame, rows: pd.DataFrame, name: str, models: list[str]) -> str:
    """Mean paired gain of one model over another, over seeds and the places where both ended."""
    better, worse = (m if "/" in m else f"{name}/{m}" for m in models)
    if better == worse:
        return "-"
    pairs = []
    trial_at = rows.set_index(["name", "_place"])[TRIAL]
    for place in rows.loc[rows["name"] == name, "_place"]:
        tables = []
        for model in (better, worse):
            key = (model.split("/")[0], place)
            if key not in trial_at.index:
                return "-"
            tables.append(results[results[TRIAL] == trial_at[key]].dropna(axis=1))
        left, right = (
            predictions.of_all_seeds(t, model.split("/")[1])
            for t, model in zip(tables, (better, worse), strict=True)
        )
        if tables[0]["file_name"].tolist() != tables[1]["file_name"].tolist():
            # Tested on other images: nothing to pair.
            return "-"
        labels, groups = (tables[0][c].to_numpy(np.int64) for c in ("label", "group"))
        # A single teacher stands against students of all seeds.
        count = max(len(left), len(right))
        seeds = zip(*(x * (count // len(x)) for x in (left, right)), strict=True)
        pairs += [Paired(one, other, labels, groups) for one, other in seeds]
    found = mean_paired_gain(pairs)
    return f"{found['gain']:+.3f} [{found['low']:+.3f}, {found['high']:+.3f}]"


def _front(study: Study, done: pd.DataFrame) -> set[str]:
    """Names of the trials on the Pareto front of `study.front`, by their means."""
    keys = [study.show[heading] for heading in study.front]
    means = (
        done.reindex(columns=["name", *keys])
        .groupby("name")
        .agg(lambda column: column.astype(float).mean())
        .dropna()
    )
    beaten = [
        ((means >= row).all(axis=1) & (means > row).any(axis=1)).any()
        for _, row in means.iterrows()
    ]
    return set(means.index[~np.array(beaten, dtype=bool)])


def summary(study: Study, results: Results, planned: dict[str, str]) -> str:
    """The study's table as Markdown: mean and deviation over the grid, paired gains, 95 %.

    Args:
        planned: md5 of the params, by trial; rows that were run with others are told.
    """
    rows = results.rows
    rows = rows[rows[TRIAL].isin(list(planned))]
    done = rows[rows[STATE] == "done"].copy()
    done["_place"] = [tuple(str(row.get(k)) for k in study.grid) for _, row in done.iterrows()]
    found = results.predictions
    table, gains = [], []
    on_front = _front(study, done) if study.front else set()
    for name in study.trials:
        mine = done[done["name"] == name]
        if mine.empty:
            continue
        start = {"trial": name, "runs": str(len(mine))}
        gain = {h: _gain(found, done, name, models) for h, models in study.gains.items()}
        for model, prefix in study.models.items():
            shown = {h: _shown(mine, f"{prefix}.{key}") for h, key in study.show.items()}
            table.append({**start, "model": model, **shown})
        if study.models:
            gains.append({"trial": name, **gain})
        else:
            shown = {h: _shown(mine, key) for h, key in study.show.items()}
            if study.front:
                shown["on the front"] = "yes" if name in on_front else "no"
            table.append({**start, **shown, **gain})
    lines = _markdown(table) + (["", *_markdown(gains)] if gains and study.gains else [])
    failed = rows[rows[STATE] != "done"]
    over = ", ".join(study.grid)
    commits = ", ".join(done[COMMIT].dropna().unique())
    by = f" (commits {commits})" if commits else ""
    lines += ["", f"{len(done)} of {len(planned)} trials{by}; mean ± deviation over {over}."]
    stale = done[done[PARAMS] != done[TRIAL].map(planned)][TRIAL].tolist()
    if stale:
        lines.append(f"Run with params that have changed since: {', '.join(stale)}.")
    lines += [f"{row[TRIAL]} failed: {row[MESSAGE]}" for _, row in failed.iterrows()]
    return "\n".join(lines)


def load(path: Path) -> Study:
    """A study's file. Raises: ParamsError."""
    return parse_section({"study": load_yaml(path)}, "study", Study, source=path.name)
