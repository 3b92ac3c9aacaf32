"""Progress of a long job: a bar with the time left, or a line a minute without a terminal."""

import sys
import time

from rich.console import Console as RichConsole
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 60.0


class Console(RichConsole):
    """Goes on in silence where nobody reads standard error any more."""

    def on_broken_pipe(self) -> None:
        """Write no more."""
        self.quiet = True


class Bar:
    """Shows how much of `total` is done, on standard error.

    Args:
        name: of the job.
        total: amount of work.
        done: what an earlier start has done.
        unit: of the work.
        console: of standard error, where others print to it too.
    """

    def __init__(
        self,
        name: str,
        total: int,
        done: int = 0,
        *,
        unit: str = "images",
        console: RichConsole | None = None,
    ) -> None:
        self.name, self.total, self.first, self.unit = name, total, done, unit
        self.start = self.last_line = time.monotonic()
        console = console or Console(stderr=True, highlight=False)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[text]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.bar.start()
            self.task = self.bar.add_task(name, total=total, completed=done, text="")

    def advance(self, done: int, text: str = "") -> None:
        """Show that `done` of the total is behind us, and `text`, by default the speed."""
        now = time.monotonic()
        speed = (done - self.first) / max(now - self.start, 1e-9)
        text = text or f"{speed:.1f} {self.unit}/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=done, text=text)
        elif now - self.last_line >= SECONDS_BETWEEN_LINES:
            self.last_line = now
            # Before anything is done, nobody knows.
            left = f", {(self.total - done) / speed / 60:.0f} min left" if speed > 0 else ""
            print(f"{self.name} {done}/{self.total} {text}{left}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.stop()
