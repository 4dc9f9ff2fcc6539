"""The progress of a run in the terminal."""

import io
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.table import Column
from rich.text import Text

from stages.core.runner import progress
from stages.core.runner.text import terminal

MARKS = {
    "Cached": "[cyan]cached[/]",
    "Completed": "[green]done[/]",
    "Failed": "[red]failed[/]",
    "NotReady": "[dim]not run[/]",
}


def tolerate_any_text() -> None:
    """Print characters that the terminal's encoding lacks as codes, instead of ending a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def printable(text: str) -> str:
    """Several lines, each fit for a terminal (see `stages.core.runner.text`)."""
    return "\n".join(map(terminal, text.split("\n")))


@dataclass
class _Row:
    task: TaskID
    started: float


class _Clock(ProgressColumn):
    """Time since a stage began. Rich's own stops when a bar is full, and a stage fills several."""

    def render(self, task: Task) -> Text:
        """The time as 0:12:34."""
        return Text(str(timedelta(seconds=int(task.elapsed or 0))))


class Display:
    """One line per stage: live bars in a terminal, plain lines anywhere else."""

    def __init__(self, stages: list[str], console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self.seconds: dict[str, float] = {}
        self._live = self.console.is_terminal
        self._width = max(map(len, stages), default=0)
        self._bars = Progress(
            TextColumn("{task.fields[mark]:>8}", table_column=Column(min_width=8)),
            TextColumn("[bold]{task.description}", table_column=Column(min_width=self._width)),
            BarColumn(bar_width=12, table_column=Column(min_width=12)),
            TextColumn("{task.percentage:>3.0f} %", table_column=Column(min_width=5)),
            _Clock(table_column=Column(min_width=7)),
            # This column takes the width that the others leave; longer texts wrap.
            TextColumn("{task.fields[text]}", table_column=Column(ratio=1)),
            console=self.console,
            expand=True,
        )
        self._rows: dict[str, _Row] = {}

    def __enter__(self) -> "Display":
        if self._live:
            self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

    def start(self, stage: str) -> None:
        """The stage has begun."""
        task = self._bars.add_task(stage.ljust(self._width), total=100, mark="", text="")
        self._rows[stage] = _Row(task, time.monotonic())

    def line(self, stage: str, line: str) -> None:
        """Show a line that the stage has printed."""
        line = terminal(line)
        parsed = progress.parse(line)
        if self._live and parsed:
            self._bars.update(self._rows[stage].task, completed=parsed[0], text=parsed[1])
        elif not self._live:
            self.console.print(f"{stage.ljust(self._width)}  {line}", markup=False, soft_wrap=True)

    def end(self, stage: str, state: str, message: str = "") -> None:
        """The stage has ended in the given state (Prefect's name for it)."""
        row = self._rows[stage]
        message = printable(message)
        self.seconds[stage] = time.monotonic() - row.started
        mark = MARKS.get(state, state)
        if self._live:
            done = 100 if state in ("Completed", "Cached") else None
            self._bars.update(
                row.task, completed=done, mark=mark, text="".join(message.splitlines()[-1:])
            )
            self._bars.stop_task(row.task)
            if message and not done:
                self.console.print(message, style="red", markup=False, soft_wrap=True)
        else:
            self.console.print(
                f"{stage.ljust(self._width)}  {mark}, {self.seconds[stage]:.1f} s", soft_wrap=True
            )

    def close(self, stage: str, state: str, message: str) -> None:
        """End a stage that never started, timed out or crashed."""
        if stage not in self._rows:
            self.start(stage)
        if stage not in self.seconds:
            self.end(stage, state, "" if state == "NotReady" else message)
