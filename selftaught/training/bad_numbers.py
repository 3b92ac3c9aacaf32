"""On which rank, and in which files, a number that is not finite began.

Statistics and gradients are averaged, so that one rank's bad number is soon in all of them. Only
once that has happened is it asked where from, so that a good step costs no search.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.errors import MachineError
from selftaught.training.engine import Batch, Engine
from selftaught.training.words import Turn

LOSS, PIXELS = 1, 2


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.detach().flatten() for one in tensors])


@contextmanager
def buffers_kept(task: nn.Module, bad: Tensor) -> Iterator[None]:
    """The task's floating-point buffers are as before where `bad` is true at the end.

    A forward pass has moved running statistics before its loss is known to be bad. Nothing waits
    for the device, and each kind of buffer costs a few launches, however many there are.

    Args:
        task: whose buffers change in place, if at all.
        bad: 0-d boolean on their device.
    """
    kinds: dict[torch.dtype, list[Tensor]] = {}
    for one in task.buffers():
        if one.is_floating_point():
            kinds.setdefault(one.dtype, []).append(one)
    before = {kind: _joined(some) for kind, some in kinds.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for kind, some in kinds.items():
                right = torch.where(bad, before[kind], _joined(some))
                parts = right.split([one.numel() for one in some])
                shaped = [part.view_as(one) for part, one in zip(parts, some, strict=True)]
                torch._foreach_copy_(some, shaped)


def report_bad_numbers(
    engine: Engine,
    turn: Turn,
    loss: float,
    norm: float,
    files: Callable[[Tensor], list[str]],
) -> NoReturn:
    """Raise on every rank the error that names the ranks where the non-finite figures began.

    Ranks with bad pixels are named, else those with a bad loss, else those whose own gradient is
    bad nearest to the loss when the step is computed again.

    Args:
        engine: holds the parameters as they were before the step; it must not train on.
        turn: whose loss and gradient they are, with this rank's micro-batches.
        loss: of this rank.
        norm: of the averaged gradient.
        files: names of samples.

    Raises:
        MachineError: always.
    """
    step, player, micro = turn
    ids = torch.cat([one["ids"] for one in micro])
    views = torch.cat([one["views"] for one in micro])
    wrong = ~torch.isfinite(views).flatten(1).all(1).cpu()
    grade = PIXELS if wrong.any() else LOSS if not math.isfinite(loss) else 0
    bad, what = (ids[wrong], "pixels of files") if grade == PIXELS else (ids, "files")
    if not any(distributed.gather_objects(grade)):
        reached = [bad_gradients(engine, one, player) for one in micro]
        grade = max(reached)
        if grade:
            bad = torch.cat([one["ids"] for one, n in zip(micro, reached, strict=True) if n])
        what = f"{grade} parameters with a bad gradient when computed again, files"
    this_rank = f"rank {distributed.rank()}: loss {loss:g}, gradient norm {norm:g}, {what}: "
    everyone = distributed.gather_objects((grade, this_rank + ", ".join(files(bad))))
    worst = max(grade for grade, _ in everyone)
    worst_ranks = "; ".join(text for grade, text in everyone if grade == worst)
    raise MachineError(
        f"step {step}: not finite, stopped before the update, last checkpoint intact: {worst_ranks}"
    )


def bad_gradients(engine: Engine, micro: Batch, player: str = "all") -> int:
    """Number of parameters whose gradient of this rank's own loss is not finite.

    Synchronised norms pass a bad gradient on to all ranks, but only further back: the rank that it
    began on has the most such parameters. All ranks take part.
    """
    parameters = [p for p in engine.task.parameters_of(player) if p.requires_grad]
    with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=engine.bf16):
        loss = engine.task(micro, player)["loss"]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return sum(not bool(g.isfinite().all()) for g in gradients if g is not None)
