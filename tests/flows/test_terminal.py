import io
import re
import sys
import time

import pytest
from rich.console import Console

from flows.terminal import Display, tolerate_any_text


@pytest.mark.parametrize("width", [80, 120])
def test_everything_is_legible_in_a_terminal(width: int) -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=width, force_terminal=True, color_system=None)
    text = "fine-tuning member 0, epoch 1/4, loss 0.3923, val_auroc 0.7574, 1:06 left"
    with Display(["validate", "teacher"], console) as display:
        display.start("validate")
        display.end("validate", "Cached", "unchanged")
        display.start("teacher")
        display.line("teacher", f"@  25% {text}")
    last = screen.getvalue().rpartition("cached")[2]
    words = last.split()
    assert words[:5] == ["validate", "━" * 12, "100", "%", "0:00:00"]
    assert {"teacher", "25", *text.split()} <= set(words)
    assert "…" not in last


def test_the_clock_goes_on_after_a_full_bar() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=80, force_terminal=True, color_system=None)
    with Display(["teacher"], console) as display:
        display.start("teacher")
        display.line("teacher", "@ 100% frozen features")
        display.line("teacher", "@   1% fine-tuning")
        time.sleep(1.2)
        display.end("teacher", "Completed")
    assert re.findall(r"\d:\d\d:\d\d", screen.getvalue())[-1] == "0:00:01"


def test_a_terminal_without_a_character_gets_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", screen)
    tolerate_any_text()
    with Display(["ingest"]) as display:
        display.start("ingest")
        display.line("ingest", "caf\u00e9 \u6f22.png")
    screen.flush()
    assert screen.buffer.getvalue().decode("latin-1").split() == [
        "ingest",
        "caf\u00e9",
        "\\u6f22.png",
    ]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_no_text_controls_the_terminal(is_terminal: bool) -> None:
    """Rich would pass on an escape sequence in a file's name."""
    screen = io.StringIO()
    console = Console(file=screen, width=200, force_terminal=is_terminal, color_system=None)
    with Display(["ingest"], console) as display:
        display.start("ingest")
        display.line("ingest", "@  25% read \x1b]0;pwn\a.png")
        display.line("ingest", "no image: \x1b]0;pwn\a.png")
        display.end("ingest", "Failed", "error: \x1b]0;pwn\a.png\nexit status 1")
        display.close("ingest", "Failed", "")
    output = screen.getvalue()
    assert "\x1b]0" not in output
    assert "\a" not in output
    assert r"\x1b]0;pwn\x07.png" in output
