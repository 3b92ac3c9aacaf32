"""How gradients move: the Engine protocol, and what its engines share."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.methods import Task

Batch = dict[str, Any]
Precision = Literal["auto", "fp32", "bf16", "fp64"]


class Engine(Protocol):
    """What the loop needs; an engine never knows which method it trains.

    A `player` is one of the task's, whose parameters have an optimizer of their own.

    Attributes:
        task: what is trained.
        bf16: whether forward passes run under bf16 autocast.
        waits: it cannot leave out an update on the device, so that the loop reads the numbers of a
            step before it lets the engine update.
    """

    task: Task
    bf16: bool
    waits: bool

    def forward(self, batch: Batch, player: str = "all") -> dict[str, Tensor]:
        """The task's outputs, `loss` among them."""

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Context of one micro-batch; gradients are communicated only in the last."""

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of `loss / parts`."""

    def gradient_norm(self, player: str = "all") -> Tensor:
        """Euclidean norm of the averaged gradient before clipping, 0-d; all ranks take part."""

    def step(self, lr: float, player: str = "all", bad: Tensor | None = None) -> None:
        """Clip, update the parameters at learning rate `lr` and clear the gradients.

        Unless the engine `waits`, it updates nothing where the 0-d boolean `bad` is true.
        """

    def sync_buffers(self) -> None:
        """Give every rank rank 0's buffers (batch-norm statistics)."""

    def state(self) -> dict[str, Tensor]:
        """Optimizer state as named tensors, whole on every rank; all ranks take part."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what any engine's `state` gave, after the task's weights were loaded."""


def bf16_pays(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere autocast only costs time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    facts: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def casts(precision: Precision, device: torch.device) -> bool:
    """Whether forward passes run under bf16 autocast."""
    return bf16_pays(device) if precision == "auto" else precision == "bf16"


@torch.no_grad()
def share_buffers(task: nn.Module) -> None:
    """Rank 0's floating-point buffers on all ranks."""
    for buffer in task.buffers():
        if buffer.is_floating_point():
            distributed.broadcast_tensor(buffer)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """`parts` micro-batches of consecutive images; what is no tensor is in each."""
    pieces = {k: v.chunk(parts) for k, v in batch.items() if isinstance(v, Tensor)}
    return [batch | {k: v[number] for k, v in pieces.items()} for number in range(parts)]
