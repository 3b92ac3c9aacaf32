"""What the ranks hear of each other in a step, read once the device is busy with the next one."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.sent import Sent, send_row
from selftaught.training.engine import Batch


class Word(NamedTuple):
    """What all ranks hear of one rank in a step, all of it numbers.

    Its loss and gradient, what it asks for (exit code of a signal, a save, to list skipped files)
    and what its machine does.
    """

    loss: float
    norm: float
    stop: float
    save: float
    skipped: float
    images_per_s: float
    data_wait: float
    own_s: float
    peak_memory_gib: float


class Turn(NamedTuple):
    """A player's turn in a 0-based step, with this rank's micro-batches."""

    step: int
    player: str
    parts: list[Batch]


class Exchange:
    """Every rank's word of each turn, exchanged on the device and read by the host a turn late.

    Until then a turn's micro-batches are held, since a bad number is looked for in them.

    Attributes:
        bad: 0-d boolean on the device: a loss or gradient of some rank, in this turn or one before,
            was not finite. No update is made from then on.
    """

    def __init__(self, device: torch.device) -> None:
        self.bad = torch.zeros((), dtype=torch.bool, device=device)
        self._sent: deque[tuple[Turn, Sent]] = deque()

    def send(self, turn: Turn, learnt: Tensor, facts: Sequence[float]) -> None:
        """Start the exchange of this rank's word; all ranks call it alike.

        Args:
            turn: whose word it is.
            learnt: (2,) float64 loss and gradient norm, on the device.
            facts: the rest of the word, which the host knows.
        """
        sent = send_row(facts, learnt.device, first=learnt)
        self.bad.logical_or_(~sent.rows[:, :2].isfinite().all())
        self._sent.append((turn, sent))

    def read(self, newest: bool) -> Iterator[tuple[Turn, list[Word]]]:
        """Words of all ranks, turn by turn: up to the turn before the last, or to the last too.

        Reading the last one's waits for the device.
        """
        while len(self._sent) > (0 if newest else 1):
            turn, sent = self._sent.popleft()
            yield turn, [Word(*row) for row in sent.read()]
