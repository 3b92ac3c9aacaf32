"""The DeepSpeed engine, ZeRO stages 0 to 2; the only file that imports deepspeed.

Everything that decides what is learnt stays ours: optimizer, accumulation, clipping, precision and
the learning rate of each step. DeepSpeed moves gradients and keeps each rank's share of the
optimizer state. Saved state is whole and named as DDP's is, so that a run goes on with either
engine, at any stage, on any number of ranks.
"""

import contextlib
import logging
import os
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from selftaught import distributed
from selftaught.errors import InputError
from selftaught.methods import Task
from selftaught.training import optim
from selftaught.training.engine import Batch, Precision, casts, share_buffers

ABSENT = (
    "engine.kind is 'deepspeed', but it cannot be imported: {error}; allowed: ddp, or deepspeed "
    "after `pip install selftaught[gpu]`"
)


class _Cast(nn.Module):
    """A task under its own autocast: DeepSpeed switches off an autocast that surrounds it."""

    def __init__(self, task: Task, bf16: bool) -> None:
        super().__init__()
        self.task = task
        self.bf16 = bf16

    def forward(self, batch: Batch, player: str = "all") -> dict[str, Tensor]:
        device = next(self.task.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16):
            return cast(dict[str, Tensor], self.task(batch, player))


def _deepspeed() -> Any:
    """The package, quiet, told which device it runs on, and without building anything.

    Raises:
        InputError: it is not installed.
    """
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    try:
        import deepspeed
    except ImportError as error:
        raise InputError(ABSENT.format(error=error)) from error
    # On a CPU every first start compiles this reduction for inference, which training never calls,
    # while all ranks wait: half a minute, on a busy machine many.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Its collectives, not the user's, still go by names that torch 2.14 gave up.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    return deepspeed


def settings(zero_stage: int, accumulate: int, clip: float, elements: int) -> dict[str, Any]:
    """What DeepSpeed is told; made from our options alone."""
    return {
        # It only multiplies this; the loop forms the batches.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": accumulate,
        "gradient_clipping": clip,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": zero_stage,
            # The default reserves gigabytes, however small the network.
            "reduce_bucket_size": elements,
            "overlap_comm": False,
        },
    }


class DeepSpeedEngine:
    """DeepSpeed around a task, in one process or under any launcher.

    Args:
        task: the module to train, on its device.
        weight_decay: coupled L2.
        optimizer: adam, sgd or, at stage 0 only, lars.
        precision: auto = bf16 autocast where the device multiplies bf16, fp32 elsewhere; fp64, for
            a task in float64, at stage 0 only.
        clip: largest norm of a gradient, 0 = any.
        accumulate: micro-batches per step.
        zero_stage: 0 = all state on every rank, 1 = optimizer state divided, 2 = gradients too.

    Raises:
        InputError: deepspeed is not installed, or the task has several players or rates.
    """

    # Its updates and counts of micro-batches know of no flag on the device.
    waits = True

    def __init__(
        self,
        task: Task,
        *,
        weight_decay: float,
        optimizer: optim.Name = "adam",
        precision: Precision = "auto",
        clip: float = 0.0,
        accumulate: int = 1,
        zero_stage: int = 1,
    ) -> None:
        if len(task.players) > 1:
            raise InputError(
                f"engine.kind is 'deepspeed', but {type(task).__name__} has {len(task.players)} "
                "optimizers that take turns; allowed: ddp"
            )
        if task.rates():
            raise InputError(
                f"engine.kind is 'deepspeed', which moves all parameters at one rate, but "
                f"{type(task).__name__} has several; allowed: ddp"
            )
        self.task = task
        self.device = next(task.parameters()).device
        self.bf16 = casts(precision, self.device)
        self.accumulated = accumulate
        self.last = True
        self.parameters = [p for p in task.parameters() if p.requires_grad]
        self.divided = zero_stage > 0
        # DeepSpeed averages no float64 gradients and clips by a norm in float32.
        self.double = self.parameters[0].dtype == torch.float64
        self.clip = clip if self.double else 0.0
        self.base = optim.make_optimizer(optimizer, self.parameters, weight_decay, task.betas)
        elements = sum(p.numel() for p in self.parameters)
        package = _deepspeed()
        distributed.start_alone()
        self.engine, self.wrapped, *_ = package.initialize(
            model=_Cast(task, self.bf16),
            optimizer=self.base,
            config=settings(zero_stage, accumulate, clip - self.clip, elements),
            dist_init_required=False,
        )
        self.engine.enable_backward_allreduce = not self.double

    def forward(self, batch: Batch, player: str = "all") -> dict[str, Tensor]:
        """The task's outputs under the chosen precision."""
        return cast(dict[str, Tensor], self.engine(batch, player))

    def accumulate(self, last: bool) -> AbstractContextManager[object]:
        """Only remembers `last`: DeepSpeed counts micro-batches itself."""
        self.last = last
        return contextlib.nullcontext()

    def backward(self, loss: Tensor, parts: int) -> None:
        """Add the gradient of `loss / parts`; DeepSpeed divides by its own count.

        Raises:
            ValueError: `parts` is not what the engine was built for.
        """
        if parts != self.accumulated:
            raise ValueError(f"parts is {parts}; the engine accumulates {self.accumulated}")
        self.engine.backward(loss)
        if not self.last:
            self.engine.step()
        elif self.double:
            for parameter in self.parameters:
                if parameter.grad is not None:
                    distributed.sum_over_ranks(parameter.grad).div_(distributed.world_size())

    def gradient_norm(self, player: str = "all") -> Tensor:
        """Euclidean norm of the averaged gradient before clipping, 0-d."""
        if self.divided:
            return torch.as_tensor(self.wrapped.scaled_global_norm(), device=self.device)
        return get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def step(self, lr: float, player: str = "all", bad: Tensor | None = None) -> None:
        """One clipped update at rate `lr`."""
        if self.clip > 0:
            clip_grads_with_norm_(self.parameters, self.clip, self.gradient_norm())
        for group in self.wrapped.param_groups:
            group["lr"] = lr
        self.engine.step()

    def sync_buffers(self) -> None:
        """Rank 0's floating-point buffers on all ranks."""
        share_buffers(self.task)

    def _flat(self) -> list[Tensor]:
        """This rank's partitions, one for each parameter group."""
        return [group["params"][0] for group in self.base.param_groups]

    def state(self) -> dict[str, Tensor]:
        """Optimizer state, whole, keys `<parameter number>.<name>`."""
        if not self.divided:
            return optim.state_of(self.base)
        from deepspeed.utils import safe_get_full_optimizer_state

        (flat,) = self._flat()
        out: dict[str, Tensor] = {}
        for name, value in self.base.state.get(flat, {}).items():
            for number, parameter in enumerate(self.parameters):
                if isinstance(value, Tensor) and value.shape == flat.shape:
                    out[f"{number}.{name}"] = safe_get_full_optimizer_state(parameter, name)
                elif isinstance(value, Tensor):
                    out[f"{number}.{name}"] = value.clone()
        return out

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take up what any engine's `state` gave, and the weights that the task holds by now."""
        if not self.divided:
            optim.load_state(self.base, state)
            return
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for parameter in self.parameters:
            safe_set_full_fp32_param(parameter, parameter.detach())
        if not state:
            return
        (flat,) = self._flat()
        ours = optim.nested(state)
        for name, value in ours[0].items():
            # A state of the parameter's shape is divided like the parameter; a count is not.
            whole = value.shape == self.parameters[0].shape
            self.base.state[flat][name] = torch.zeros_like(flat) if whole else value.clone()
        self.wrapped._lazy_init_hp_params_optimizer_state()
        for number, parameter in enumerate(self.parameters):
            for name, value in ours[number].items():
                if value.shape == parameter.shape:
                    safe_set_full_optimizer_state(parameter, value.to(flat.device), name)
