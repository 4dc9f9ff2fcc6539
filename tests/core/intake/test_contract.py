"""The data contract: what violates it is named by row, and documented for reading offline."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stages.core.intake.contract import Contract, Suite, Violation, load_expectations
from stages.core.runner.errors import DataError

COLUMNS = ["file_name", "group", "width", "height"]
TABLE = pd.DataFrame(
    {
        "file_name": [f"{i}.png" for i in range(8)],
        "group": ["a", "a", "b", "b", "c", "c", "d", None],
        "width": [10, 20, 30, 40, 50, 60, 70, 80],
        "height": [10, 20, 30, 40, 50, 60, 70, 8],
    }
)


def verified(tmp_path: Path, *entries: dict[str, Any]) -> list[Violation]:
    """What of TABLE violates expectations as the user writes them."""
    path = tmp_path / "expectations.yaml"
    path.write_text(json.dumps(entries))
    own = load_expectations(path, COLUMNS)
    return Contract(tmp_path / "docs").verify({"own": Suite(TABLE, "file_name", own)})


def test_what_holds_violates_nothing(tmp_path: Path) -> None:
    entries: list[dict[str, Any]] = [
        {"type": "expect_column_values_to_be_between", "column": "width", "min_value": 10},
        {"type": "expect_column_values_to_be_unique", "column": "file_name"},
        {"type": "expect_table_row_count_to_equal", "value": 8},
    ]
    assert verified(tmp_path, *entries) == []


def test_rows_are_named(tmp_path: Path) -> None:
    entry = {"type": "expect_column_values_to_be_between", "column": "width", "max_value": 60}
    (actual,) = verified(tmp_path, entry | {"expected": "60 px at most"})
    assert actual.rows == [("6.png", "70"), ("7.png", "80")]
    assert str(actual) == "6.png: width = 70; 7.png: width = 80 (expected 60 px at most)"
    assert actual.reason("70") == "width = 70 (expected 60 px at most)"


def test_the_column_that_names_rows_can_violate_too(tmp_path: Path) -> None:
    entry = {
        "type": "expect_column_values_to_match_regex",
        "column": "file_name",
        "regex": "^[0-5]",
    }
    (actual,) = verified(tmp_path, entry)
    assert actual.rows == [("6.png", "6.png"), ("7.png", "7.png")]
    assert "expected column values to match regex, regex ^[0-5]" in str(actual)


def test_expectations_of_several_columns(tmp_path: Path) -> None:
    equal, unique = verified(
        tmp_path,
        {"type": "expect_column_pair_values_to_be_equal", "column_A": "width",
         "column_B": "height", "expected": "squares"},
        {"type": "expect_select_column_values_to_be_unique_within_record",
         "column_list": ["width", "height"], "expected": "no squares"},
    )  # fmt: skip
    assert equal.column == unique.column == ""
    assert equal.rows == [("7.png", "80, 8")]
    assert str(equal) == "7.png: 80, 8 (expected squares)"
    assert equal.reason("80, 8") == "80, 8 (expected squares)"
    assert [name for name, _ in unique.rows] == [f"{i}.png" for i in range(7)]


def test_a_missing_value_is_named(tmp_path: Path) -> None:
    (actual,) = verified(
        tmp_path, {"type": "expect_column_values_to_not_be_null", "column": "group"}
    )
    assert [name for name, _ in actual.rows] == ["7.png"]


def test_the_table_as_a_whole(tmp_path: Path) -> None:
    actual = verified(
        tmp_path,
        {"type": "expect_column_mean_to_be_between", "column": "width", "max_value": 40},
        {"type": "expect_table_row_count_to_equal", "value": 9, "expected": "nine images"},
    )
    assert [v.rows for v in actual] == [[], []]
    assert str(actual[0]) == "width = 45.0 (expected column mean to be between, max_value 40)"
    assert str(actual[1]) == "found 8 (expected nine images)"


def test_mostly_is_respected(tmp_path: Path) -> None:
    entry = {"type": "expect_column_values_to_be_between", "column": "width", "max_value": 60}
    assert verified(tmp_path, entry | {"mostly": 0.75}) == []
    (actual,) = verified(tmp_path, entry | {"mostly": 0.76})
    assert len(actual.rows) == 2


def test_long_lists_are_cut() -> None:
    rows = [(f"{i}.png", "x") for i in range(8)]
    text = str(Violation("label", "y", rows))
    assert text.count("label = x") == 5
    assert text.endswith("; and 3 more (expected y)")
    assert "more" not in str(Violation("label", "y", rows[:5]))


def test_a_problem_speaks_for_itself() -> None:
    actual = Violation("problem", "a whole image", [("1.png", "an empty file")])
    assert str(actual) == "1.png: an empty file (expected a whole image)"
    assert actual.reason("an empty file") == "an empty file (expected a whole image)"


def test_what_cannot_be_evaluated_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        verified(
            tmp_path,
            {"type": "expect_column_values_to_be_between", "column": "group", "min_value": 3},
        )
    message = str(caught.value)
    assert message.startswith("expect_column_values_to_be_between could not be evaluated: ")
    assert "\n" not in message


def test_outcomes_and_docs(tmp_path: Path) -> None:
    import great_expectations.expectations as gxe

    def between(column: str, least: int) -> Any:
        meta = {"expected": f"at least {least}", "do": "look <again> & again"}
        return gxe.ExpectColumnValuesToBeBetween(column=column, min_value=least, meta=meta)

    contract = Contract(tmp_path / "docs")
    suites = {
        "sizes": Suite(TABLE, "file_name", [between("width", 10), between("height", 20)]),
        "more": Suite(TABLE.head(3), "group", [between("width", 15)]),
    }
    violations = contract.verify(suites)
    assert [v.rows for v in violations] == [[("0.png", "10"), ("7.png", "8")], [("a", "10")]]
    assert violations[0].expected == "at least 20: look <again> & again"
    outcomes = pd.DataFrame(contract.outcomes)
    assert outcomes["suite"].tolist() == ["sizes", "sizes", "more"]
    assert outcomes["column"].tolist() == ["width", "height", "width"]
    assert outcomes["passed"].tolist() == [True, False, False]
    assert outcomes["violations"].tolist() == [0, 2, 1]

    contract.document()
    pages = {p: p.read_text(encoding="utf-8") for p in (tmp_path / "docs").rglob("*.html")}
    assert (tmp_path / "docs" / "index.html") in pages
    assert len(pages) >= 3
    for page in pages.values():
        for tag in ("<link", "<script", "<img"):
            for piece in page.split(tag)[1:]:
                assert "http" not in piece.split(">")[0]
        assert page.count("font: 15px/1.5") == 1


def test_nobody_is_told_of_it() -> None:
    assert os.environ["GX_ANALYTICS_ENABLED"].lower() == "false"


@pytest.mark.parametrize("content", ["", "[]", "# nothing\n", "null"])
def test_no_expectations(tmp_path: Path, content: str) -> None:
    path = tmp_path / "expectations.yaml"
    path.write_text(content)
    assert load_expectations(path, COLUMNS) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("- type: [", "not readable as YAML: while parsing a flow node"),
        ("a: 1\na: 2", "not readable as YAML"),
        ("- 2020-99-99", "not readable as YAML"),
        ("{}{}", "not readable as YAML"),
        ("[" * 5000, "not readable as YAML"),
        ("3", "expected a list of expectations, each with its type"),
        ("- expect_x", "expected a list of expectations, each with its type"),
        ("- {type: expect_x}", "expectation 1 (expect_x): Great Expectations has no such"),
        ("- {column: width}", "expectation 1 (None): Great Expectations has no such"),
        ("- {type: [1]}", "expectation 1 ([1]): Great Expectations has no such"),
        ("- {type: expect_column_values_to_be_unique, column: x}",
         "no column 'x'; there are file_name, group, width, height"),
        ("- {type: expect_column_values_to_be_unique, column: 3}", "no column 3; there are"),
        ("- {type: expect_column_values_to_be_unique}", "column field required"),
        ("- {type: expect_column_values_to_be_unique, column: width, 3: 4}", "keywords must be"),
        ("- {type: expect_column_values_to_be_unique, column: width, meta: {}}", "meta"),
        ("- {type: expect_column_values_to_be_unique, column: width, mostly: 2}", "mostly"),
    ],
)  # fmt: skip
def test_expectations_that_are_refused(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "expectations.yaml"
    path.write_text(content)
    with pytest.raises(DataError) as caught:
        load_expectations(path, COLUMNS)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    content=st.one_of(
        st.binary(max_size=60),
        st.text(alphabet="-[]{}:,&*!|>'\"#%@` \n\ttypecolumn0123", max_size=60).map(str.encode),
    )
)
def test_random_yaml_is_refused_or_empty(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "expectations.yaml"
    path.write_bytes(content)
    actual: list[Any] = []
    with contextlib.suppress(DataError):
        actual = load_expectations(path, COLUMNS)
    assert actual == []
