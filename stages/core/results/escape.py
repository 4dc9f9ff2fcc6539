"""Text of files and users, made fit for where people read it: one function for each place."""

import html
import re

# With which a cell is a formula to a spreadsheet (OWASP, "CSV Injection").
FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_MARKUP = {ord(mark): f"\\{mark}" for mark in "\\`*[]~!#$"}
# Entities where a backslash would not do: in HTML, and between the cells of a table.
_MARKUP |= {ord(mark): f"&#{ord(mark)};" for mark in "&<>|@"}


def html_text(text: str) -> str:
    """`text` for a page or an attribute's value."""
    return html.escape(text)


def spreadsheet_cell(text: str) -> str:
    """`text` for a cell of a CSV that people open: an apostrophe keeps it from being a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def markdown_cell(text: object) -> str:
    """`text` as a Markdown document shows it letter by letter, on one line, in a table or outside.

    HTML, tables' bars, code, emphasis, formulas, links, images and bare addresses lose their
    meaning; line breaks and control characters become blanks.
    """
    line = "".join(char if char.isprintable() else " " for char in str(text))
    line = line.translate(_MARKUP).replace("://", "&#58;//")
    line = re.sub(r"(?i)\b(www)\.", r"\1&#46;", line)
    # An underscore inside a word is no emphasis.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
