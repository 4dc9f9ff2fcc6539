"""Progress as plain lines, readable in a terminal and by the flow that runs the stage.

A line looks like `@ 42% fine-tuning, epoch 3/6, loss 0.412, val_auroc 0.861, 1:12 left`.
"""

import re
import time

LINE = re.compile(r"^@ +(\d+)% (.*)$")


def parse(line: str) -> tuple[int, str] | None:
    """Percentage (0 to 100) and text of a progress line, or None for any other line."""
    match = LINE.match(line)
    return (int(match[1]), match[2]) if match else None


class Progress:
    """Counts `total` equal steps of one piece of work and prints how far it is.

    Printed are the first and the last step, every call with `figures`, and else at most one line
    every `every_s` seconds. `done` steps were made by an earlier, interrupted run.
    """

    def __init__(self, what: str, total: int, *, done: int = 0, every_s: float = 5.0) -> None:
        self.what, self.total, self.done, self.every_s = what, total, done, every_s
        self._first: tuple[int, float] | None = None
        self._printed = float("-inf")

    def step(self, n: int = 1, *, where: str = "", figures: dict[str, float] | None = None) -> None:
        """Count `n` steps; `where` names the place ("epoch 3/6"), `figures` are shown as is."""
        self.done += n
        now = time.monotonic()
        # The first steps warm caches up: what is left is reckoned from those after them.
        first, since = self._first = self._first or (self.done, now)
        if not figures and self.done < self.total and now - self._printed < self.every_s:
            return
        self._printed = now
        parts = [self.what, where, *(f"{k} {v:.4g}" for k, v in (figures or {}).items())]
        if first < self.done < self.total:
            left = round((now - since) / (self.done - first) * (self.total - self.done))
            parts.append(f"{left // 60}:{left % 60:02d} left")
        percent = 100 * self.done // max(self.total, 1)
        print(f"@ {percent:3d}% {', '.join(p for p in parts if p)}", flush=True)
