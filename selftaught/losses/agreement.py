"""Arguments of a loss over a group: what one rank refuses is raised on all, so that none waits."""

import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.kernels import dispatch


class Pair(NamedTuple):
    """Two (B, D) matrices of one dtype, and what goes with them, checked.

    Attributes:
        first: first views, or queries.
        second: second views, or keys.
        scale: 0-d temperature, None where it is a number.
        fixed: that number.
        backend: its name, "auto", or "" for the environment's choice.
        more: classes of the rows, or further negatives.
    """

    first: Tensor
    second: Tensor
    scale: Tensor | None
    fixed: float
    backend: str
    more: Tensor | None = None


def group_of(group: Any) -> Any:
    """The process group that the argument means, None for the world's.

    Raises:
        ValueError: this process is not one of its ranks.
    """
    group = None if group == "world" else group
    if distributed.rank(group) < 0:
        raise ValueError("group: this process is not one of its ranks")
    return group


def agreed(group: Any, op: str, settings: str, check: Callable[[], Pair]) -> Pair:
    """What `check` makes of this rank's arguments, once every rank of the group has the like.

    Costs one exchange of a number, for which the host waits. Under torch.compile, and while a CUDA
    graph is recorded, no number may reach the host: there a rank checks for itself alone, and the
    others wait for it until the collective runs out of time.

    Args:
        group: from `group_of`.
        op: the loss, as `dispatch` names it.
        settings: in words, what has to be the same on every rank beside shape and temperature.
        check: gives the arguments, or raises what is wrong with them.

    Raises:
        ValueError: a rank's arguments are wrong or unlike the others'; ranks that are not at fault
            are told whose and why.
    """
    if distributed.world_size(group) == 1 or torch.compiler.is_compiling() or _capturing():
        return check()
    pair, problem, told = None, None, ""
    try:
        pair = check()
        rows, width = pair.first.shape
        dtype = str(pair.first.dtype).removeprefix("torch.")
        request = dispatch.Request(
            op=op, device=pair.first.device, dtype=pair.first.dtype, width=width
        )
        dispatch.choose(request, pair.backend)
        temperature = "a tensor" if pair.fixed == 0 else repr(pair.fixed)
        told = f"{rows} x {width} {dtype}, temperature {temperature}, {settings}"
    except Exception as error:  # any at all would leave the others waiting
        problem = error
    number = 0 if problem else 1 + zlib.crc32(told.encode())
    device = distributed.communication_device(group)
    numbers = {found[0] for found in distributed.gather_numbers([number], device, group)}
    if 0 in numbers:
        everyone = distributed.gather_objects(str(problem or ""), group)
        if problem is not None:
            raise problem
        raise ValueError("; ".join(f"rank {r}: {text}" for r, text in enumerate(everyone) if text))
    if len(numbers) > 1:
        everyone = distributed.gather_objects(told, group)
        listing = "; ".join(f"rank {r}: {text}" for r, text in enumerate(everyone))
        raise ValueError(f"group: every rank must pass the like, got {listing}")
    assert pair is not None
    return pair


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
