"""Data contracts with Great Expectations: tables in, violations and Data Docs out."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

# No telemetry, under `dvc repro` too, where no flow has said so.
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")

# Great Expectations takes five seconds to import, so the functions below do it, when called: who
# only looks up a stage's params should not wait for it.

Expectation = Any


@dataclass(frozen=True)
class Suite:
    """A table, its expectations, and the column that names a row in messages.

    Every expectation carries `meta={"expected": text}`, which completes "expected ...".
    """

    table: pd.DataFrame
    named_by: str
    expectations: list[Expectation]


@dataclass(frozen=True)
class Violation:
    """Rows of one table that break one expectation: (row's name, the value found)."""

    column: str
    expected: str
    rows: list[tuple[str, str]]

    def __str__(self) -> str:
        shown = "; ".join(f"{name}: {self.column} = {value}" for name, value in self.rows[:5])
        more = f"; and {len(self.rows) - 5} more" if len(self.rows) > 5 else ""
        return f"{shown}{more} (expected {self.expected})"


class Contract:
    """Collects what has been verified, and documents all of it in one place."""

    def __init__(self, docs: Path) -> None:
        import great_expectations as gx

        self.evaluated = 0
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
        """Hold each table against its expectations, and write Data Docs.

        Raises: RuntimeError when an expectation itself cannot be evaluated.
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
            self.evaluated += len(outcome.results)
            violations += [_violation(r, suite.named_by) for r in outcome.results if not r.success]
        self._context.build_data_docs()
        return violations


def _violation(result: Any, named_by: str) -> Violation:
    config = result.expectation_config
    if "unexpected_index_list" not in result.result:
        raise RuntimeError(f"{config.type} could not be evaluated: {result.exception_info}")
    column = config.kwargs["column"]
    rows = [
        (str(row[named_by]), str(row[column])) for row in result.result["unexpected_index_list"]
    ]
    return Violation(column, config.meta["expected"], rows)
