"""A loss over the ranks of a group: what one rank refuses is raised on all, so that none waits."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.kernels import dispatch
from selftaught.kernels.blocks import Peers


class Arguments(NamedTuple):
    """What a contrastive loss was given, checked.

    Attributes:
        first: (B, D) first views, or queries.
        second: (B, D) second views, or keys, of the same dtype.
        more: labels of the images, or further negatives.
        scale: 0-d temperature, None where it is a number.
        fixed: that number.
        backend: its name, "auto", or "" for the environment's choice.
    """

    first: Tensor
    second: Tensor
    more: Tensor | None
    scale: Tensor | None
    fixed: float
    backend: str


def peers_of(group: Any) -> Peers:
    """Those whose rows are compared: of a process group, of the "world", or, for None, nobody's.

    Raises:
        ValueError: this process is not one of the group's ranks.
    """
    if group is None:
        return Peers()
    group = None if group == "world" else group
    if distributed.rank(group) < 0:
        raise ValueError("group: this process is not one of its ranks")
    return Peers(distributed.rank(group), distributed.world_size(group), group)


# By the group's name and the loss, what its ranks have agreed on.
_agreed: dict[tuple[str, str], set[int]] = {}


def agree(
    peers: Peers, op: str, settings: str, check: Callable[[], Arguments], *, every_call: bool
) -> Arguments:
    """What `check` makes of this rank's arguments, once every rank of the group has the like.

    Costs one exchange of a number, for which the host waits. Under torch.compile, and while a CUDA
    graph is recorded, no number may reach the host: there a rank checks for itself alone, and the
    others wait for it until the collective runs out of time.

    Args:
        peers: the group.
        op: the loss, as `dispatch` names it.
        settings: in words, what has to be the same on every rank beside shape and temperature.
        check: gives the arguments, or raises what is wrong with them.
        every_call: False: no exchange over arguments like some that were agreed on before; after
            the first call a rank then refuses its arguments alone.

    Raises:
        ValueError: a rank's arguments are wrong or unlike the others'; ranks that are not at fault
            are told whose and why.
    """
    if peers.ranks == 1 or torch.compiler.is_compiling() or _capturing():
        return check()
    key = (getattr(peers.group, "group_name", ""), op)
    before = set() if every_call else _agreed.setdefault(key, set())
    arguments, problem, summary = None, None, ""
    try:
        arguments = check()
        summary = _summary(op, arguments, settings)
    except Exception as error:  # any at all would leave the others waiting
        problem = error
    number = 0 if problem else 1 + zlib.crc32(summary.encode())
    if problem and before:
        raise problem
    if number not in before:
        _exchange(peers.group, number, problem, summary)
        before.add(number)
    assert arguments is not None
    return arguments


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _summary(op: str, arguments: Arguments, settings: str) -> str:
    """What must be alike on all ranks, in words."""
    z = arguments.first
    rows, width = z.shape
    dispatch.choose(
        dispatch.Request(op=op, device=z.device, dtype=z.dtype, width=width), arguments.backend
    )
    dtype = str(z.dtype).removeprefix("torch.")
    temperature = "a tensor" if arguments.scale is not None else repr(arguments.fixed)
    return f"{rows} x {width} {dtype}, temperature {temperature}, {settings}"


def _exchange(group: Any, number: int, problem: Exception | None, summary: str) -> None:
    """Raise on every rank where one has a problem, number 0, or another number than the others."""
    device = distributed.communication_device(group)
    numbers = {row[0] for row in distributed.gather_numbers([number], device, group)}
    if 0 in numbers:
        everyone = distributed.gather_objects(str(problem or ""), group)
        if problem is not None:
            raise problem
        raise ValueError("; ".join(f"rank {r}: {text}" for r, text in enumerate(everyone) if text))
    if len(numbers) > 1:
        everyone = distributed.gather_objects(summary, group)
        listing = "; ".join(f"rank {r}: {text}" for r, text in enumerate(everyone))
        raise ValueError(f"group: every rank must pass the like, got {listing}")
