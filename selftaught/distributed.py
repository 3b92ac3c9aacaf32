"""Ranks from any launcher, and the few collectives the rest needs.

No other file calls torch.distributed. Every function also works in a plain process, where it is
the one-rank case and communicates nothing.
"""

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

Group = Any  # torch.distributed.ProcessGroup; None means the default group


def is_initialized() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank(group: Group = None) -> int:
    """Rank of this process in `group`, 0 without a process group."""
    return dist.get_rank(group) if is_initialized() else 0


def world_size(group: Group = None) -> int:
    """Number of processes in `group`, 1 without a process group."""
    return dist.get_world_size(group) if is_initialized() else 1


def is_main() -> bool:
    """Whether this process writes the files and prints; also true to itself after `finish`."""
    return (rank() if is_initialized() else int(os.environ.get("RANK", "0"))) == 0


def local_rank() -> int:
    """Rank on this machine, as torchrun or SLURM tells it."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")))


def local_world_size() -> int:
    """Number of processes of this run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether a launcher started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(timeout_seconds: float = 600.0) -> torch.device:
    """Join the process group a launcher announced, if any, and choose this rank's device.

    Returns:
        `cuda:<local rank>` where CUDA is there, else `cpu`.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if launched() and not is_initialized():
        dist.init_process_group(
            "nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_seconds)
        )
    return device


def finish() -> None:
    """Leave the process group; only after success, since cleanup after an error can deadlock."""
    if is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any, group: Group = None) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    if world_size(group) == 1:
        return [value]
    out: list[Any] = [None] * world_size(group)
    dist.all_gather_object(out, value, group=group)
    return out


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is true on at least one rank."""
    if world_size() == 1:
        return flag
    seen = torch.tensor([int(flag)], device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item())


def sum_over_ranks(tensor: Tensor, group: Group = None) -> Tensor:
    """Sum of `tensor` over the ranks, in place, without gradient."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, group=group)
    return tensor


def broadcast_tensor(tensor: Tensor) -> Tensor:
    """Rank 0's content of `tensor` on every rank, in place, without gradient."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


class _Gather(torch.autograd.Function):
    """All-gather along dim 0; the gradient of every copy returns to the rank that owns the rows."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: Group) -> Tensor:
        ctx.group, ctx.rows = group, local.shape[0]
        parts = [torch.empty_like(local) for _ in range(world_size(group))]
        dist.all_gather(parts, local.contiguous(), group=group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, group=ctx.group)
        first = rank(ctx.group) * ctx.rows
        return total[first : first + ctx.rows], None


def gather_with_gradient(local: Tensor, group: Group = None) -> Tensor:
    """Rows of all ranks, in rank order, differentiable with respect to this rank's rows.

    A loss computed by each rank on its own rows of the result, averaged over local rows, has after
    DDP's gradient averaging the gradient of the global-batch mean.

    Args:
        local: (B, ...) tensor, the same shape on every rank.
        group: process group, None for the default one.

    Raises:
        ValueError: the ranks hold different numbers of rows; the message lists them.
    """
    if world_size(group) == 1:
        return local
    rows = gather_objects(int(local.shape[0]), group)
    if len(set(rows)) > 1:
        listing = ", ".join(f"rank {r}: {n}" for r, n in enumerate(rows))
        raise ValueError(f"group: every rank must hold the same number of rows, got {listing}")
    return _Gather.apply(local, group)


def world_group() -> Group:
    """The group of all ranks, None in a plain process."""
    return dist.group.WORLD if world_size() > 1 else None
