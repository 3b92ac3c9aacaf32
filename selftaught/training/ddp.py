"""The engine for one process and for DistributedDataParallel."""

import contextlib
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from selftaught import distributed
from selftaught.methods import Task
from selftaught.training import optim
from selftaught.training.engine import Batch, Precision, casts, share_buffers


def _no_buffer_broadcast() -> dict[str, bool]:
    # Rank 0's buffers would overwrite the other ranks' counts per centre. torch 2.15 renamed it.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return {new if new in known else "broadcast_buffers": False}


class TorchEngine:
    """A torch optimizer in one process, or DistributedDataParallel where a process group is up.

    No call waits for the device.

    Args:
        task: the module to train, on its device.
        weight_decay: coupled L2, as in the paper.
        optimizer: adam, sgd or lars.
        precision: auto = bf16 autocast where the device multiplies bf16, fp32 elsewhere.
        clip: largest norm of a gradient, 0 = any.
    """

    waits = False

    def __init__(
        self,
        task: Task,
        *,
        weight_decay: float,
        optimizer: optim.Name = "adam",
        precision: Precision = "auto",
        clip: float = 0.0,
    ) -> None:
        self.task = task
        self.device = next(task.parameters()).device
        self.bf16 = casts(precision, self.device)
        self.clip = clip
        self.norm: Tensor | None = None
        self.module: nn.Module = task
        if distributed.world_size() > 1:
            self.module = DistributedDataParallel(
                task,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                # In the turn of one player the parameters of the others have no gradient.
                find_unused_parameters=len(task.players) > 1,
                **_no_buffer_broadcast(),  # type: ignore[arg-type]
            )
        self.numbers = optim.numbers(task.parameters())
        shares = task.rates()
        groups = {
            player: optim.groups((p for p in task.parameters_of(player) if p.requires_grad), shares)
            for player in task.players
        }
        self.parameters = {
            player: [p for group in some for p in group["params"]]
            for player, some in groups.items()
        }
        owned = [p for parameters in self.parameters.values() for p in parameters]
        if len(set(owned)) < len(owned):
            # One state would be saved in place of two.
            raise ValueError(
                f"{type(task).__name__}.parameters_of: players share a parameter; allowed: each "
                "has its own"
            )
        self.optimizers = {
            player: optim.make_optimizer(
                optimizer, some, weight_decay, task.betas, fused=self.device.type == "cuda"
            )
            for player, some in groups.items()
        }

    def forward(self, batch: Batch, player: str = "all") -> dict[str, Tensor]:
        """The task's outputs under the chosen precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return cast(dict[str, Tensor], self.module(batch, player))

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """DDP's no_sync for all but the last micro-batch."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of `loss / parts`."""
        (loss / parts).backward()

    def gradient_norm(self, player: str = "all") -> Tensor:
        """Euclidean norm of the gradient, 0-d."""
        gradients = [p.grad for p in self.parameters[player] if p.grad is not None]
        self.norm = get_total_norm(gradients).to(self.device)
        return self.norm

    def step(self, lr: float, player: str = "all", bad: Tensor | None = None) -> None:
        """One clipped update at rate `lr`; none where `bad` is true."""
        if self.clip > 0:
            norm = self.gradient_norm(player) if self.norm is None else self.norm
            clip_grads_with_norm_(self.parameters[player], self.clip, norm)
        optimizer = self.optimizers[player]
        optim.set_rate(optimizer, lr)
        optim.update(optimizer, bad)
        # Also what another player's backward pass left behind.
        self.task.zero_grad(set_to_none=True)
        self.norm = None

    def sync_buffers(self) -> None:
        """Rank 0's floating-point buffers on all ranks."""
        share_buffers(self.task)

    def state(self) -> dict[str, Tensor]:
        """Optimizer state, keys `<parameter number>.<name>`."""
        return {
            key: value
            for player, optimizer in self.optimizers.items()
            for key, value in optim.state_of(
                optimizer, [self.numbers[p] for p in self.parameters[player]]
            ).items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Load what `state` gave."""
        for player, optimizer in self.optimizers.items():
            optim.load_state(optimizer, state, [self.numbers[p] for p in self.parameters[player]])
