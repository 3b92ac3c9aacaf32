"""How gradients move: the Engine protocol, and the engine for one process and for DDP."""

import contextlib
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import get_total_norm

from selftaught import distributed
from selftaught.training.tasks import Task

Batch = dict[str, Tensor]


class Engine(Protocol):
    """What the loop needs; an engine never knows which stage it trains."""

    task: Task

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The task's outputs, `loss` among them."""

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Context of one micro-batch; gradients are communicated only in the last."""

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of `loss / parts`."""

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the averaged gradient, 0-d."""

    def step(self, lr: float) -> None:
        """Update the parameters at learning rate `lr` and clear the gradients."""

    def sync_buffers(self) -> None:
        """Give every rank rank 0's buffers (batch-norm statistics)."""

    def state(self) -> dict[str, Tensor]:
        """Optimizer state as named tensors."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""


def bf16_pays(device: torch.device) -> bool:
    """Whether the device multiplies bf16 in hardware; elsewhere autocast only costs time."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    facts: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(facts.get("avx512_bf16") or facts.get("amx_bf16"))


def _no_buffer_broadcast() -> dict[str, bool]:
    # Rank 0's buffers would overwrite the other ranks' counts per centre. torch 2.15 renamed it.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return {new if new in known else "broadcast_buffers": False}


class TorchEngine:
    """Adam in one process, or DistributedDataParallel where a process group is up.

    Args:
        task: the module to train, on its device.
        weight_decay: coupled L2, as in the paper.
        precision: auto = bf16 autocast where the device multiplies bf16, fp32 elsewhere.
    """

    def __init__(
        self,
        task: Task,
        *,
        weight_decay: float,
        precision: Literal["auto", "fp32", "bf16"] = "auto",
    ) -> None:
        self.task = task
        self.device = next(task.parameters()).device
        self.bf16 = bf16_pays(self.device) if precision == "auto" else precision == "bf16"
        self.module: nn.Module = task
        if distributed.world_size() > 1:
            self.module = DistributedDataParallel(
                task,
                device_ids=[self.device.index] if self.device.type == "cuda" else None,
                **_no_buffer_broadcast(),  # type: ignore[arg-type]
            )
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, weight_decay=weight_decay)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The task's outputs under the chosen precision."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            return cast(dict[str, Tensor], self.module(batch))

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """DDP's no_sync for all but the last micro-batch."""
        if last or not isinstance(self.module, DistributedDataParallel):
            return contextlib.nullcontext()
        return self.module.no_sync()

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of `loss / parts`."""
        (loss / parts).backward()

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the gradient, 0-d."""
        return get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, lr: float) -> None:
        """One Adam update at rate `lr`."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def sync_buffers(self) -> None:
        """Rank 0's floating-point buffers on all ranks."""
        for buffer in self.task.buffers():
            if buffer.is_floating_point():
                distributed.broadcast_tensor(buffer)

    def state(self) -> dict[str, Tensor]:
        """Optimizer state, keys `<parameter number>.<name>`."""
        state = self.optimizer.state_dict()["state"]
        return {
            f"{number}.{name}": value
            for number, one in state.items()
            for name, value in one.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        nested: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            number, name = key.split(".", 1)
            nested.setdefault(int(number), {})[name] = value
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({"state": nested, "param_groups": whole["param_groups"]})
