"""Data contracts with Great Expectations: tables in, violations and Data Docs out."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.core.results.escape import html_text
from stages.core.runner.errors import DataError

# No telemetry, under `dvc repro` too, where no flow has said so.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

# Great Expectations takes five seconds to import, so the functions below do it, when called: who
# only looks up a stage's params should not wait for it.

Expectation = Any


@dataclass(frozen=True)
class Suite:
    """A table, its expectations, and the column that names a row in messages.

    Every expectation carries `meta={"expected": text}`, which completes "expected ...", and may
    carry "do", what the user can do about it.
    """

    table: pd.DataFrame
    named_by: str
    expectations: list[Expectation]


@dataclass(frozen=True)
class Violation:
    """What breaks one expectation: rows as (name, value found); no rows if it is the whole table.

    Attributes:
        column: of the table, or "".
        observed: the value of the whole table, where there are no rows.
        expected: completes "expected ...", with what to do about it.
    """

    column: str
    expected: str
    rows: list[tuple[str, str]]
    observed: str = ""

    def reason(self, value: str) -> str:
        """Why a row is at fault, in words."""
        about = value if self.column in ("", "problem") else f"{self.column} = {value}"
        return f"{about} (expected {self.expected})"

    def __str__(self) -> str:
        if not self.rows:
            observed = f"found {self.observed}"
            if self.column:
                observed = f"{self.column} = {self.observed}"
            return f"{observed} (expected {self.expected})"
        rows = "; ".join(
            f"{name}: {value if self.column in ('', 'problem') else f'{self.column} = {value}'}"
            for name, value in self.rows[:5]
        )
        more = f"; and {len(self.rows) - 5} more" if len(self.rows) > 5 else ""
        return f"{rows}{more} (expected {self.expected})"


def load_expectations(path: Path, columns: list[str]) -> list[Expectation]:
    """The user's own expectations of the manifest, from a YAML list.

    Each entry has `type` (Great Expectations' name, expect_...), its arguments, and optionally
    `expected`, the words for messages.

    Raises: DataError that names the entry.
    """
    from great_expectations.exceptions import ExpectationNotFoundError
    from great_expectations.expectations.registry import get_expectation_impl
    from pydantic.v1 import ValidationError

    try:
        entries = YAML(typ="safe").load(path.read_text(encoding="utf-8")) or []
    except (YAMLError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        raise DataError(f"{path}: expected a list of expectations, each with its type")
    expectations = []
    for number, entry in enumerate(entries, 1):
        arguments = dict(entry)
        kind = str(arguments.pop("type", None))
        plain = kind.removeprefix("expect_").replace("_", " ")
        words = arguments.pop("expected", None) or ", ".join(
            [plain, *(f"{k} {v}" for k, v in arguments.items() if k != "column")]
        )
        where = f"{path}: expectation {number} ({kind})"
        if (column := arguments.get("column")) is not None and column not in columns:
            raise DataError(f"{where}: no column {column!r}; there are {', '.join(columns)}")
        try:
            implementation = get_expectation_impl(kind)
            expectations.append(implementation(**arguments, meta={"expected": str(words)}))
        except ExpectationNotFoundError:
            raise DataError(f"{where}: Great Expectations has no such expectation") from None
        except (ValidationError, TypeError, ValueError) as error:
            raise DataError(f"{where}: {' '.join(str(error).split())}") from None
    return expectations


class Contract:
    """Collects what has been verified, and documents all of it in one place.

    Attributes:
        outcomes: one row per expectation: suite, expectation, column, expected, violations, passed.
    """

    def __init__(self, docs: Path) -> None:
        import great_expectations as gx

        self.outcomes: list[dict[str, Any]] = []
        self._docs = docs
        self._context = gx.get_context(mode="ephemeral")
        self._context.variables.progress_bars = {"globally": False}
        self._context.delete_data_docs_site("local_site")
        store = {
            "class_name": "TupleFilesystemStoreBackend",
            "base_directory": str(docs.absolute()),
        }
        index = {"class_name": "DefaultSiteIndexBuilder"}
        self._context.add_data_docs_site(
            "docs",
            {"class_name": "SiteBuilder", "site_index_builder": index, "store_backend": store},
        )
        self._source = self._context.data_sources.add_pandas("validate")

    def verify(self, suites: Mapping[str, Suite]) -> list[Violation]:
        """Hold each table against its expectations.

        Raises: DataError when an expectation itself cannot be evaluated.
        """
        import great_expectations as gx

        violations = []
        for name, suite in suites.items():
            batch = self._source.add_dataframe_asset(name).add_batch_definition_whole_dataframe(
                "all"
            )
            expectations = self._context.suites.add(
                gx.ExpectationSuite(name, expectations=suite.expectations)
            )
            validation = self._context.validation_definitions.add(
                gx.ValidationDefinition(name=name, data=batch, suite=expectations)
            )
            outcome = validation.run(
                batch_parameters={"dataframe": suite.table},
                result_format={
                    "result_format": "COMPLETE",
                    "unexpected_index_column_names": [suite.named_by],
                },
            )
            for result in outcome.results:
                violation = _violation(result, suite.named_by)
                if not result.success:
                    violations.append(violation)
                self.outcomes.append(
                    {
                        "suite": name,
                        "expectation": result.expectation_config.type,
                        "column": violation.column,
                        "expected": violation.expected,
                        "violations": 0 if result.success else max(1, len(violation.rows)),
                        "passed": bool(result.success),
                    }
                )
        return violations

    def document(self) -> None:
        """Write Data Docs of all that has been verified, readable without a network."""
        results = self._context.validation_results_store
        for key in results.list_keys():
            outcome = results.get(key)
            for result in outcome.results:
                result.result = _marked(result.result)
                _mark(result.expectation_config.kwargs, result.expectation_config.meta)
            results.update(key, outcome)
        suites = self._context.expectations_store
        for key in suites.list_keys():
            for expectation in suites.get(key)["expectations"]:
                _mark(expectation["kwargs"], expectation["meta"])
        self._context.build_data_docs()
        for page in self._docs.rglob("*.html"):
            page.write_text(_finished(page.read_text(encoding="utf-8")), encoding="utf-8")


# Great Expectations escapes some of what stands in its pages and some not. So what has a meaning in
# HTML is replaced, before it makes them, by characters that mean nothing to it (and that Unicode
# promises never to use), and afterwards by what they stand for, escaped.
_MARKS = {ord(character): chr(0xFDD0 + i) for i, character in enumerate("&<>\"'")}


def _marked(value: Any) -> Any:
    """`value`, which JSON could hold, with `_MARKS` in all texts."""
    if isinstance(value, str):
        return value.translate(_MARKS)
    if isinstance(value, dict):
        return {_marked(k): _marked(v) for k, v in value.items()}
    return [_marked(v) for v in value] if isinstance(value, list | tuple) else value


def _mark(*contents: dict[str, Any]) -> None:
    for content in contents:
        content.update(_marked(content))


# What the pages would load from elsewhere, and the little that they need in its place.
_ELSEWHERE = re.compile(
    r'<(?:link|script|img)\b[^>]*(?:href|src)="https?://[^>]*>(?:\s*</script>)?', re.IGNORECASE
)
# Of the pages, nothing runs: what would, needs files from elsewhere.
_STYLE = """<meta http-equiv="Content-Security-Policy" content="script-src 'none'">
<style>
body { font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; margin: 1.5rem auto; max-width: 70rem; }
table { border-collapse: collapse; } th, td { border: 1px solid #ccd; padding: .3rem .6rem; }
.hide-succeeded-validations, .navbar, #go-back-button, .modal { display: none; }
.fa-check-circle::before { content: "passed"; color: #00724f; }
.fa-times::before, .fa-exclamation-triangle::before { content: "failed"; color: #b3261e; }
</style>"""


def _finished(page: str) -> str:
    """A page without what would be loaded from elsewhere, with `_MARKS` as what they stand for."""
    for character, mark in _MARKS.items():
        page = page.replace(mark, html_text(chr(character)))
    return _ELSEWHERE.sub("", page).replace("<head>", f"<head>{_STYLE}", 1)


def _violation(result: Any, named_by: str) -> Violation:
    config = result.expectation_config
    column = str(config.kwargs.get("column") or "")
    expected = config.meta["expected"] + (f": {config.meta['do']}" if "do" in config.meta else "")
    # One flat dict when all went well, else one dict per metric that could not be computed.
    problems = [result.exception_info, *result.exception_info.values()]
    for problem in problems:
        if isinstance(problem, dict) and problem.get("exception_message"):
            reason = " ".join(str(problem["exception_message"]).split())
            raise DataError(f"{config.type} could not be evaluated: {reason}")
    if "unexpected_index_list" not in result.result:
        return Violation(
            column, expected, [], observed=str(result.result.get("observed_value", ""))
        )
    rows = []
    for row in result.result["unexpected_index_list"] or []:
        # An expectation of several columns has no `column`.
        values = [row[column]] if column else [v for k, v in row.items() if k != named_by]
        rows.append((str(row[named_by]), ", ".join(map(str, values))))
    return Violation(column, expected, rows)
