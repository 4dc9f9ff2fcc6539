import re
from html import unescape

import mistune
import pytest
from markdown_it import MarkdownIt

from stages.core.results.escape import html_text, markdown_cell, spreadsheet_cell

TEXTS = [
    "<script>alert(1)</script>", "a|b", "`code`", "*a* _b_ __init__", "[a](javascript:alert(1))",
    "![a](http://b/c.png)", "<http://a.b>", "http://a.b", "www.a.b", "WWW.a.b", "~~a~~",
    "&lt;b&gt;", "a\\", "\\|", "# a", "me@a.b", "hot_spot", "_a", "a_", "<!-- a", "[a]: b",
    "$a$", "$$a$$",
]  # fmt: skip


def rendered(document: str) -> list[str]:
    """As a strict renderer has it, and as one with bare links has it."""
    strict = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    generous = mistune.create_markdown(
        escape=False, plugins=["table", "strikethrough", "url", "math"]
    )
    return [str(strict.render(document)), str(generous(document))]


@pytest.mark.parametrize("text", TEXTS)
def test_a_cell_shows_its_text_letter_by_letter(text: str) -> None:
    for page in rendered(f"| head | more |\n|---|---|\n| {markdown_cell(text)} | end |\n"):
        cells = re.findall(r"<td>(.*?)</td>", page, flags=re.DOTALL)
        assert [unescape(cell) for cell in cells] == [text, "end"]


@pytest.mark.parametrize("text", TEXTS)
def test_a_sentence_shows_its_text_letter_by_letter(text: str) -> None:
    for page in rendered(f"Classes: {markdown_cell(text)}, and more"):
        assert unescape(page.strip()) == f"<p>Classes: {text}, and more</p>"


def test_a_cell_is_one_line_without_control_characters() -> None:
    assert markdown_cell("a\nb\r\x1b[31m\x00c") == "a b  \\[31m c"


def test_plain_text_and_numbers_stay() -> None:
    for text in ("module_07", "mono defective", "cells/cell0001.png", "0.25", "Zürich, 5 %"):
        assert markdown_cell(text) == text
    assert markdown_cell(0.5) == "0.5"


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_formula_becomes_text(start: str) -> None:
    assert spreadsheet_cell(f"{start}1+1") == f"'{start}1+1"


@pytest.mark.parametrize("text", ["", "a=b", "cat", "1-2", "'=1"])
def test_other_cells_stay(text: str) -> None:
    assert spreadsheet_cell(text) == text


def test_no_markup_is_left() -> None:
    assert html_text('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
