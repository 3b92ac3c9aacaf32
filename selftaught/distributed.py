"""Ranks from any launcher, and the few collectives the rest needs.

No other file calls torch.distributed. Every function also works in a plain process, where it is
the one-rank case and communicates nothing.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from selftaught.environment import global_rank, launched, local_rank, number
from selftaught.errors import InputError, MachineError
from selftaught.peers import FAILED, WRONG, Peers

Group = Any  # torch.distributed.ProcessGroup; None means the default group
# torch 2.14 renamed it, and warns on every rank that calls it by its old name.
_ALL_GATHER = next(
    (name for name in ("all_gather_single", "all_gather_into_tensor") if hasattr(dist, name)), ""
)


def is_initialized() -> bool:
    """Whether a process group is up."""
    return dist.is_available() and dist.is_initialized()


def rank(group: Group = None) -> int:
    """Rank of this process in `group`, 0 without a process group."""
    return dist.get_rank(group) if is_initialized() else 0


def world_size(group: Group = None) -> int:
    """Number of processes in `group`, 1 without a process group."""
    return dist.get_world_size(group) if is_initialized() else 1


def group_named(name: str) -> Group:
    """The group of that `group_name`; the default one for ""."""
    return dist.distributed_c10d._resolve_process_group(name) if name else None  # type: ignore[arg-type]


def is_main() -> bool:
    """Whether this process writes the files and prints; the answer is the same after `finish`."""
    return (rank() if is_initialized() else global_rank()) == 0


def best_backend() -> str:
    """What would carry collectives on this machine: nccl with CUDA, else gloo; "" for nothing."""
    if not dist.is_available():
        return ""
    return "nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"


def nccl() -> str:
    """NCCL's version, or why it is not used."""
    if not dist.is_available() or not dist.is_nccl_available():
        return "missing"
    if not torch.cuda.is_available():
        return "not used, no GPU"
    return ".".join(map(str, torch.cuda.nccl.version()))


def start(timeout_seconds: float = 600.0) -> torch.device:
    """Join the process group a launcher announced, if any, and choose this rank's device.

    Args:
        timeout_seconds: longest wait for other ranks, here and in each collective.

    Returns:
        `cuda:<local rank>` where CUDA is there, else `cpu`.

    Raises:
        MachineError: the port is taken, or not all ranks came in time.
    """
    cuda = torch.cuda.is_available()
    device = torch.device("cuda", local_rank()) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if launched() and not is_initialized():
        _join(timedelta(seconds=timeout_seconds))
    return device


_peers: Peers | None = None
SECONDS_TO_READ = 3.0


def _meet(limit: timedelta) -> tuple[Any, int, int]:
    """The launcher's store, this rank and the number of ranks.

    Where another program holds the port and never answers, torch waits for ever; this does not.
    """
    meetings: list[tuple[Any, int, int]] = []
    failed: list[Exception] = []

    def meet() -> None:
        try:
            meetings.append(next(dist.rendezvous("env://", timeout=limit)))
        except Exception as error:
            failed.append(error)

    meeting = threading.Thread(target=meet, name="selftaught-meets", daemon=True)
    meeting.start()
    meeting.join(limit.total_seconds() + SECONDS_TO_READ)
    if failed:
        raise failed[0]
    if not meetings:
        raise dist.DistError("no answer; another program may hold the port")
    return meetings[0]


def _join(limit: timedelta) -> None:
    global _peers
    place = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"):
        number(name, default=0)
    try:
        store, rank_here, ranks = _meet(limit)
        group = dist.PrefixStore("group", store)
        dist.init_process_group(
            best_backend(), store=group, rank=rank_here, world_size=ranks, timeout=limit
        )
    except ValueError as error:
        raise InputError(
            f"environment: WORLD_SIZE is {os.environ['WORLD_SIZE']}, but {error}; allowed: a start "
            "by torchrun or another launcher, which sets RANK, WORLD_SIZE, MASTER_ADDR and "
            "MASTER_PORT"
        ) from error
    except dist.DistError as error:
        reason = " ".join(str(error).split())
        raise MachineError(
            f"rank {os.environ.get('RANK')} cannot meet the others at {place} (MASTER_ADDR:"
            f"MASTER_PORT): {reason}"
        ) from error
    # A connection of its own: the main thread's may be held by a wait for a slow rank.
    _peers = Peers(dist.PrefixStore("peers", store.clone()), rank_here, ranks)
    _peers.start()


def _other_failure(error: Exception) -> Exception | None:
    """After `error` on this rank: tell the others that it ends, or learn whose end it was.

    Returns:
        What names the rank whose end made a collective fail here, as wrong input or as a failed
        machine; None where the error is this rank's own, which the others are then told.
    """
    if _peers is None:
        return None
    ours = isinstance(error, (InputError, MachineError)) or not isinstance(error, RuntimeError)
    text = " ".join(str(error).split())
    if ours or not (isinstance(error, dist.DistError) or "gloo" in text or "nccl" in text.lower()):
        code = WRONG if isinstance(error, InputError) else FAILED
        _peers.tell(f"rank {rank()} ended: {text or type(error).__name__}", code)
        _peers.stop()
        if rank() == 0:
            # Its process may hold the store: the others need a moment to read.
            time.sleep(SECONDS_TO_READ)
        return None
    message = _peers.ended(_peers.explain())
    return InputError(message) if _peers.code == WRONG else MachineError(message)


@contextmanager
def ending_together(
    agreed: type[BaseException] | tuple[type[BaseException], ...] = (),
) -> Iterator[None]:
    """Where one rank fails inside, the others end too and say which one it was.

    Args:
        agreed: exceptions that all ranks raise together, which are nobody's failure.

    Raises:
        MachineError: a collective failed here because another rank ended.
        InputError: it ended because of wrong input.
    """
    try:
        yield
    except agreed:
        leave()
        raise
    except Exception as error:
        if other := _other_failure(error):
            raise other from error
        raise


def leave() -> None:
    """Let this rank end without the others taking it for a failure; for ends that are agreed."""
    if _peers is not None:
        _peers.stop()


def _arrive() -> None:
    # Tells who is behind when a collective runs out of time.
    if _peers is not None:
        _peers.arrivals += 1


_blocked = 0.0


@contextmanager
def _blocking() -> Iterator[None]:
    """Count the seconds inside as waiting for other ranks."""
    global _blocked
    _arrive()
    began = time.perf_counter()
    try:
        yield
    finally:
        _blocked += time.perf_counter() - began


def blocked_seconds() -> float:
    """Seconds this process has spent so far in the collectives of a forward or backward pass.

    On NCCL, which runs beside the host, it is what the host spent to start them.
    """
    return _blocked


def start_alone() -> None:
    """Make this process a group of one where no launcher did, for engines that ask for a group."""
    if not is_initialized():
        os.environ.setdefault("LOCAL_RANK", "0")  # which DeepSpeed asks for
        dist.init_process_group(best_backend(), store=dist.HashStore(), rank=0, world_size=1)


def backend() -> str:
    """What carries the collectives: nccl, gloo, or "" without a process group."""
    return str(dist.get_backend()) if is_initialized() else ""


def finish() -> None:
    """Leave the process group; only after success, since cleanup after an error can deadlock."""
    if is_initialized():
        dist.barrier()
        leave()
        dist.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    if world_size() > 1:
        with _blocking():
            dist.barrier()


def broadcast_object(value: Any) -> Any:
    """Rank 0's `value` on every rank."""
    if world_size() == 1:
        return value
    _arrive()
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def gather_objects(value: Any, group: Group = None) -> list[Any]:
    """Every rank's `value`, in rank order, on every rank."""
    if world_size(group) == 1:
        return [value]
    _arrive()
    out: list[Any] = [None] * world_size(group)
    dist.all_gather_object(out, value, group=group)
    return out


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """Whether `flag` is true on at least one rank."""
    if world_size() == 1:
        return flag
    _arrive()
    seen = torch.tensor([int(flag)], device=device)
    dist.all_reduce(seen, op=dist.ReduceOp.MAX)
    return bool(seen.item())


def sum_over_ranks(tensor: Tensor, group: Group = None) -> Tensor:
    """Sum of `tensor` over the ranks, in place, without gradient."""
    if world_size(group) > 1:
        with _blocking():
            dist.all_reduce(tensor, group=group)
    return tensor


def broadcast_tensor(tensor: Tensor) -> Tensor:
    """Rank 0's content of `tensor` on every rank, in place, without gradient."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def gather(local: Tensor, group: Group = None) -> Tensor:
    """Rows of all ranks in rank order, without gradient.

    Args:
        local: (B, ...) tensor, the same shape on every rank.
        group: process group, None for the default one.
    """
    ranks = world_size(group)
    if ranks == 1:
        return local.detach()
    everyone = local.new_empty((ranks * local.shape[0], *local.shape[1:]))
    with _blocking():
        getattr(dist, _ALL_GATHER)(everyone, local.detach().contiguous(), group=group)
    return everyone


def log_sum_over_ranks(log_sums: Tensor, group: Group = None) -> Tensor:
    """log(sum over ranks of exp(log_sums)), elementwise, the same bits on every rank."""
    if world_size(group) == 1:
        return log_sums
    highest = log_sums.clone()
    with _blocking():
        dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    # Where every rank has -inf the difference would be NaN.
    safe = highest.masked_fill(highest == float("-inf"), 0)
    total = (log_sums - safe).exp()
    with _blocking():
        dist.all_reduce(total, group=group)
    return total.log() + safe


def ring(tensors: tuple[Tensor, ...], group: Group = None) -> Iterator[tuple[int, Any]]:
    """Every rank's tensors in turn, this rank's first, without gathering them.

    While the caller works on one set, the next travels from the next rank.

    Args:
        tensors: same shapes and dtypes on every rank.
        group: process group, None for the default one.

    Yields:
        The rank the tensors come from, and a tuple of them.
    """
    ranks, here = world_size(group), rank(group)
    current = tuple(tensor.detach().contiguous() for tensor in tensors)
    for step in range(ranks):
        arriving, works = current, []
        if step < ranks - 1:
            arriving = tuple(torch.empty_like(tensor) for tensor in current)
            before, after = (
                step if group is None else dist.get_global_rank(group, step)
                for step in ((here - 1) % ranks, (here + 1) % ranks)
            )
            operations = [dist.P2POp(dist.isend, t, before, group) for t in current]
            operations += [dist.P2POp(dist.irecv, t, after, group) for t in arriving]
            works = dist.batch_isend_irecv(operations)
        yield (here + step) % ranks, current
        with _blocking():
            for work in works:
                work.wait()
        current = arriving


def world_group() -> Group:
    """The group of all ranks, None in a plain process."""
    return dist.group.WORLD if world_size() > 1 else None


def communication_device(group: Group = None) -> torch.device:
    """Where a tensor must be for `group` to send it: the GPU under nccl, else the CPU."""
    if world_size(group) > 1 and dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")
