"""A loss over the ranks of a group: what one rank refuses is raised on all, so that none waits."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.kernels import dispatch
from selftaught.kernels.blocks import Peers
from selftaught.sent import Sent, send_row


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


# What a rank's row begins with: it refuses its arguments, the ranks agreed on the like before, or
# it looks at the others' rows at once.
REFUSES, AGREED, LOOKS = range(3)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)

# What the ranks of a group, by its name, have agreed on: rows, width, dtype and settings.
_agreed: dict[str, set[tuple[int, ...]]] = {}
# The rows of the last call, of each group and loss, that nobody here has looked at.
_unread: dict[tuple[str, str], Sent] = {}


def agree(peers: Peers, op: str, settings: str, check: Callable[[], Arguments]) -> Arguments:
    """What `check` makes of this rank's arguments, once every rank of the group has the like.

    Every call exchanges a row of numbers, since a rank that is alone with another shape can learn
    of that in no other way before it takes part in a collective of the wrong size. The host looks
    at them at once where that is no wait for a device, and over arguments that are new to it. Else
    it does so in the next call: by then the rank that differs has raised its error, and this one is
    told by its own instead of a collective that runs out of time. Under torch.compile, and while a
    CUDA graph is recorded, no number may reach the host: there a rank checks for itself alone.

    Args:
        peers: the group.
        op: the loss, as `dispatch` names it.
        settings: in words, what has to be the same on every rank beside shape and temperature.
        check: gives the arguments, or raises what is wrong with them.

    Raises:
        ValueError: a rank's arguments are wrong or unlike the others'; ranks that are not at fault
            are told whose and why.
    """
    if peers.ranks == 1 or torch.compiler.is_compiling() or _capturing():
        return check()
    name = getattr(peers.group, "group_name", "")
    device = distributed.communication_device(peers.group)
    if before := _unread.pop((name, op), None):
        _compare(before.read(), peers.group)
    arguments, problem, summary = None, None, ""
    facts: tuple[int, ...] = (0,) * 4
    try:
        arguments = check()
        summary, facts = _summary(op, arguments, settings)
    except Exception as error:  # any at all would leave the others waiting
        problem = error
    agreed = _agreed.setdefault(name, set())
    looks = facts not in agreed or not _waits(device)
    word = REFUSES if problem else LOOKS if looks else AGREED
    sent = send_row([word, *facts], device, peers.group)
    if looks:
        _compare(sent.read(), peers.group, problem, summary)
        agreed.add(facts)
    else:
        _unread[name, op] = sent
    assert arguments is not None
    return arguments


def _waits(device: torch.device) -> bool:
    """Whether to read what is on the device is to wait for it."""
    return device.type != "cpu"


def _capturing() -> bool:
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def _summary(op: str, arguments: Arguments, settings: str) -> tuple[str, tuple[int, ...]]:
    """What must be alike on all ranks, in words and in numbers."""
    z = arguments.first
    rows, width = z.shape
    dispatch.choose(
        dispatch.Request(op=op, device=z.device, dtype=z.dtype, width=width), arguments.backend
    )
    temperature = "a tensor" if arguments.scale is not None else repr(arguments.fixed)
    more = f"temperature {temperature}, {settings}"
    facts = rows, width, DTYPES.index(z.dtype), zlib.crc32(f"{op}, {more}".encode())
    return f"{_shape(facts)}, {more}", facts


def _shape(facts: Sequence[float]) -> str:
    rows, width, dtype = map(int, facts[:3])
    return f"{rows} x {width} {str(DTYPES[dtype]).removeprefix('torch.')}"


def _compare(
    rows: list[list[float]], group: Any, problem: Exception | None = None, summary: str = ""
) -> None:
    """Raise, with the same ranks' words, where one refuses or differs.

    Args:
        rows: of every rank.
        group: whose rows they are.
        problem: what this rank refuses.
        summary: of its arguments, in words.
    """
    words = [word for word, *_ in rows]
    if REFUSES not in words and all(facts == rows[0][1:] for _, *facts in rows):
        return
    if AGREED in words:  # that rank exchanges no words now
        everyone = [
            (
                "refuses its arguments" if word == REFUSES else "",
                f"{_shape(facts)}, settings {int(facts[3]):08x}",
            )
            for word, *facts in rows
        ]
    else:
        everyone = distributed.gather_objects((str(problem or ""), summary), group)
    if problem is not None:
        raise problem
    if refused := [f"rank {r}: {text}" for r, (text, _) in enumerate(everyone) if text]:
        raise ValueError("; ".join(refused))
    listing = "; ".join(f"rank {r}: {text}" for r, (_, text) in enumerate(everyone))
    raise ValueError(f"group: every rank must pass the like, got {listing}")
