"""The contrastive losses over the ranks of a group, as ops.

torch.compile takes an op as one step of its graph, whatever the op sends to other ranks. Results of
an op share no memory with its arguments or each other: where a rank holds nothing beside its own
rows, such a result is empty.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from selftaught import distributed
from selftaught.kernels.blocks import Call, Peers
from selftaught.kernels.contrastive import SUPCON, Loss
from selftaught.kernels.reference.common import cast, compute_dtype
from selftaught.kernels.registration import Functions
from selftaught.kernels.tiles import Tiles


def group_name(group: distributed.Group = None) -> str:
    """What an op calls `group` by, since an op takes no process group; "" for the default one."""
    return "" if group is None else str(group.group_name)


def _call(loss: Loss, tiles: Tiles, settings: Sequence[Any]) -> Call:
    fixed, *flags, normalize, precision, travel, name = settings
    group = distributed.group_named(name)
    return Call(
        tiles=tiles,
        fixed_temperature=fixed,
        normalize=normalize,
        precision=precision,
        peers=Peers(distributed.rank(group), distributed.world_size(group), group),
        travel=travel,
        **dict(zip(loss.flags, flags, strict=True)),
    )


def _beside(held: Tensor | None, own: Tensor | None) -> Tensor:
    """What is held where that is more than this rank's own, else an empty tensor."""
    assert held is not None
    return held.new_empty(0) if held is own else held


def over_ranks(loss: Loss, tiles: Tiles) -> Functions:
    """A loss and its backward on the passes of a backend, with the arguments of their ops.

    The outputs are the losses of this rank's rows, the inputs at `loss.gathered` of all ranks,
    and, for a loss whose backward takes them, the losses of all ranks' rows.
    """
    count, extra = loss.differentiable[-1] + 1, len(loss.gathered) + 1

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        own = arguments[:count]
        value, (*held, losses) = loss.forward(_call(loss, tiles, arguments[count:]), *own)
        beside = [_beside(held[place], own[place]) for place in loss.gathered]
        return (value.clone(), *beside, _beside(losses, value))

    def backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
        *passed, needs = arguments
        passed, (value, *beside, losses) = passed[: -extra - 1], passed[-extra - 1 :]
        held = list(passed[:count])
        for place, tensor in zip(loss.gathered, beside, strict=True):
            held[place] = tensor if tensor.numel() else held[place]
        call = _call(loss, tiles, passed[count:])
        losses = losses if losses.numel() else value
        grads = loss.backward(call, grad, *held, losses, needs)
        return cast(grads, [passed[place] for place in loss.differentiable], needs)

    return forward, backward


def fake_over_ranks(loss: Loss, *arguments: Any) -> tuple[Tensor, ...]:
    """Shapes and dtypes of the outputs."""
    *own, travel, name, _ = arguments
    flags = dict(zip(loss.flags, own[loss.differentiable[-1] + 2 :], strict=False))
    ranks = distributed.world_size(distributed.group_named(name))
    beside = 0 if travel or ranks == 1 else ranks
    z, dtype = own[0], compute_dtype(own[0])
    gathered = [
        t.new_empty(beside * t.shape[0], *t.shape[1:]) if beside else t.new_empty(0)
        for t in (own[place] for place in loss.gathered)
    ]
    rows = z.shape[0] * (2 if flags.get("symmetric") else 1)
    losses = beside * rows if loss is SUPCON else 0
    return z.new_empty(rows, dtype=dtype), *gathered, z.new_empty(losses, dtype=dtype)


def gather(local: Tensor) -> Tensor:
    """Rows of all ranks in rank order, without gradient."""
    return distributed.gather(local).clone()


def fake_gather(local: Tensor) -> Tensor:
    """Its shape and dtype."""
    return local.new_empty(distributed.world_size() * local.shape[0], *local.shape[1:])
