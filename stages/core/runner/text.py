"""Text of files and users, made fit for a terminal."""


def terminal(text: str) -> str:
    r"""`text` on one line, in which every character that is not printable is escaped.

    Control sequences (which move the cursor or colour the screen), line breaks, marks that turn
    the direction of writing, odd blanks, and bytes that are not UTF-8 become `\x1b`, `\n`,
    `\u202e` and the like.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
