"""What the model card of `check` says, as Markdown renders it."""

import json
import re
from html import unescape
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from stages import check
from tests.helpers.imagined import change, quality, rename, reported, run


@pytest.fixture
def paths(tmp_path: Path) -> check.Paths:
    return reported(tmp_path)


def html(paths: check.Paths) -> str:
    card = (paths.release / "MODEL_CARD.md").read_text()
    return str(MarkdownIt("commonmark").enable("table").render(card))


def cells(paths: check.Paths) -> list[list[str]]:
    """The text of all tables, by row and cell."""
    rows = re.findall(r"<tr>(.*?)</tr>", html(paths), flags=re.DOTALL)
    found = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, flags=re.DOTALL) for row in rows]
    return [[unescape(cell) for cell in row] for row in found]


@pytest.mark.parametrize("name", ["a|b", "<script>", "`a`", "*a*", "_a_", "[a](b)", "a\nb"])
def test_users_text_stays_text_in_every_table(paths: check.Paths, name: str) -> None:
    rename(paths, "functional", name)
    change(paths.export / "metrics.json", "failed_variants", {"int8": f"ValueError: {name}"})
    change(paths.augment / "metrics.json", "refused", f"all are {name}")
    nothing = {"accepted": False, "winner": "distilled", "distilled": quality(0.86)}
    (paths.refine / "metrics.json").write_text(json.dumps(nothing))
    run(paths, min_recall={name: 0.5})
    line = name.replace("\n", " ")
    assert [f"recall {line}", "0.9", "0.5", "passed"] in cells(paths)
    assert ["int8", "", f"not: not written: ValueError: {line}"] in cells(paths)
    assert f"Synthetic images: refused, since all are {line}." in unescape(html(paths))
    assert "<script>" not in html(paths)
