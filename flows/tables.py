"""What the rows of a study say: means, paired gains, and the tables of both."""

import functools
from collections.abc import Iterable, Mapping
from importlib import resources

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics import roc_curve

from flows.study import (
    AGREED,
    CODE,
    COMMIT,
    DATA,
    DEVICE,
    MESSAGE,
    RECALL,
    STATE,
    TRIAL,
    WITHIN,
    Inputs,
    Results,
    Study,
    trials,
)
from stages.core.results import predictions
from stages.core.results.escape import markdown_cell
from stages.core.results.metrics import (
    Groups,
    Labels,
    Logits,
    Paired,
    auroc,
    auroc_within_groups,
    group_shares,
    mean_paired_gain,
)
from stages.core.results.schema.base import Gain, intervals_note

# Longer lists of names give their number instead.
MOST_NAMES = 6
FALSE_ALARMS = 0.05


def recall_at_false_alarms(logits: Logits, labels: Labels) -> float:
    """The highest recall of the second of two classes with at most `FALSE_ALARMS` of the first.

    Args:
        logits: (N, K).
        labels: (N,).

    Returns: NaN for more than two classes.
    """
    if logits.shape[1] != 2:
        return np.nan
    false_alarms, recalls, _ = roc_curve(labels, logits[:, 1] - logits[:, 0])
    return float(recalls[false_alarms <= FALSE_ALARMS].max())


@functools.cache
def agreed_cells() -> frozenset[str]:
    """Files of the built-in cells that all raters call functional, or all of them defective."""
    table = resources.files("elpv_dataset") / "data" / "labels.csv"
    lines = (line.split() for line in table.read_text(encoding="utf-8").splitlines())
    return frozenset(file for file, probability, _ in lines if float(probability) in (0, 1))


def _figure(
    key: str, logits: Logits, labels: Labels, groups: Groups, files: NDArray[np.object_]
) -> float | None:
    if key.endswith(RECALL):
        return recall_at_false_alarms(logits, labels)
    if AGREED in key:
        kept = np.isin(files, list(agreed_cells()))
        if not kept.any():
            return None
        logits, labels, groups = logits[kept], labels[kept], groups[kept]
    if key.endswith(WITHIN):
        return auroc_within_groups(logits, labels, groups)
    return auroc(logits, labels)


class Figures:
    """What the rows of a study say, trial by trial.

    Attributes:
        done, failed: rows of the study's trials, by how they ended.
    """

    def __init__(self, study: Study, results: Results) -> None:
        self._study = study
        self._numbers: dict[str, int] = {}
        rows = results.rows
        rows = rows[rows[TRIAL].isin([trial.label for trial in trials(study)])]
        self.failed = rows[rows[STATE] != "done"]
        self.done = rows[rows[STATE] == "done"].copy()
        places = [tuple(str(row.get(k)) for k in study.grid) for _, row in self.done.iterrows()]
        self.done["_place"] = places
        self._row_at = {(row["name"], row["_place"]): row for _, row in self.done.iterrows()}
        self._predictions = results.predictions
        for key in study.metrics:
            if key.endswith((WITHIN, RECALL, AGREED)):
                self._fill(key)

    def _fill(self, key: str) -> None:
        """Compute what is the table's own, and AUROC within groups where it was no metric yet.

        From the predictions on the test split, whose models are named as their metrics are:
        STAGE.MODEL.KEY. Others stay empty.
        """
        if key not in self.done:
            self.done[key] = np.nan
        if key.count(".") != 2:
            return
        model = key.split(".")[1]
        for index in self.done.index[self.done[key].isna()]:
            table = self._predicted(self.done.loc[index])
            if any(column.startswith(f"{model}/") for column in table):
                labels, groups = self._truth(self.done.loc[index], table)
                logits = predictions.logits(table, model)
                files = table["file_name"].to_numpy()
                self.done.loc[index, key] = _figure(key, logits, labels, groups, files)

    def _predicted(self, row: pd.Series) -> pd.DataFrame:
        """A row's predictions; without the models that it does not have."""
        if self._predictions.empty:
            return self._predictions
        return self._predictions[self._predictions[TRIAL] == row[TRIAL]].dropna(axis=1)

    def _truth(self, row: pd.Series, table: pd.DataFrame) -> tuple[Labels, Groups]:
        """Labels and groups of a row's predictions, as `Paired` has them.

        Groups go by name: in each trial's own numbers, one may have several, and two the same.
        """
        numbers = self._numbers
        groups = np.array([numbers.setdefault(g, len(numbers)) for g in table["group"]])
        if str(row.get("validate.groups_given")) == "False":
            groups = -1 - groups
        return table["label"].to_numpy(np.int64), groups

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

        Returns: None if a model would be compared with itself, as where two trials share a cached
            model, if one of the two was not run everywhere, or if they were tested on different
            images.
        """
        models, rows = self._models(trial, heading), self._rows_of_pairs(trial, heading)
        if self.is_of_itself(trial, heading) or not rows:
            return None
        pairs = []
        for both in rows:
            tables = [self._predicted(row) for row in both]
            left, right = (
                predictions.of_all_seeds(table, model.split("/")[1])
                for table, model in zip(tables, models, strict=True)
            )
            if not (left and right):
                return None
            if tables[0]["file_name"].tolist() != tables[1]["file_name"].tolist():
                return None
            labels, groups = self._truth(both[0], tables[0])
            # A single teacher is compared with the students of all seeds.
            count = max(len(left), len(right))
            seeds = zip(*(x * (count // len(x)) for x in (left, right)), strict=True)
            pairs += [Paired(one, other, labels, groups) for one, other in seeds]
        if all(np.array_equal(pair.better, pair.worse) for pair in pairs):
            return None
        return mean_paired_gain(pairs)

    def is_of_itself(self, trial: str, heading: str) -> bool:
        """Whether a gain would compare a model with itself."""
        better, worse = self._models(trial, heading)
        return better == worse

    def auroc_of_groups(self, trial: str) -> float:
        """AUROC of `group_shares`: the mean over the grid."""
        aurocs = []
        for _, row in self.done[self.done["name"] == trial].iterrows():
            labels, groups = self._truth(row, self._predicted(row))
            aurocs.append(auroc(group_shares(labels, groups, int(labels.max()) + 1), labels))
        return float(np.mean(aurocs))

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


def markdown_table(rows: list[dict[str, str]]) -> list[str]:
    """The lines of a table with a column for each key of the first row."""
    if not rows:
        return []
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in lines]
    return [head, "|" + "---|" * len(rows[0]), *rest]


def _without_blanks(table: list[dict[str, str]], study: Study) -> list[dict[str, str]]:
    """A table less those columns within groups that no row has a figure for."""
    blank = {
        heading
        for heading in study.columns.keys() - study.show.keys()
        if all(row[heading] == "-" for row in table)
    }
    return [{h: cell for h, cell in row.items() if h not in blank} for row in table]


def _gains(study: Study, figures: Figures) -> list[str]:
    """The table of all gains, and how many intervals it holds."""
    table, gains = [], []
    for name in study.trials:
        if name not in figures.done["name"].array:
            continue
        for heading in study.gains:
            if figures.is_of_itself(name, heading):
                continue
            cells = {"AUROC": "-", "AUROC, within groups": "-"}
            if gain := figures.gain(name, heading):
                gains.append(gain)
                cells = {"AUROC": str(gain), "AUROC, within groups": str(gain.within_groups or "-")}
            table.append({"trial": name, "gain": heading, **cells})
    return ["", *markdown_table(table), "", intervals_note(gains)] if table else []


def _front(study: Study, done: pd.DataFrame) -> set[str]:
    """Names of the trials on the Pareto front of `study.front`, by their means."""
    keys = [study.columns[heading] for heading in study.front]
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
    table = []
    on_front = _front(study, done) if study.front else set()
    for name in study.trials:
        runs = int((done["name"] == name).sum())
        if not runs:
            continue
        start = {"trial": name, "runs": str(runs)}
        for model, prefix in study.models.items():
            cells = {h: figures.mean(name, f"{prefix}.{key}") for h, key in study.columns.items()}
            table.append({**start, "model": model, **cells})
        if not study.models:
            cells = {heading: figures.mean(name, key) for heading, key in study.columns.items()}
            if study.front:
                cells["on the front"] = "yes" if name in on_front else "no"
            table.append({**start, **cells})
    lines = markdown_table(_without_blanks(table, study)) + _gains(study, figures)
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
        yield f"Hashes of code and data are not recorded for: {_names(unknown, 'trials')}."
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
