"""What travels together through a run."""

from dataclasses import dataclass
from pathlib import Path

import torch

from selftaught.methods import Options
from selftaught.training.config import STAGES, Config
from selftaught.training.inputs import Images
from selftaught.training.progress import Reporter
from selftaught.training.stop import Stopper

PRETEXT, FINETUNE = STAGES


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

    def options(self, role: str) -> Options:
        """Of the method of a stage."""
        options: Options = getattr(self.config, role)
        return options

    def checkpoints(self, role: str) -> Path:
        """Folder of a stage's checkpoints."""
        return self.folder / "checkpoints" / role
