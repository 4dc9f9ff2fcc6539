"""Renders every figure that a document gives: `make docs`.

People write the documents in Markdown. Each measured figure stands between two marks; the first
says where it comes from, as a Jinja expression:

    AUROC <!--=metric("distill.student.auroc")-->0.908<!--/-->

`make docs` writes the value of each expression there. Values come from data/reports alone: the
metrics of the last run, bench.json, and the rows of the studies. The `answer` of a study is a
template over the same names, and over those of its own rows (`StudyFigures`).
"""

import argparse
import difflib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError
from rich.console import Console
from rich.table import Table

from flows import ROOT, photograph, study, summary, tables
from flows.ui import flatten
from stages.core.results.schema.base import Difference
from stages.core.runner.errors import AtelierError, ParamsError, Unavailable

REPORTS = Path("data/reports")
STUDIES = Path("flows/studies")
DOCUMENTS = (
    "README.md",
    "data/README.md",
    "flows/studies/README.md",
    "stages/README.md",
    "tests/benchmarks/README.md",
)
MARK = re.compile(r"(<!--=([^\n]+?)-->)(.*?)(<!--/-->)", re.DOTALL)

# Shown on the front page, but only a run makes them: see `record`.
PICTURE = REPORTS / "report.png"
PREDICTION = REPORTS / "predict.txt"
# A cell of the test split.
EXAMPLE = "data/elpv/images/cell2320.png"

# Rows of the front page's table: name, key of the parameters, key of the figures.
MODELS = (
    ("linear probe", "teacher.parameters", "teacher.probe"),
    ("teacher, fine-tuned", "teacher.parameters", "teacher.finetuned"),
    ("control: student without teacher", "distill.parameters", "distill.control"),
    ("student, distilled", "distill.parameters", "distill.student"),
    ("student refined with synthetic images", "distill.parameters", "refine.synthetic"),
    ("**shipped**, as ONNX", "distill.parameters", "export.calibrated"),
)
COLUMNS = {
    "AUROC": "auroc",
    "within groups": "auroc_within_groups",
    "accuracy": "accuracy",
    "macro F1": "macro_f1",
    "ECE": "ece",
}


def percent(share: float, digits: int = 0) -> str:
    """A share (0 to 1) as percent."""
    return f"{100 * share:.{digits}f} %"


def rounded(value: float, digits: int) -> str:
    """A number with this many digits after the point."""
    return f"{value:,.{digits}f}"


def _text(value: Any) -> Any:
    """How documents print numbers: three digits after the point, commas in large integers."""
    if isinstance(value, float):
        return rounded(value, 3) if value % 1 else rounded(value, 0)
    return f"{value:,}" if isinstance(value, int) else value


_JINJA = Environment(undefined=StrictUndefined, finalize=_text, autoescape=False)


def _get(values: Mapping[str, Any], key: str, kind: str) -> Any:
    """A value by its key. Raises: ParamsError that names similar keys."""
    if key not in values:
        similar = difflib.get_close_matches(key, values, n=5, cutoff=0) if values else ["none"]
        raise ParamsError(f"no {kind} {key!r}; similar: {', '.join(similar)}")
    return values[key]


def _table(rows: Iterable[Iterable[str]]) -> str:
    head, *rest = ["| " + " | ".join(cells) + " |" for cells in rows]
    return "\n".join([head, "|" + "---|" * (head.count(" | ") + 1), *rest])


class StudyFigures:
    """What a study's committed rows say, for its answer and for other documents.

    Args:
        root: the project.
        name: of the file in flows/studies.
        names: further names that an answer may use.
    """

    def __init__(self, root: Path, name: str, names: Mapping[str, Any]) -> None:
        path = root / STUDIES / f"{name}.yaml"
        _get({other.stem: other for other in path.parent.glob("*.yaml")}, name, "study")
        self._file = path.name
        self._study = study.load(path)
        self._results = study.Results(root / study.RESULTS, name)
        self._names = names

    @cached_property
    def table(self) -> str:
        """The tables in Markdown, as `python -m flows.sweep STUDY --summary` prints them."""
        return tables.summary(self._study, self._results)

    @cached_property
    def _rows(self) -> tables.Figures:
        return tables.Figures(self._study, self._results)

    def gain(self, trial: str, heading: str, *, within_groups: bool = False) -> str:
        """A gain with its interval, as the table has it. Raises: ParamsError."""
        _get(self._study.trials, trial, "trial")
        _get(self._study.gains, heading, "gain")
        gain = self._rows.gain(trial, heading)
        return str((gain and gain.within_groups if within_groups else gain) or "-")

    def of_groups(self, trial: str) -> float:
        """AUROC of a model that knows only how the rest of each image's group is labelled.

        The mean over the grid. Raises: ParamsError.
        """
        _get(dict.fromkeys(self._rows.done["name"]), trial, "run")
        return self._rows.auroc_of_groups(trial)

    def value(self, label: str, heading: str, model: str = "") -> float:
        """One run's value under a heading of the table.

        Args:
            label: the trial and its place on the grid, `grouped-fold0` for example.
            model: a key of `models`, if the study has them.

        Raises: ParamsError.
        """
        return self._mean(study.TRIAL, label, heading, model)

    def mean(self, trial: str, heading: str, model: str = "") -> float:
        """The mean of `value` over the grid. Raises: ParamsError."""
        return self._mean("name", trial, heading, model)

    def _mean(self, column: str, name: str, heading: str, model: str) -> float:
        key = str(_get(self._study.columns, heading, "heading"))
        if self._study.models:
            key = f"{_get(self._study.models, model, 'model')}.{key}"
        rows = self._rows.done
        _get(dict.fromkeys(rows[column]), name, "run")
        return float(rows.loc[rows[column] == name, key].astype(float).mean())

    @property
    def answer(self) -> str:
        """The study's answer with its figures. Raises: ParamsError."""
        functions = {
            "mean": self.mean, "value": self.value, "gain": self.gain,
            "of_groups": self.of_groups,
        }  # fmt: skip
        try:
            return _JINJA.from_string(self._study.answer).render(**self._names, **functions)
        except TemplateError as error:
            raise ParamsError(f"{self._file}: answer: {error}; expected a Jinja template") from None

    @property
    def section(self) -> str:
        """Question, tables and answer, in Markdown."""
        return "\n\n".join([f"**{self._study.question}**", self.table, self.answer])


def benchmark_table(entries: Mapping[str, Mapping[str, Any]]) -> str:
    """The entries of bench.json as a table in Markdown."""
    rows = [["benchmark", "goal", "measured", "lowest to highest", "machine"]]
    for name, entry in entries.items():
        unit = f" {entry['unit']}" if entry["unit"] else " times"
        bound = "at most" if entry["unit"] else "at least"
        goal = "" if entry["goal"] is None else f"{bound} {entry['goal']:g}{unit}"
        low, high = entry["low"], entry["high"]
        spread = f"{low:g} to {high:g}" if low != high else ""
        measured = f"**{_measured(entry)}**"
        rows.append([f"{name}: {entry['what']}", goal, measured, spread, entry["machine"]])
    return _table(rows)


def _measured(entry: Mapping[str, Any]) -> str:
    value = entry["value" if entry["unit"] else "ratio"]
    return f"{value:g} {entry['unit'] or 'times'}"


class Figures:
    """The committed results of a project, by the names that documents use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._studies: dict[str, StudyFigures] = {}
        self.names: dict[str, Callable[..., Any]] = {
            "metric": self.metric,
            "interval": self.interval,
            "percent": percent,
            "rounded": rounded,
            "results": self.results,
            "closing": self.closing,
            "prediction": self.prediction,
            "bench": self.bench,
            "benchmarks": self.benchmarks,
            "study": self.study,
            "section": lambda name: self.study(name).section,
        }

    @cached_property
    def _metrics(self) -> dict[str, dict[str, Any]]:
        files = sorted((self._root / REPORTS).glob("*/metrics.json"))
        return {file.parent.name: json.loads(file.read_text(encoding="utf-8")) for file in files}

    @cached_property
    def _flat(self) -> dict[str, Any]:
        return flatten(self._metrics)

    @cached_property
    def _bench(self) -> dict[str, dict[str, Any]]:
        entries: dict[str, dict[str, Any]]
        entries = json.loads((self._root / REPORTS / "bench.json").read_text(encoding="utf-8"))
        return entries

    def metric(self, key: str) -> Any:
        """A metric of the last run as STAGE.KEY. Raises: ParamsError."""
        return _get(self._flat, key, "metric")

    def interval(self, key: str) -> str:
        """A gain of the last run with its 95 % interval, and within groups, if it has it.

        Raises: ParamsError.
        """
        ends = Difference.model_fields
        gain = str(Difference(**{end: self.metric(f"{key}.{end}") for end in ends}))
        if f"{key}.within_groups.gain" in self._flat:
            gain += f" (within groups {self.interval(f'{key}.within_groups')})"
        return gain

    def results(self) -> str:
        """The last run's models beside each other, as a table in Markdown.

        Without those columns, and models, that it has no figures for.
        """
        models = [model for model in MODELS if f"{model[2]}.auroc" in self._flat]
        keys = [key for _, _, key in models]
        columns = {
            heading: column
            for heading, column in COLUMNS.items()
            if any(f"{key}.{column}" in self._flat for key in keys)
        }
        rows = [["", "parameters", *columns]]
        for name, parameters, key in models:
            figures = [_text(self.metric(f"{key}.{column}")) for column in columns.values()]
            rows.append([name, _text(self.metric(parameters)), *figures])
        return _table(rows)

    def closing(self) -> str:
        """The table that a run prints at its end, as a block of code in Markdown."""
        table = Table("", "", "compared with", show_edge=False, box=None, pad_edge=False)
        for row in summary.rows(self._root / REPORTS, self._metrics):
            table.add_row(*row)
        page = io.StringIO()
        Console(file=page, width=100, color_system=None).print(table)
        lines = [line.rstrip() for line in page.getvalue().splitlines()]
        return "\n".join(["```", *lines, "```"])

    def prediction(self) -> str:
        """A call of the release's script with its output, as a block of code in Markdown."""
        text = (self._root / PREDICTION).read_text(encoding="utf-8")
        return "\n".join(["```", text.rstrip(), "```"])

    def bench(self, name: str) -> str:
        """One result of the benchmarks, with its unit. Raises: ParamsError."""
        return _measured(_get(self._bench, name, "benchmark"))

    def benchmarks(self) -> str:
        """All results of the benchmarks, as a table in Markdown."""
        return benchmark_table(self._bench)

    def study(self, name: str) -> StudyFigures:
        """The figures of a study. Raises: ParamsError."""
        if name not in self._studies:
            self._studies[name] = StudyFigures(self._root, name, self.names)
        return self._studies[name]


def _value(expression: str, figures: Figures) -> str:
    value = _JINJA.compile_expression(expression, undefined_to_none=False)(**figures.names)
    text = str(_text(value))
    return f"\n{text}\n" if "\n" in text else text


def render(text: str, figures: Figures, *, source: str) -> str:
    """A document with the value of each expression between its marks.

    Args:
        source: the document's name, for messages.

    Raises: ParamsError if an expression has no value, or a mark has no end.
    """

    def fill(match: re.Match[str]) -> str:
        start, expression, _, end = match.groups()
        try:
            return start + _value(expression, figures) + end
        except (TemplateError, ParamsError, TypeError) as error:
            raise ParamsError(f"{source}: {expression}: {error}") from None

    rendered, count = MARK.subn(fill, text)
    starts = text.count("<!--=")
    if starts != count:
        raise ParamsError(
            f"{source}: found {starts} mark{'s' * (starts != 1)} <!--=EXPRESSION--> and "
            f"{count} with an end; expected <!--/--> after each, and the expression on one line"
        )
    return rendered


def write(root: Path) -> list[str]:
    """Render all documents of a project; returns the names of those that changed."""
    figures = Figures(root)
    names = []
    for name in DOCUMENTS:
        text = (root / name).read_text(encoding="utf-8")
        rendered = render(text, figures, source=name)
        if rendered != text:
            (root / name).write_text(rendered, encoding="utf-8")
            names.append(name)
    return names


def record(root: Path) -> None:
    """Write what only a default run makes: the report's picture, and a prediction.

    Raises: Unavailable without Chromium, or without such a run.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        raise Unavailable("the picture of the report needs Chromium: install it")
    page, script = root / REPORTS / "index.html", root / "data" / "release" / "predict.py"
    for path in (page, script, root / EXAMPLE):
        if not path.is_file():
            raise Unavailable(f"{path}: no such file; run `make run` first")
    photograph.take(page.read_text(encoding="utf-8"), root / PICTURE, browser)
    arguments = [str(script.relative_to(root)), EXAMPLE]
    run = [sys.executable, *arguments]
    output = subprocess.run(run, cwd=root, check=True, capture_output=True, text=True).stdout
    lines = [" ".join([".venv/bin/python", *arguments]), output.expandtabs(12).rstrip()]
    (root / PREDICTION).write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> None:
    """Command line of `make docs`."""
    parser = argparse.ArgumentParser(prog="python -m flows.docs")
    parser.add_argument(
        "--record",
        action="store_true",
        help=f"first renew {PICTURE} and {PREDICTION} from a default run (needs Chromium)",
    )
    arguments = parser.parse_args()
    try:
        if arguments.record:
            record(ROOT)
        names = write(ROOT)
    except AtelierError as error:
        sys.exit(f"error: {error}")
    print(f"rendered: {', '.join(names) or 'nothing has changed'}")


if __name__ == "__main__":
    main()
