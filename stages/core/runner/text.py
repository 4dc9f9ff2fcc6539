"""Text of files and users, made fit for a terminal."""


def terminal(text: str) -> str:
    r"""`text` on one line, in which every character that is not printable is escaped.

    Control sequences (which move the cursor or colour the screen), line breaks, marks that turn
    the direction of writing, odd blanks, and bytes that are not UTF-8 become `\x1b`, `\n`,
    `\u202e` and the like.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def say(line: str) -> None:
    """Print a line in which labels and names of files may stand."""
    print(terminal(line), flush=True)


def counted(number: int, thing: str) -> str:
    """A number and its thing: `1 group`, `2 groups`."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def listed(names: "set[str] | list[str]", count: int = 5) -> str:
    """Some names, in words."""
    names = sorted(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
