"""How long and how fast a stage learns, and what the loop is given about it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from selftaught.training.engine import Batch


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a stage learns."""

    stage: str
    epochs: int
    steps_per_epoch: int
    lr: float
    milestones: tuple[int, ...]
    accumulate: int = 1
    save_every: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole stage."""
        return self.epochs * self.steps_per_epoch

    def epoch(self, steps_done: int) -> int:
        """0-based epoch of the last of `steps_done` steps."""
        return (steps_done - 1) // self.steps_per_epoch

    def rate(self, step: int) -> float:
        """Learning rate of the 0-based `step`: a tenth less after each milestone epoch."""
        epoch = step // self.steps_per_epoch
        return self.lr * 0.1 ** sum(epoch >= milestone for milestone in self.milestones)

    def logged(self, step: int) -> bool:
        """Whether the 0-based `step` has a line in metrics.jsonl."""
        return step < 20 or (step + 1) % max(1, self.steps_per_epoch // 50) == 0


class Stage(Protocol):
    """What the loop is given about one stage."""

    schedule: Schedule

    def batches(self, first_step: int) -> Iterator[Batch]:
        """This rank's batches from `first_step` on, on the device."""

    def observe_epoch(self, epoch: int, step: int) -> dict[str, Any]:
        """Figures of the task, which it does not change (validation, guards); after the save."""

    def renew(self, *, scoring: bool = False) -> None:
        """Let the task change what needs the images, before the save of an epoch's end.

        `scoring`: it holds the weights that score, not those that train.
        """

    @property
    def pending(self) -> bool:
        """Whether this rank skipped files that the others have not heard of."""

    def share(self) -> None:
        """Let all ranks hear of skipped files; all call it."""

    def files(self, ids: Tensor) -> list[str]:
        """Paths of samples, for messages."""
