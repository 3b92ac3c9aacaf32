"""How gradients move: the Engine protocol, and the engine for one process and for DDP."""

import contextlib
import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Literal, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from selftaught import distributed
from selftaught.models.sync_norm import synchronise_norms
from selftaught.training import optim
from selftaught.training.config import EngineConfig
from selftaught.training.tasks import Task

Batch = dict[str, Tensor]
Precision = Literal["auto", "fp32", "bf16", "fp64"]


class Engine(Protocol):
    """What the loop needs; an engine never knows which stage it trains."""

    task: Task
    bf16: bool

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The task's outputs, `loss` among them."""

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Context of one micro-batch; gradients are communicated only in the last."""

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of `loss / parts`."""

    def gradient_norm(self) -> Tensor:
        """Euclidean norm of the averaged gradient before clipping, 0-d; all ranks take part."""

    def step(self, lr: float) -> None:
        """Clip, update the parameters at learning rate `lr` and clear the gradients."""

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


def _no_buffer_broadcast() -> dict[str, bool]:
    # Rank 0's buffers would overwrite the other ranks' counts per centre. torch 2.15 renamed it.
    known = inspect.signature(DistributedDataParallel.__init__).parameters
    new = "forward_sync_buffers"
    return {new if new in known else "broadcast_buffers": False}


class TorchEngine:
    """A torch optimizer in one process, or DistributedDataParallel where a process group is up.

    Args:
        task: the module to train, on its device.
        weight_decay: coupled L2, as in the paper.
        optimizer: adam, sgd or lars.
        precision: auto = bf16 autocast where the device multiplies bf16, fp32 elsewhere.
        clip: largest norm of a gradient, 0 = any.
    """

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
                **_no_buffer_broadcast(),  # type: ignore[arg-type]
            )
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.optimizer = optim.make_optimizer(optimizer, self.parameters, weight_decay)

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
        self.norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        return self.norm

    def step(self, lr: float) -> None:
        """One clipped update at rate `lr`."""
        if self.clip > 0:
            norm = self.gradient_norm() if self.norm is None else self.norm
            clip_grads_with_norm_(self.parameters, self.clip, norm)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.norm = None

    def sync_buffers(self) -> None:
        """Rank 0's floating-point buffers on all ranks."""
        share_buffers(self.task)

    def state(self) -> dict[str, Tensor]:
        """Optimizer state, keys `<parameter number>.<name>`."""
        return optim.state_of(self.optimizer)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` gave."""
        optim.load_state(self.optimizer, state)


def make_engine(
    task: Task, config: EngineConfig, *, optimizer: optim.Name, weight_decay: float
) -> Engine:
    """The engine that `config` names, around a task that is on its device.

    The task's batch norms are replaced by synchronised ones where several ranks train.

    Raises:
        InputError: DeepSpeed is asked for and cannot be had, or cannot run this optimizer.
    """
    if config.sync_batch_norm == "auto":
        synchronise_norms(task)
    if config.kind == "deepspeed":
        from selftaught.training.deepspeed import DeepSpeedEngine

        return DeepSpeedEngine(
            task,
            weight_decay=weight_decay,
            optimizer=optimizer,
            precision=config.precision,
            clip=config.clip,
            accumulate=config.accumulate,
            zero_stage=config.zero_stage,
        )
    return TorchEngine(
        task,
        weight_decay=weight_decay,
        optimizer=optimizer,
        precision=config.precision,
        clip=config.clip,
    )
