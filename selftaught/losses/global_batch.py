"""The contrastive losses over the embeddings of all ranks.

Every rank owns the losses and the gradients of its own rows. Forward, the embeddings are gathered
and every pair of blocks is computed by one of its two ranks, for the rows of both; one exchange of
the log-sums (a number for each row) completes them. Backward, the rows' incoming gradients are
gathered (a number for each row), and each rank computes the gradient of all ranks' losses by its
own rows: no gradient is communicated, and DDP's averaging gives that of the global batch.

`exchange="ring"` never holds more than two ranks' embeddings: they travel, and every rank computes
its own rows whole.

Rows are ordered rank by rank, and within a rank first views, then second views.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from selftaught import distributed
from selftaught.kernels import contrastive as core
from selftaught.kernels import dispatch
from selftaught.kernels.tiles import Classes, Excluded, Rows, Side, Tiles


class Settings(NamedTuple):
    """What a loss over a group is told beside its tensors."""

    op: str
    fixed_temperature: float
    normalize: bool
    precision: str
    backend: str
    exchange: str
    group: Any


class Place(NamedTuple):
    """A group, and where in it this rank's `many` rows are."""

    tiles: Tiles
    tau: Tensor
    settings: Settings
    rank: int
    ranks: int
    many: int

    def rows(self, z: Tensor) -> Rows:
        """Rows made ready for the passes."""
        return self.tiles.prepare(z, self.settings.normalize, self.settings.precision)

    def gather(self, local: Tensor) -> Tensor:
        """All ranks' rows."""
        return distributed.gather(local, self.settings.group)

    def own(self, everyone: Any) -> Any:
        """This rank's part of a tensor or `Rows` of all ranks."""
        first = self.rank * self.many
        if isinstance(everyone, Tensor):
            return everyone[first : first + self.many]
        return everyone.part(first, self.many)


def _place(z: Tensor, temperature: Tensor | None, settings: Settings) -> Place:
    request = dispatch.Request(
        op=settings.op, device=z.device, dtype=z.dtype, width=int(z.shape[1])
    )
    tiles = dispatch.implementation(request, settings.backend).tiles
    group = settings.group
    return Place(
        tiles=tiles,
        tau=core.scale(temperature, settings.fixed_temperature, z),
        settings=settings,
        rank=distributed.rank(group),
        ranks=distributed.world_size(group),
        many=int(z.shape[0]),
    )


def _symmetric_log_sums(place: Place, everyone: Rows, half: int) -> Tensor:
    """(N,) log-sums of all ranks' rows over all rows but the row and, if `half`, its partner.

    Ranks a and b share their block: the one that is nearer going up computes it, and at half of an
    even circle each computes half of it.
    """
    tiles, tau, count = place.tiles, place.tau, place.many
    own = place.own(everyone)
    partial = torch.full_like(everyone.unit[:, 0], -torch.inf)

    def add(first: int, sums: Tensor | None) -> None:
        assert sums is not None
        there = partial[first : first + sums.shape[0]]
        there.copy_(torch.logaddexp(there, sums))

    def block(x_first: int, x_count: int, y_first: int, y_count: int) -> None:
        x, y = everyone.part(x_first, x_count), everyone.part(y_first, y_count)
        if x_count and y_count:
            of_rows, of_columns = tiles.log_sums(x, y, tau, None, columns=True)
            add(x_first, of_rows)
            add(y_first, of_columns)

    mine = place.rank * count
    add(mine, tiles.log_sums(own, own, tau, Excluded(0, half))[0])
    for distance in range(1, place.ranks // 2 + 1):
        other = (place.rank + distance) % place.ranks
        theirs = other * count
        if 2 * distance < place.ranks:
            block(mine, count, theirs, count)
        elif place.rank < other:
            block(mine, count // 2, theirs, count)
        else:
            block(mine, count, theirs + count // 2, count - count // 2)
    return distributed.log_sum_over_ranks(partial, place.settings.group)


def _ring_log_sums(place: Place, own: Rows, columns: Rows, z: Tensor, excluded: Excluded) -> Tensor:
    """(n,) log-sums of this rank's rows over all ranks' `z`, which travel; ours are `columns`."""
    total = own.unit.new_full((own.unit.shape[0],), -torch.inf)
    for source, (block,) in distributed.ring((z,), place.settings.group):
        here = source == place.rank
        y = columns if here else place.rows(block)
        sums, _ = place.tiles.log_sums(own, y, place.tau, excluded if here else None)
        total = torch.logaddexp(total, sums)
    return total


def _blocks(
    place: Place, everyone: Rows | None, z: Tensor, sides: tuple[Side, ...], excluded: Excluded
) -> Iterator[tuple[Rows, tuple[Side, ...], Excluded | None]]:
    """Columns for the gradient pass: all at once where they were gathered, else rank by rank.

    `sides` are those of the rows of all ranks, or, in a ring, of this rank's.
    """
    if everyone is not None:
        first = place.rank * place.many
        yield everyone, sides, Excluded(first + excluded.offset, excluded.half)
        return
    traveling = (z, *(vector for side in sides for vector in (side.weight, side.total)))
    for source, (block, *vectors) in distributed.ring(traveling, place.settings.group):
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        there = tuple(Side(weight, total) for weight, total in pairs)
        yield place.rows(block), there, excluded if source == place.rank else None


def _gradient(
    place: Place,
    own: Rows,
    blocks: Iterator[tuple[Rows, tuple[Side, ...], Excluded | None]],
    row: Side | None,
    classes: tuple[Tensor, Tensor] | None = None,
    *,
    slope: bool,
) -> tuple[Tensor, Tensor]:
    """Sums and slopes of this rank's rows over the blocks."""
    sums, slopes = torch.zeros_like(own.unit), torch.zeros_like(own.unit[:, 0])
    for y, sides, excluded in blocks:
        found, found_slopes = place.tiles.weighted_sums(
            own,
            y,
            place.tau,
            excluded,
            row=row,
            column=sides[0] if sides else None,
            classes=None if classes is None else Classes(*classes),
            slope=slope,
        )
        sums = sums + found
        slopes = slopes if found_slopes is None else slopes + found_slopes
    return sums, slopes


class NTXent(torch.autograd.Function):
    """(2B,) NT-Xent losses of this rank's images among those of all ranks."""

    @staticmethod
    def forward(
        ctx: Any, z1: Tensor, z2: Tensor, temperature: Tensor | None, settings: Settings
    ) -> Tensor:
        """Gather or send around, and sum."""
        z, half = torch.cat([z1, z2]).detach(), z1.shape[0]
        place = _place(z, temperature, settings)
        if settings.exchange == "ring":
            own = place.rows(z)
            positive = core.pair_positives(place.tiles, own, place.tau)
            log_sum = _ring_log_sums(place, own, own, z, Excluded(0, half))
            kept = z
        else:
            everyone = place.gather(z)
            rows = place.rows(everyone)
            log_sum = place.own(_symmetric_log_sums(place, rows, half))
            positive = core.pair_positives(place.tiles, place.own(rows), place.tau)
            kept = everyone
        loss = core.pair_loss(log_sum, positive)
        ctx.save_for_backward(kept, temperature, loss)
        ctx.settings, ctx.dtype, ctx.half = settings, z1.dtype, half
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of all ranks' losses by this rank's rows."""
        z, temperature, loss = ctx.saved_tensors
        ring, half = ctx.settings.exchange == "ring", ctx.half
        place = _place(z, temperature, ctx.settings)._replace(many=2 * half)
        rows = place.rows(z)
        own = rows if ring else place.own(rows)
        positive = core.pair_positives(place.tiles, own, place.tau)
        side = Side(grad, loss + positive, positive)
        column = side if ring else Side(place.gather(grad), place.gather(side.total))
        blocks = _blocks(place, None if ring else rows, z, (column,), Excluded(0, half))
        sums, slopes = _gradient(place, own, blocks, side, slope=ctx.needs_input_grad[2])
        pair = grad * torch.expm1(-loss)
        gradient = place.tiles.finish(
            sums, own, place.tau, core.other_views(own, half), pair + pair.roll(half)
        ).to(ctx.dtype)
        return *gradient.split(half), _of_temperature(temperature, slopes, place.tau), None


def _of_temperature(temperature: Tensor | None, slopes: Tensor, tau: Tensor) -> Tensor | None:
    return None if temperature is None else core.tau_gradient(slopes, tau).to(temperature.dtype)


class SupCon(torch.autograd.Function):
    """(2B,) SupCon losses of this rank's images among those of all ranks; (2B,) classes."""

    @staticmethod
    def forward(
        ctx: Any,
        z1: Tensor,
        z2: Tensor,
        classes: Tensor,
        temperature: Tensor | None,
        settings: Settings,
    ) -> Tensor:
        """Gather and sum."""
        z, half = torch.cat([z1, z2]).detach(), z1.shape[0]
        place = _place(z, temperature, settings)
        everyone, all_classes = place.gather(z), place.gather(classes)
        rows = place.rows(everyone)
        log_sum = _symmetric_log_sums(place, rows, half)
        loss = core.class_loss(log_sum, _class_positives(place, rows, all_classes, half))
        ctx.save_for_backward(everyone, all_classes, temperature, loss)
        ctx.settings, ctx.dtype, ctx.half = settings, z1.dtype, half
        return place.own(loss).clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of all ranks' losses by this rank's rows."""
        everyone, classes, temperature, loss = ctx.saved_tensors
        half = ctx.half
        place = _place(everyone, temperature, ctx.settings)._replace(many=2 * half)
        rows = place.rows(everyone)
        own = place.own(rows)
        positives = _class_positives(place, rows, classes, half)
        column = core.class_side(place.gather(grad), loss, positives)
        side = Side(*(place.own(value) for value in column))
        sums, slopes = _gradient(
            place,
            own,
            _blocks(place, rows, everyone, (column,), Excluded(0, half)),
            side,
            (place.own(classes), classes),
            slope=ctx.needs_input_grad[3],
        )
        mine = positives.part(place.rank * place.many, place.many)
        pair, pair_slopes = core.partner_weight(side, place.own(loss), mine)
        gradient = place.tiles.finish(
            sums, own, place.tau, core.other_views(own, half), pair + pair.roll(half)
        ).to(ctx.dtype)
        of_temperature = _of_temperature(temperature, slopes + pair_slopes, place.tau)
        return *gradient.split(half), None, of_temperature, None


def _class_positives(place: Place, rows: Rows, classes: Tensor, half: int) -> core.Positives:
    """Positives of all ranks' rows; the other view is `half` rows on within a rank's rows."""
    unit = rows.unit.view(place.ranks, 2, half, -1)
    first, second = (Rows(unit=unit[:, view].flatten(0, 1), inverse=None) for view in (0, 1))
    pairs = (place.tiles.dots(first, second) / place.tau).view(place.ranks, 1, half)
    return core.class_positives(
        place.tiles, rows, classes, place.tau, pairs.expand(-1, 2, -1).flatten()
    )


class InfoNCE(torch.autograd.Function):
    """(B,) losses of this rank's queries among all ranks' keys, (2B,) if symmetric.

    `negatives` are this rank's own; they get the gradient of this rank's losses.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        temperature: Tensor | None,
        symmetric: bool,
        settings: Settings,
    ) -> Tensor:
        """Gather or send around, and sum."""
        place = _place(query, temperature, settings)
        q, k = query.detach(), key.detach()
        x, own_keys = place.rows(q), place.rows(k)
        positive = place.tiles.dots(x, own_keys) / place.tau
        if settings.exchange == "ring":
            q_kept, k_kept = q, k
            sums = [_ring_log_sums(place, x, own_keys, k, Excluded(0))]
            if symmetric:
                sums.append(_ring_log_sums(place, own_keys, x, q, Excluded(0)))
        else:
            q_kept, k_kept = place.gather(torch.cat([q, k], 1)).split(q.shape[1], 1)
            y = place.rows(k_kept.contiguous())
            excluded = Excluded(place.rank * place.many)
            of_rows, of_columns = place.tiles.log_sums(x, y, place.tau, excluded, columns=symmetric)
            sums = [of_rows]
            if of_columns is not None:
                everyone = distributed.log_sum_over_ranks(of_columns, settings.group)
                sums.append(place.own(everyone))
        if negatives is not None:
            bank = place.rows(negatives.detach())
            sums[0] = torch.logaddexp(sums[0], place.tiles.log_sums(x, bank, place.tau, None)[0])
        loss = torch.cat([core.pair_loss(value, positive) for value in sums])
        ctx.save_for_backward(q_kept, k_kept, negatives, temperature, loss)
        ctx.settings, ctx.count = settings, place.many
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of all ranks' losses by this rank's queries and keys."""
        q, k, negatives, temperature, loss = ctx.saved_tensors
        ring, count, slope = ctx.settings.exchange == "ring", ctx.count, ctx.needs_input_grad[3]
        place = _place(q, temperature, ctx.settings)._replace(many=count)
        x_all, y_all = place.rows(q.contiguous()), place.rows(k.contiguous())
        x, y = (x_all, y_all) if ring else (place.own(x_all), place.own(y_all))
        positive = place.tiles.dots(x, y) / place.tau
        pairs = list(zip(grad.split(count), loss.split(count), strict=True))
        own = [Side(g, value + positive, positive) for g, value in pairs]
        whole = own if ring else [Side(place.gather(s.weight), place.gather(s.total)) for s in own]
        of_query, of_key = (own[0], whole[0]), (own[1:], tuple(whole[1:]))
        blocks = _blocks(place, None if ring else y_all, k, of_key[1], Excluded(0))
        q_sums, slopes = _gradient(place, x, blocks, of_query[0], slope=slope)
        blocks = _blocks(place, None if ring else x_all, q, (of_query[1],), Excluded(0))
        k_row = of_key[0][0] if of_key[0] else None
        k_sums, more = _gradient(place, y, blocks, k_row, slope=slope and k_row is not None)
        slopes = slopes + more
        bank_grad = None
        if negatives is not None:
            bank = place.rows(negatives)
            found, more_slopes = place.tiles.weighted_sums(
                x, bank, place.tau, None, row=of_query[0], column=None, slope=slope
            )
            q_sums = q_sums + found
            slopes = slopes if more_slopes is None else slopes + more_slopes
            if ctx.needs_input_grad[2]:
                found, _ = place.tiles.weighted_sums(
                    bank, x, place.tau, None, row=None, column=of_query[0]
                )
                bank_grad = place.tiles.finish(found, bank, place.tau).to(negatives.dtype)
        pair = sum((g * torch.expm1(-value) for g, value in pairs), torch.zeros_like(positive))
        return (
            place.tiles.finish(q_sums, x, place.tau, y, pair).to(q.dtype),
            place.tiles.finish(k_sums, y, place.tau, x, pair).to(k.dtype),
            bank_grad,
            _of_temperature(temperature, slopes, place.tau),
            None,
            None,
        )


def run(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Apply one of the functions above with autocast off, as the ops are."""
    with torch.autocast(arguments[0].device.type, enabled=False):
        return function(*arguments)
