"""Text of others in a terminal."""

import pytest

from stages.core.runner.text import terminal


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("größe 好 a b", "größe 好 a b"),
        ("\x1b[31mred\x1b]0;title\x07", r"\x1b[31mred\x1b]0;title\x07"),
        ("one\ntwo\rthree\tfour", r"one\ntwo\rthree\tfour"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m \x7f \xa0", r"\x9b31m \x7f \xa0"),
        ("caf\udce9.png", r"caf\udce9.png"),
        ("", ""),
    ],
)
def test_what_a_terminal_would_act_on_is_escaped(text: str, plain: str) -> None:
    assert terminal(text) == plain
    terminal(text).encode()
