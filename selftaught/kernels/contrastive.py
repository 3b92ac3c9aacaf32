"""NT-Xent, SupCon and InfoNCE, forward and backward, on the tiled passes of any backend.

The pair of a row and its positive never enters a pass. It is added in full precision: with
p the positive's logit and S the log-sum of the negatives, loss = log(1 + exp(S - p)) keeps the
digits of small losses, and the positive's part of the gradient is expm1(-loss), not the
difference of two numbers close to 1.

Shapes: B images, N rows of a batch, D width. Rows of one rank are its first views, then its second.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from selftaught.kernels.reference.common import cast, compute_dtype
from selftaught.kernels.tiles import Classes, Excluded, Rows, Side, Tiles


def scale(temperature: Tensor | None, fixed: float, z: Tensor) -> Tensor:
    """The temperature as a 0-d tensor in the dtype of the arithmetic, on the device of `z`."""
    if temperature is None:
        return torch.full((), fixed, dtype=compute_dtype(z), device=z.device)
    return temperature.detach().to(compute_dtype(z))


def pair_loss(log_sum: Tensor, positive: Tensor) -> Tensor:
    """Loss from the negatives' log-sum and the positive's logit, all (N,)."""
    above = log_sum - positive
    return torch.logaddexp(above, torch.zeros_like(above))


def other_views(x: Rows, half: int) -> Rows:
    """Of rows that are `half` first and `half` second views, each row's other view."""
    return Rows(unit=x.unit.roll(half, 0), inverse=None)


def pair_positives(tiles: Tiles, x: Rows, tau: Tensor) -> Tensor:
    """(N,) logits of rows (first views, then second views) with their other view."""
    half = x.unit.shape[0] // 2
    return (tiles.dots(x.part(0, half), x.part(half, half)) / tau).repeat(2)


@dataclass(frozen=True, kw_only=True)
class Positives:
    """What SupCon needs to know of the positives of N rows.

    Attributes:
        many: (N,) number of positives, in the dtype of the arithmetic.
        mean: (N,) mean logit over them, 0 where there are none.
        partner: (N,) logit of the other view above `mean`; None: rows are not paired.
    """

    many: Tensor
    mean: Tensor
    partner: Tensor | None

    def part(self, first: int, count: int) -> "Positives":
        """`count` rows from `first` on."""
        chosen = slice(first, first + count)
        partner = None if self.partner is None else self.partner[chosen]
        return Positives(many=self.many[chosen], mean=self.mean[chosen], partner=partner)


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


def class_positives(
    tiles: Tiles, x: Rows, classes: Tensor, tau: Tensor, pair_logits: Tensor | None
) -> Positives:
    """Positives of (N,) int64 `classes`; `pair_logits` (N,) where rows are paired."""
    others_ND, many = _class_sums(x.unit, classes)
    mean = tiles.dots(x, Rows(unit=others_ND, inverse=None)) / (many.clamp(min=1) * tau)
    if pair_logits is None:
        return Positives(many=many, mean=mean.masked_fill(many == 0, 0), partner=None)
    # Where the partner is the only positive, their difference has to be exactly 0.
    mean = torch.where(many == 1, pair_logits, mean)
    return Positives(many=many, mean=mean, partner=pair_logits - mean)


def class_loss(log_sum: Tensor, positives: Positives) -> Tensor:
    """SupCon's loss from the log-sum over all rows but the row and, if paired, its partner."""
    above = log_sum - positives.mean
    if positives.partner is not None:
        above = torch.logaddexp(above, positives.partner)
    return above.masked_fill(positives.many == 0, 0)


def class_side(weight: Tensor, loss: Tensor, positives: Positives) -> Side:
    """What the gradient pass needs for rows with losses of SupCon."""
    weight = weight.masked_fill(positives.many == 0, 0)
    return Side(
        weight=weight,
        total=loss + positives.mean,
        positive=positives.mean,
        share=weight / positives.many.clamp(min=1),
    )


def partner_weight(side: Side, loss: Tensor, positives: Positives) -> tuple[Tensor, Tensor]:
    """SupCon's weight of the partner, softmax - 1/n, and its part of the slope; both (N,)."""
    assert positives.partner is not None
    log_share = positives.partner - loss
    # expm1 keeps the digits where the softmax is close to 1/n.
    weight = side.weight * torch.expm1(log_share + positives.many.log()) / positives.many
    return weight, side.weight * log_share.exp() * positives.partner


class Contrastive:
    """The three losses and their backwards as a backend exposes them, on its passes.

    The methods have the names, arguments and results of `kernels.reference`.
    """

    def __init__(self, tiles: Tiles) -> None:
        self._tiles = tiles

    def ntxent(
        self,
        z1: Tensor,
        z2: Tensor,
        temperature: Tensor | None,
        fixed_temperature: float,
        normalize: bool,
        precision: str,
    ) -> Tensor:
        """(2B,) losses; see `reference.ntxent`."""
        tau = scale(temperature, fixed_temperature, z1)
        x = self._tiles.prepare(torch.cat([z1, z2]), normalize, precision)
        log_sum, _ = self._tiles.log_sums(x, x, tau, Excluded(0, z1.shape[0]))
        return pair_loss(log_sum, pair_positives(self._tiles, x, tau))

    def ntxent_backward(
        self,
        grad: Tensor,
        z1: Tensor,
        z2: Tensor,
        temperature: Tensor | None,
        fixed_temperature: float,
        normalize: bool,
        precision: str,
        loss: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients by z1, z2 and temperature; see `reference.ntxent_backward`."""
        half, tiles = z1.shape[0], self._tiles
        tau = scale(temperature, fixed_temperature, z1)
        x = tiles.prepare(torch.cat([z1, z2]), normalize, precision)
        positive = pair_positives(tiles, x, tau)
        side = Side(grad, loss + positive, positive)
        sums, slopes = tiles.weighted_sums(
            x, x, tau, Excluded(0, half), row=side, column=side, slope=needs[2]
        )
        own = grad * torch.expm1(-loss)
        gradient = tiles.finish(sums, x, tau, other_views(x, half), own + own.roll(half))
        grads = [*gradient.split(half), tau_gradient(slopes, tau)]
        return cast(grads, [z1, z2, temperature], needs)

    def supcon(
        self,
        z: Tensor,
        classes: Tensor,
        temperature: Tensor | None,
        fixed_temperature: float,
        paired: bool,
        normalize: bool,
        precision: str,
    ) -> Tensor:
        """(N,) losses; see `reference.supcon`."""
        tau = scale(temperature, fixed_temperature, z)
        x = self._tiles.prepare(z, normalize, precision)
        pairs = pair_positives(self._tiles, x, tau) if paired else None
        log_sum, _ = self._tiles.log_sums(x, x, tau, _self_and_pair(z, paired))
        return class_loss(log_sum, class_positives(self._tiles, x, classes, tau, pairs))

    def supcon_backward(
        self,
        grad: Tensor,
        z: Tensor,
        classes: Tensor,
        temperature: Tensor | None,
        fixed_temperature: float,
        paired: bool,
        normalize: bool,
        precision: str,
        loss: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients by z and temperature; see `reference.supcon_backward`."""
        tiles = self._tiles
        tau = scale(temperature, fixed_temperature, z)
        x = tiles.prepare(z, normalize, precision)
        pairs = pair_positives(tiles, x, tau) if paired else None
        positives = class_positives(tiles, x, classes, tau, pairs)
        side = class_side(grad, loss, positives)
        sums, slopes = tiles.weighted_sums(
            x,
            x,
            tau,
            _self_and_pair(z, paired),
            row=side,
            column=side,
            classes=Classes(classes, classes),
            slope=needs[1],
        )
        partner = coefficient = None
        if paired:
            half = z.shape[0] // 2
            own, partner_slopes = partner_weight(side, loss, positives)
            partner, coefficient = other_views(x, half), own + own.roll(half)
            slopes = None if slopes is None else slopes + partner_slopes
        gradient = tiles.finish(sums, x, tau, partner, coefficient)
        return cast([gradient, tau_gradient(slopes, tau)], [z, temperature], needs)

    def info_nce(
        self,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        temperature: Tensor | None,
        fixed_temperature: float,
        symmetric: bool,
        in_batch: bool,
        normalize: bool,
        precision: str,
    ) -> Tensor:
        """(B,) or (2B,) losses; see `reference.info_nce`."""
        tiles, count = self._tiles, query.shape[0]
        tau = scale(temperature, fixed_temperature, query)
        x = tiles.prepare(query, normalize, precision)
        y = tiles.prepare(_keys(key, negatives), normalize, precision)
        positive = tiles.dots(x, y.part(0, count)) / tau
        columns, excluded = _columns(y, count, in_batch)
        if columns is None:
            return torch.zeros_like(positive)
        of_rows, of_columns = tiles.log_sums(x, columns, tau, excluded, columns=symmetric)
        loss = pair_loss(of_rows, positive)
        return loss if of_columns is None else torch.cat([loss, pair_loss(of_columns, positive)])

    def info_nce_backward(
        self,
        grad: Tensor,
        query: Tensor,
        key: Tensor,
        negatives: Tensor | None,
        temperature: Tensor | None,
        fixed_temperature: float,
        symmetric: bool,
        in_batch: bool,
        normalize: bool,
        precision: str,
        loss: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients by query, key, negatives and temperature; see `reference`."""
        tiles, count = self._tiles, query.shape[0]
        tau = scale(temperature, fixed_temperature, query)
        x = tiles.prepare(query, normalize, precision)
        y = tiles.prepare(_keys(key, negatives), normalize, precision)
        key_rows, bank = y.part(0, count), y.part(count, y.unit.shape[0] - count)
        positive = tiles.dots(x, key_rows) / tau
        sides = [
            Side(g, value + positive, positive)
            for g, value in zip(grad.split(count), loss.split(count), strict=True)
        ]
        of_query, of_key = sides[0], sides[1] if symmetric else None
        own = grad * torch.expm1(-loss)
        coefficient = own.view(-1, count).sum(0)
        columns, excluded = _columns(y, count, in_batch)
        nothing = x.unit.new_zeros(x.unit.shape)
        sums, slopes = nothing, x.unit.new_zeros(count)
        grads: list[Tensor] = []
        if columns is not None:
            sums, found = tiles.weighted_sums(
                x, columns, tau, excluded, row=of_query, column=of_key, slope=needs[3]
            )
            slopes = slopes if found is None else found
        grads.append(tiles.finish(sums, x, tau, key_rows, coefficient))
        sums = nothing
        if in_batch and (needs[1] or (needs[3] and symmetric)):
            sums, found = tiles.weighted_sums(
                key_rows,
                x,
                tau,
                excluded,
                row=of_key,
                column=of_query,
                slope=needs[3] and symmetric,
            )
            slopes = slopes if found is None else slopes + found
        grads.append(tiles.finish(sums, key_rows, tau, x, coefficient))
        of_bank = bank.unit
        if needs[2] and bank.unit.shape[0]:
            sums, _ = tiles.weighted_sums(bank, x, tau, None, row=None, column=of_query)
            of_bank = tiles.finish(sums, bank, tau)
        grads += [of_bank, tau_gradient(slopes, tau)]
        return cast(grads, [query, key, negatives, temperature], needs)


def tau_gradient(slopes: Tensor | None, tau: Tensor) -> Tensor:
    """0-d gradient by the temperature from rows' slopes; 0 where they were not asked for."""
    return torch.zeros_like(tau) if slopes is None else -slopes.sum() / tau


def _self_and_pair(z: Tensor, paired: bool) -> Excluded:
    return Excluded(0, z.shape[0] // 2 if paired else 0)


def _keys(key: Tensor, negatives: Tensor | None) -> Tensor:
    return key if negatives is None else torch.cat([key, negatives])


def _columns(y: Rows, count: int, in_batch: bool) -> tuple[Rows | None, Excluded | None]:
    """The keys a query is compared with; None where there are none."""
    if in_batch:
        return y, Excluded(0)
    many = y.unit.shape[0] - count
    return (y.part(count, many), None) if many else (None, None)
