"""Images that are not used, and why: nothing is ever left out without a line."""

from pathlib import Path
from typing import Any, Literal

import pandas as pd

from stages.core.intake.contract import Violation
from stages.core.intake.source import Source
from stages.core.results.escape import spreadsheet_cell
from stages.core.runner.errors import DataError


def refuse(violations: list[Violation], folder: Path, why: str = "", advice: str = "") -> None:
    """Raises: DataError that lists the violations, if there are any."""
    if violations:
        # That an unreadable image has no width says nothing new.
        first = [v for v in violations if v.column == "problem"] or violations
        more = "" if max(len(v.rows) for v in first) <= 5 else " | all of them in quarantine.csv"
        text = f"{folder}: {why}{' | '.join(map(str, first))}{more}{advice}"
        raise DataError(text.replace("\n", "\\n"))  # of a file's name, or a label


class Quarantine:
    """Collects what is left out; refuses it, if the params say so.

    Attributes:
        bad: how many images are unfit.
    """

    def __init__(self, source: Source, *, refuse_bad: bool, max_fraction: float) -> None:
        self.bad = 0
        self._folder = source.folder
        self._refuse_bad, self._max_fraction = refuse_bad, max_fraction
        self._most = max_fraction * len(source.table)
        self._rows = [(name, "not used", reason) for name, reason in source.others.items()]
        self._unfit: list[pd.DataFrame] = []

    def take(self, table: pd.DataFrame, violations: list[Violation]) -> pd.DataFrame:
        """`table` without the images that violate something.

        Raises: DataError when there are any and they are refused, when they are more than
            `max_fraction` of all, or when the table as a whole violates something.
        """
        reasons: dict[str, list[str]] = {}
        # An unreadable image has no width, and so on: its problem is the one reason. It is told
        # from the sound one that has the same name by its row.
        problems: dict[int, str] = {}
        for violation in violations:
            if violation.column == "problem":
                texts = table["problem"].dropna()
                problems = {row: violation.reason(text) for row, text in texts.items()}
                continue
            for name, value in violation.rows:
                reasons.setdefault(name, []).append(violation.reason(value))
        unfit = table["file_name"].isin(list(reasons)) | table.index.isin(list(problems))
        self._rows += [
            (name, "bad image", problems.get(row) or "; ".join(reasons[name]))
            for row, name in table.loc[unfit, "file_name"].items()
        ]
        self._unfit.append(table[unfit])
        self.bad += int(unfit.sum())
        if any(not v.rows for v in violations):
            refuse(violations, self._folder)
        if self._refuse_bad:
            advice = " | validate.on_bad_image: quarantine goes on without them"
            refuse(violations, self._folder, advice=advice)
        if self.bad > self._most:
            refuse(
                violations,
                self._folder,
                f"{self.bad} bad images are more than validate.max_bad_fraction = "
                f"{self._max_fraction:g} of all; ",
            )
        return table[~unfit].reset_index(drop=True)

    def leave_out(
        self, table: pd.DataFrame, reasons: "pd.Series[str]", kind: Literal["leak", "not used"]
    ) -> pd.DataFrame:
        """`table` without the rows that `reasons` names by index: not bad in themselves."""
        self._rows += [(table.loc[i, "file_name"], kind, why) for i, why in reasons.items()]
        return table.drop(index=reasons.index)

    def decodable(self, count: int) -> list[Any]:
        """Rows of some unfit images that have pixels to show."""
        if not self._unfit:
            return []
        unfit = pd.concat(self._unfit)
        return list(unfit[unfit["channels"] > 0].head(count).itertuples())

    def write(self, path: Path) -> None:
        """Write one line per image: file_name, kind (bad image, leak, not used), reason."""
        # pandas does not quote a lone carriage return.
        rows = [[spreadsheet_cell(c).replace("\r", "\\r") for c in row] for row in self._rows]
        table = pd.DataFrame(rows, columns=["file_name", "kind", "reason"])
        table.to_csv(path, index=False, lineterminator="\n")
