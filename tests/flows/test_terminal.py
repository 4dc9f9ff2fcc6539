import io

import pytest
from rich.console import Console

from flows.terminal import Display


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
