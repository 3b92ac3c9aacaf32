"""Numbers that ranks send each other, which the host reads when it needs them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import distributed


class Sent(NamedTuple):
    """A row of numbers from every rank: on the device at once, on the host once it was copied.

    Attributes:
        rows: (ranks, M) float64 on the device.
        here: the same on the CPU.
        copied: what the host waits for; None where nothing is on its way.
    """

    rows: Tensor
    here: Tensor
    copied: torch.cuda.Event | None

    def read(self) -> list[list[float]]:
        """The rows in rank order, once they are here."""
        if self.copied is not None:
            self.copied.synchronize()
        return self.here.tolist()


def send_row(
    values: Sequence[float],
    device: torch.device | str = "cpu",
    group: Any = None,
    first: Tensor | None = None,
) -> Sent:
    """Start to give every rank a row of numbers, without a wait for the device.

    Args:
        values: numbers of this rank, equally many on each.
        device: that the group communicates on.
        group: process group, None for the default one.
        first: (M,) float64 on the device, which come before them.
    """
    device = torch.device(device)
    cuda = device.type == "cuda"
    # Only from pinned memory does a copy not wait for what the device is doing.
    numbers = [float(one) for one in values]
    row = torch.tensor(numbers, dtype=torch.float64, device="cpu", pin_memory=cuda)
    row = row.to(device, non_blocking=True)
    rows = distributed.gather((row if first is None else torch.cat([first, row]))[None], group)
    here, copied = rows.to("cpu", non_blocking=True), None
    if cuda:
        copied = torch.cuda.Event()
        copied.record()
    return Sent(rows, here, copied)


def gather_row(values: Sequence[float], device: torch.device | str = "cpu") -> list[list[float]]:
    """A row of numbers from every rank, equally many on each, in rank order."""
    return send_row(values, device).read()
