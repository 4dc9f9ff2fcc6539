"""Text from the user's files, made harmless for the documents that it goes into."""

import re

_MARKUP = {ord(mark): f"\\{mark}" for mark in "\\`*[]~!#"}
# Entities where a backslash would not do: in HTML, and between the cells of a table.
_MARKUP |= {ord(mark): f"&#{ord(mark)};" for mark in "&<>|@"}


def markdown_cell(text: object) -> str:
    """`text` as a Markdown document shows it letter by letter, on one line, in a table or outside.

    HTML, tables' bars, code, emphasis, links, images and bare addresses lose their meaning; line
    breaks and control characters become blanks.
    """
    line = "".join(char if char.isprintable() else " " for char in str(text))
    line = line.translate(_MARKUP).replace("://", "&#58;//")
    line = re.sub(r"(?i)\b(www)\.", r"\1&#46;", line)
    # An underscore inside a word is no emphasis.
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line)
