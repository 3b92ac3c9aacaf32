"""What a run tells: metrics.jsonl always, TensorBoard, and a bar or a line a minute."""

import json
import math
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from selftaught import distributed
from selftaught.console import Bar, Console
from selftaught.files import machine_errors, write_atomic
from selftaught.training.events import OnEvent, ignore


def _plain(value: Any) -> Any:
    # JSON has no NaN; a figure that does not exist is null.
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Reporter:
    """Writes a run's figures; on ranks other than 0 every call does nothing.

    Args:
        run: the run folder, holding metrics.jsonl and tensorboard/.
        on_event: hears of progress, on every rank.
    """

    def __init__(self, run: Path, on_event: OnEvent = ignore) -> None:
        self.on_event = on_event
        self.path = run / "metrics.jsonl"
        self.main = distributed.is_main()
        self.console = Console(stderr=True, highlight=False)
        self.bar: Bar | None = None
        self.board: Any = None
        if self.main:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run / "tensorboard"), max_queue=1000, flush_secs=60)
        self.hook = threading.excepthook

    def __enter__(self) -> "Reporter":
        threading.excepthook = self._of_thread
        return self

    def _of_thread(self, found: threading.ExceptHookArgs) -> None:
        """Say nothing of TensorBoard's thread losing its file: what is written next tells it."""
        lost = issubclass(found.exc_type, OSError)
        if not (lost and type(found.thread).__module__.startswith("tensorboard.")):
            self.hook(found)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end_bar()
        try:
            if self.board is not None:
                self.board.close()
        finally:
            threading.excepthook = self.hook

    def log(self, **figures: Any) -> None:
        """Append one line to metrics.jsonl and the numbers in it to TensorBoard.

        Args:
            figures: `kind` (step|epoch|warning|note), `stage`, `epoch`, `step` and numbers.
        """
        if not self.main:
            return
        line = json.dumps({key: _plain(value) for key, value in figures.items()})
        with machine_errors(self.path), self.path.open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")
        for key, value in figures.items():
            if key not in ("epoch", "step") and isinstance(value, (int, float)) and self.board:
                name = f"{figures.get('stage', 'run')}/{figures['kind']}/{key}"
                self.board.add_scalar(name, value, figures.get("step", 0))

    def forget_after(self, stage: str, step: int) -> None:
        """Drop the lines of `stage` beyond `step`: a resumed run writes them again."""
        if not self.main or not self.path.exists():
            return
        kept = [e for e in self.lines() if e.get("stage") != stage or e.get("step", 0) <= step]
        write_atomic(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines written so far."""
        if not self.path.exists():
            return []
        out = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                out.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the torn last line of a killed run
        return out

    def has_epoch(self, stage: str, epoch: int) -> bool:
        """Whether the line of a finished epoch is there."""
        return any(
            line["kind"] == "epoch" and line["stage"] == stage and line["epoch"] == epoch
            for line in self.lines()
        )

    def say(self, text: str) -> None:
        """Print a line for the person who watches."""
        if self.main:
            self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, stage: str, message: str, **figures: Any) -> None:
        """Print a warning and keep it for the report."""
        self.say(f"warning: {stage}: {message}")
        entry = {"kind": "warning", "stage": stage, "message": message, **figures}
        if self.main and entry not in self.lines():  # said again by each start of the run
            self.log(**entry)

    def start_bar(self, stage: str, total: int, done: int) -> None:
        """Begin the progress of a stage that takes `total` steps."""
        self.end_bar()
        if self.main:
            self.bar = Bar(stage, total, done, console=self.console)

    def advance(self, stage: str, done: int, total: int, **figures: float) -> None:
        """Show that `done` of `total` steps are behind us."""
        if self.bar is not None:
            self.bar.advance(
                done, " ".join(f"{name} {value:.4g}" for name, value in figures.items())
            )
        self.on_event("progress", name=stage, done=done, total=total)

    def end_bar(self) -> None:
        """Take the bar away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
