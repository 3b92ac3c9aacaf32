"""NT-Xent, SupCon and InfoNCE, forward and backward, on the passes of any backend over any ranks.

The pair of a row and its positive never enters a pass. It is added in full precision: with
p the positive's logit and S the log-sum of the negatives, loss = log(1 + exp(S - p)) keeps the
digits of small losses, and the positive's part of the gradient is expm1(-loss), not the
difference of two numbers close to 1.

Every rank has the losses and the gradients of its own rows. Forward, the embeddings are gathered
and each rank compares its rows with all. Backward, two numbers of each row are gathered (its
incoming gradient and its log-sum), and each rank computes the gradient of all ranks' losses by its
own rows: no gradient is communicated, and DDP's averaging gives that of the global batch.

Two ranks could share their block, which halves the forward's products. That takes a launch and a
merge for every pair of ranks, and by estimate pays off above some 16,384 rows a rank: batches of
65,000 images on eight GPUs.

A forward gives the losses, and what its backward takes after the gradient: the tensors of all rows
that this rank holds, and their losses. A backward gives the gradients of the forward's tensors.

Shapes: B images, n rows of this rank, N rows that it holds, D width. A rank's rows are first views,
then second views.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught.kernels.blocks import Block, Call, blocks, log_sums
from selftaught.kernels.blocks import weighted_sums as sums_of_blocks
from selftaught.kernels.reference.common import cast
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side, Tiles

Kept = tuple[Tensor | None, ...]


def _pair_loss(log_sum: Tensor, positive: Tensor) -> Tensor:
    """Loss from the negatives' log-sum and the positive's logit, all (n,)."""
    # The positive's own term is exp(0), but NaN where its logit is not finite.
    return torch.logaddexp(log_sum - positive, 0 * positive)


def _pair_logits(tiles: Tiles, x: Embeddings, tau: Tensor, ranks: int = 1) -> Tensor:
    """Logits of rows with their other view; `x` holds the rows of as many ranks."""
    views = x.unit.unflatten(0, (ranks, 2, -1))
    first, second = (Embeddings(unit=views[:, view].flatten(0, 1), inverse=None) for view in (0, 1))
    pairs = (tiles.dots(first, second) / tau).view(ranks, 1, -1)
    return pairs.expand(-1, 2, -1).flatten()


def _finish_pairs(tiles: Tiles, sums: Tensor, x: Embeddings, tau: Tensor, pair: Tensor) -> Tensor:
    """Gradient by rows from the sums and the (n,) weight of each row's other view."""
    half = x.unit.shape[0] // 2
    others = Embeddings(unit=x.unit.roll(half, 0), inverse=None)
    return tiles.finish(sums, x, tau, others, pair + pair.roll(half))


def _of_tau(tau: Tensor, slopes: Tensor | None) -> Tensor:
    """0-d gradient by the temperature from rows' slopes; 0 where they were not asked for."""
    return torch.zeros_like(tau) if slopes is None else -slopes.sum() / tau


def ntxent(call: Call, z: Tensor, temperature: Tensor | None) -> tuple[Tensor, Kept]:
    """(n,) losses of rows, and what its backward takes."""
    tau, count, half = call.scale(temperature, z), z.shape[0], z.shape[0] // 2
    kept = z if call.travel else call.peers.gather(z)
    held = call.rows(kept)
    x = call.part(held, count)
    there = blocks(call, held, z, Excluded(call.first(count), half))
    log_sum = log_sums(call, x, there, tau)
    loss = _pair_loss(log_sum, _pair_logits(call.tiles, x, tau))
    return loss, (kept, temperature, loss)


def ntxent_backward(
    call: Call,
    grad: Tensor,
    z: Tensor,
    temperature: Tensor | None,
    loss: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients by z and temperature."""
    tau, count, half = call.scale(temperature, z), grad.shape[0], grad.shape[0] // 2
    held = call.rows(z)
    x = call.part(held, count)
    positive = _pair_logits(call.tiles, x, tau)
    row = Side(grad, loss + positive, positive)
    (column,) = call.columns([row])
    columns = blocks(call, held, z, Excluded(call.first(count), half), column)
    sums, slopes = sums_of_blocks(call, x, columns, tau, row, slope=needs[1])
    gradient = _finish_pairs(call.tiles, sums, x, tau, grad * torch.expm1(-loss))
    return [gradient, _of_tau(tau, slopes)]


class _Positives(NamedTuple):
    """What SupCon needs to know of the positives of N rows.

    Attributes:
        many: (N,) number of positives, in the dtype of the arithmetic.
        mean: (N,) mean logit over them, 0 where there are none.
        partner: (N,) logit of the other view above `mean`; None: rows are not paired.
    """

    many: Tensor
    mean: Tensor
    partner: Tensor | None


def _class_sums(unit_ND: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over the other rows of a row's class (N, D), and their number (N,)."""
    sorted_N, order_N = classes.sort(stable=True)
    new_N = torch.ones_like(sorted_N)
    new_N[1:] = sorted_N[1:] != sorted_N[:-1]
    place_N = torch.empty_like(order_N).scatter_(0, order_N, new_N.cumsum(0) - 1)
    ones_N1 = unit_ND.new_ones(unit_ND.shape[0], 1)
    # index_add_ on CUDA adds in any order; index_put_ sorts first and so repeats to the bit.
    sums_ND, many_N1 = (
        torch.zeros_like(values).index_put_((place_N,), values, accumulate=True)
        if values.is_cuda
        else torch.zeros_like(values).index_add_(0, place_N, values)
        for values in (unit_ND, ones_N1)
    )
    return sums_ND[place_N] - unit_ND, many_N1[place_N, 0] - 1


def _positives(call: Call, held: Embeddings, classes: Tensor, tau: Tensor) -> _Positives:
    """Positives of rows by their (N,) int64 classes."""
    others_ND, many = _class_sums(held.unit, classes)
    others = Embeddings(unit=others_ND, inverse=None)
    mean = call.tiles.dots(held, others) / (many.clamp(min=1) * tau)
    if not call.paired:
        return _Positives(many, mean.masked_fill(many == 0, 0), None)
    pairs = _pair_logits(call.tiles, held, tau, call.peers.ranks)
    # Where the partner is the only positive, their difference has to be exactly 0.
    mean = torch.where(many == 1, pairs, mean)
    return _Positives(many, mean, pairs - mean)


def supcon(
    call: Call, z: Tensor, classes: Tensor, temperature: Tensor | None
) -> tuple[Tensor, Kept]:
    """(n,) losses of rows with (n,) int64 classes, and what its backward takes."""
    tau, count = call.scale(temperature, z), z.shape[0]
    kept, classes = call.peers.gather(z), call.peers.gather(classes)
    held = call.rows(kept)
    excluded = Excluded(call.first(count), count // 2 if call.paired else 0)
    own = log_sums(call, call.part(held, count), blocks(call, held, z, excluded), tau)
    log_sum = call.peers.gather(own)
    many, mean, partner = _positives(call, held, classes, tau)
    above = log_sum - mean
    if partner is not None:
        above = torch.logaddexp(above, partner)
    loss = above.masked_fill(many == 0, 0)
    return call.part(loss, count), (kept, classes, temperature, loss)


def supcon_backward(
    call: Call,
    grad: Tensor,
    z: Tensor,
    classes: Tensor,
    temperature: Tensor | None,
    loss: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients by z and temperature."""
    tau, count = call.scale(temperature, z), grad.shape[0]
    held = call.rows(z)
    x = call.part(held, count)
    positives = _positives(call, held, classes, tau)
    weight = call.peers.gather(grad).masked_fill(positives.many == 0, 0)
    share = weight / positives.many.clamp(min=1)
    column = Side(weight, loss + positives.mean, positives.mean, share)
    row = column if x is held else Side(*(call.part(part, count) for part in column))
    excluded = Excluded(call.first(count), count // 2 if call.paired else 0)
    sums, slopes = sums_of_blocks(
        call,
        x,
        blocks(call, held, z, excluded, column),
        tau,
        row,
        classes=Classes(call.part(classes, count), classes),
        slope=needs[1],
    )
    if positives.partner is None:
        return [call.tiles.finish(sums, x, tau), _of_tau(tau, slopes)]
    above, many = call.part(positives.partner, count), call.part(positives.many, count)
    log_share = above - call.part(loss, count)
    # The partner's softmax - 1/n; expm1 keeps the digits where the two are close.
    pair = row.weight * torch.expm1(log_share + many.log()) / many
    if slopes is not None:
        slopes = slopes + row.weight * log_share.exp() * above
    return [_finish_pairs(call.tiles, sums, x, tau, pair), _of_tau(tau, slopes)]


def _joined(keys: Tensor, negatives: Tensor | None) -> Tensor:
    return keys if negatives is None else torch.cat([keys, negatives])


def info_nce(
    call: Call, query: Tensor, key: Tensor, negatives: Tensor | None, temperature: Tensor | None
) -> tuple[Tensor, Kept]:
    """(n,) or (2n,) losses of queries and keys, and what its backward takes.

    Negatives are this rank's; they get the gradient of this rank's losses.
    """
    tiles, tau, count = call.tiles, call.scale(temperature, query), query.shape[0]
    first = call.first(count)
    queries, keys = (query, key) if call.travel else call.peers.gather_all([query, key])
    x, y = call.rows(query), call.rows(_joined(keys, negatives))
    mine = y.part(first, count)
    positive = tiles.dots(x, mine) / tau
    if not call.in_batch:
        bank = y.part(count, y.unit.shape[0] - count)
        sums = [tiles.log_sums(x, bank, tau, None)[0]]
    elif call.travel:
        sums = [log_sums(call, x, blocks(call, y, key, Excluded(0)), tau)]
        if call.symmetric:
            sums.append(log_sums(call, mine, blocks(call, x, query, Excluded(0)), tau))
    else:
        of_rows, of_columns = tiles.log_sums(x, y, tau, Excluded(first), columns=call.symmetric)
        sums = [of_rows]
        if of_columns is not None:
            sums.append(call.part(call.peers.add(of_columns), count))
    loss = torch.cat([_pair_loss(value, positive) for value in sums])
    return loss, (queries, keys, negatives, temperature, loss)


def info_nce_backward(
    call: Call,
    grad: Tensor,
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    temperature: Tensor | None,
    loss: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients by query, key, negatives and temperature."""
    tiles, tau, symmetric = call.tiles, call.scale(temperature, queries), call.symmetric
    count = loss.shape[0] // (2 if symmetric else 1)
    first, many = call.first(count), keys.shape[0]
    held, y = call.rows(queries), call.rows(_joined(keys, negatives))
    x, mine = call.part(held, count), y.part(first, count)
    bank = y.part(many, y.unit.shape[0] - many)
    positive = tiles.dots(x, mine) / tau
    rows = [
        Side(g, value + positive, positive)
        for g, value in zip(grad.split(count), loss.split(count), strict=True)
    ]
    columns = call.columns(rows) if call.in_batch else rows
    key_row, key_column = (rows[1], columns[1]) if symmetric else (None, None)
    there: Iterable[Block] = [Block(bank, None, None)]
    if call.in_batch:
        there = blocks(call, y, keys, Excluded(first), key_column)
    sums, slopes = sums_of_blocks(call, x, there, tau, rows[0], slope=needs[3])
    key_sums = torch.zeros_like(mine.unit)
    # In a ring every rank has to pass on what arrives, whatever it needs.
    if call.in_batch and (call.travel or needs[1] or (needs[3] and symmetric)):
        there = blocks(call, held, queries, Excluded(first), columns[0])
        slope = needs[3] and symmetric
        key_sums, more = sums_of_blocks(call, mine, there, tau, key_row, slope=slope)
        slopes = slopes if more is None or slopes is None else slopes + more
    of_bank = bank.unit
    if needs[2] and negatives is not None:
        bank_sums, _ = tiles.weighted_sums(bank, x, tau, None, row=None, column=rows[0])
        of_bank = tiles.finish(bank_sums, bank, tau)
    pair = (grad * torch.expm1(-loss)).view(-1, count).sum(0)
    of_query = tiles.finish(sums, x, tau, mine, pair)
    of_key = tiles.finish(key_sums, mine, tau, x, pair)
    return [of_query, of_key, of_bank, _of_tau(tau, slopes)]


class Loss(NamedTuple):
    """A loss as the ops and the groups of ranks take it.

    Attributes:
        name: its op's name.
        forward: the loss.
        backward: its gradients.
        differentiable: positions of the tensors that have a gradient; the temperature is last.
        gathered: positions of those that a group gathers from all ranks.
        flags: its settings in the order of the op's arguments.
    """

    name: str
    forward: Callable[..., tuple[Tensor, Kept]]
    backward: Callable[..., list[Tensor]]
    differentiable: tuple[int, ...]
    gathered: tuple[int, ...]
    flags: tuple[str, ...] = ()


NTXENT = Loss("ntxent", ntxent, ntxent_backward, (0, 1), (0,))
SUPCON = Loss("supcon", supcon, supcon_backward, (0, 2), (0, 1), ("paired",))
INFO_NCE = Loss(
    "info_nce", info_nce, info_nce_backward, (0, 1, 2, 3), (0, 1), ("symmetric", "in_batch")
)


def _op(tiles: Tiles, loss: Loss) -> tuple[Callable[..., Tensor], Callable[..., list[Tensor]]]:
    """Forward and backward of a process alone, with the arguments and results of `reference`."""
    tensors = loss.differentiable[-1] + 1

    def call(fixed: float, *settings: Any) -> Call:
        *flags, normalize, precision = settings
        return Call(
            tiles=tiles,
            fixed_temperature=fixed,
            normalize=normalize,
            precision=precision,
            **dict(zip(loss.flags, flags, strict=True)),
        )

    def forward(*arguments: Any) -> Tensor:
        return loss.forward(call(*arguments[tensors:]), *arguments[:tensors])[0]

    def backward(grad: Tensor, *arguments: Any) -> list[Tensor]:
        *passed, value, needs = arguments
        grads = loss.backward(call(*passed[tensors:]), grad, *passed[:tensors], value, needs)
        return cast(grads, [passed[place] for place in loss.differentiable], needs)

    return forward, backward


class Contrastive:
    """The ops of a process alone as a backend exposes them, on its passes."""

    def __init__(self, tiles: Tiles) -> None:
        self.ntxent, self.ntxent_backward = _op(tiles, NTXENT)
        self.supcon, self.supcon_backward = _op(tiles, SUPCON)
        self.info_nce, self.info_nce_backward = _op(tiles, INFO_NCE)
