"""What travels together through a run."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch

from selftaught.methods import Options
from selftaught.training.config import STAGES, Config
from selftaught.training.events import OnEvent
from selftaught.training.inputs import Images
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper, first_rank_alone

PRETEXT, FINETUNE = STAGES
Result = TypeVar("Result")


def alone(
    on_event: OnEvent, stopper: Stopper, name: str, work: Callable[[], Result]
) -> Result | None:
    """Let rank 0 do `work`, and tell that it begins; None on the others."""

    def announced() -> Result:
        on_event("alone", work=name)
        return work()

    return first_rank_alone(announced, stopper)


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run on this rank.

    Attributes:
        config: checked settings.
        folder: the run folder.
        images: the split table as pixels.
        device: of this rank.
        reporter: metrics and progress.
        stopper: signals.
    """

    config: Config
    folder: Path
    images: Images
    device: torch.device
    reporter: Reporter
    stopper: Stopper

    @property
    def kind(self) -> torch.dtype:
        """Of weights and views."""
        return torch.float64 if self.config.engine.precision == "fp64" else torch.float32

    def alone(self, name: str, work: Callable[[], Result]) -> Result | None:
        """Let rank 0 do `work`, which communicates nothing; None on the others."""
        return alone(self.reporter.on_event, self.stopper, name, work)

    def options(self, role: str) -> Options:
        """Of the method of a stage."""
        options: Options = getattr(self.config, role)
        return options

    def checkpoints(self, role: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.folder / "checkpoints" / role
