"""What follows the tiles in Triton: partial sums are added up, logarithms and losses taken.

Where no one shift of the logits keeps their exponentials in float32's range, rows are summed below
their maximum instead, by kernels that do nothing elsewhere. See `log_sums` for the notation.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.triton import tuning
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.pieces import (
    LEFT_OUT,
    chunked_product,
    fixed_shift,
    left_out,
    log2e,
    log_of_one_more,
    logarithm,
    scale_and_reach,
)

MERGED = 256
# Programs that share a row where its maximum has to be found.
ROBUST_PARTS = 8
# Integers that a kernel is not compiled anew for.
COUNTS = ["R", "C", "half", "row_shift", "column_shift", "visits", "visits_each", "bits"]
PARTS = ["bits", "N", "part_count", "more_first", "more_end", "program_count"]


@triton.jit(do_not_specialize=COUNTS)
def sum_rows(
    x, x_low, y, y_low, x_stats, y_stats, temperature, maxima, sums,
    R, C, bits, half, row_shift, column_shift, visits, visits_each,
    WIDTH: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, CHUNK: tl.constexpr,
    SPLIT: tl.constexpr, EXCLUDE: tl.constexpr,
):  # fmt: skip
    """Rows' sums below their running maximum, where one shift for all would leave float32's range.

    Program (b, p) owns row block b and visits `visits_each` column blocks from p * visits_each on;
    writes `maxima` and `sums` (programs, R). Does nothing in the range that `sum_tiles` serves.
    Grid: (blocks, programs).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    _, safe = fixed_shift(reach, bits)
    if safe:
        return
    first_row = tl.program_id(0) * BX
    begin = tl.program_id(1) * visits_each
    end = tl.minimum(begin + visits_each, visits)
    rows = first_row + tl.arange(0, BX)
    highest = tl.full((BX,), LEFT_OUT, tl.float32)
    total = tl.zeros((BX,), tl.float32)
    for visit in range(begin, end):
        first = visit * BY
        products = chunked_product(
            x, x_low, first_row, R, y, y_low, first, C, WIDTH, CHUNK, BX, BY, SPLIT
        )
        out = left_out(
            (rows + row_shift)[:, None], tl.arange(0, BY)[None, :], first + column_shift, C - first,
            half, EXCLUDE,
        )  # fmt: skip
        logits = tl.where(out, LEFT_OUT, products * scale)
        above = tl.maximum(highest, tl.max(logits, 1))
        powers = tl.where(out, 0.0, tl.exp2(logits - above[:, None]))
        total = total * tl.exp2(highest - above) + tl.sum(powers, 1)
        highest = above
    target = tl.program_id(1).to(tl.int64) * R + rows
    tl.store(maxima + target, highest, mask=rows < R)
    tl.store(sums + target, total, mask=rows < R)


@triton.jit
def _add_up(
    running, parts, more_parts, places, N, part_count, more_first, more_end, FIRST: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """`running` and partial sums, in their order; see `merge_sums`."""
    there = places < N
    if FIRST:
        total = tl.zeros((BLOCK,), tl.float32)
    else:
        total = tl.load(running + places, mask=there, other=0.0)
    for part in range(0, part_count):
        total += tl.load(parts + places + part * N.to(tl.int64), mask=there, other=0.0)
    for part in range(more_first, more_end):
        total += tl.load(more_parts + places + part * N.to(tl.int64), mask=there, other=0.0)
    return total


@triton.jit
def _below_maxima(maxima, row_sums, places, N, program_count, BLOCK: tl.constexpr):
    """Sums and maxima of rows from those of the programs of `sum_rows`."""
    there = places < N
    highest = tl.full((BLOCK,), LEFT_OUT, tl.float32)
    for part in range(0, program_count):
        maximum = tl.load(maxima + places + part * N.to(tl.int64), mask=there, other=0.0)
        highest = tl.maximum(highest, maximum)
    total = tl.zeros((BLOCK,), tl.float32)
    for part in range(0, program_count):
        place = places + part * N.to(tl.int64)
        maximum = tl.load(maxima + place, mask=there, other=0.0)
        some = tl.load(row_sums + place, mask=there, other=0.0)
        total += some * tl.exp2(maximum - highest)
    return total, highest


@triton.jit
def _store_losses(
    total, places, shift, alike, scale, losses, totals, pairs, means, shares, many, N,
    CLASSES: tl.constexpr,
):  # fmt: skip
    """Losses of rows, and what their gradients take, from the sums over all but the other view.

    `pairs` (N,): logits of the other views. With CLASSES `alike`: sums of the products with the
    other rows of a class, and `many` (N,): the number of positives, the other view included;
    writes `means` (N,), of the positives' logits, else they are `pairs`, and `shares` (N,),
    logarithms of the other views' softmax. `totals` (N,): logarithms of the denominators.
    """
    there = places < N
    log_sum = tl.log(total.to(tl.float64)) + shift.to(tl.float64) / log2e()
    pair = tl.load(pairs + places, mask=there, other=0.0).to(tl.float64)
    mean = pair
    if CLASSES:
        count = tl.load(many + places, mask=there, other=1.0).to(tl.float64)
        others = alike.to(tl.float64) * scale.to(tl.float64) / log2e()
        mean = ((pair + others) / count).to(tl.float32)
        tl.store(means + places, mean, mask=there)
        mean = mean.to(tl.float64)
    # The mean is exactly the other view's logit where that is the only positive: then nothing is
    # subtracted from the logarithm of one more. NaN where a logit is not finite.
    above, rest = pair - mean, log_sum - mean
    most = tl.maximum(above, rest)
    more = log_of_one_more(tl.exp(-tl.abs(above - rest))) + 0.0 * pair
    loss = most + more
    if CLASSES:
        # Their difference would lose the digits of a softmax near 1.
        tl.store(shares + places, (above - most - more).to(tl.float32), mask=there)
    tl.store(losses + places, loss.to(tl.float32), mask=there)
    tl.store(totals + places, (loss + mean).to(tl.float32), mask=there)


@triton.jit(do_not_specialize=PARTS)
def merge_sums(
    running, logs, parts, more_parts, maxima, row_sums, x_stats, y_stats, temperature,
    alike_running, alike_parts, alike_more, totals, pairs, means, shares, many,
    N, bits, part_count, more_first, more_end, program_count,
    FIRST: tl.constexpr, LAST: tl.constexpr, SAFE: tl.constexpr, LOSS: tl.constexpr,
    CLASSES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds partial sums in their order to `running` (N,); with LAST, their logarithms to `logs`.

    `parts` (part_count, N), then rows more_first..more_end of `more_parts`; `maxima` and
    `row_sums` (program_count, N) of `sum_rows` where the range needs them. With LOSS the losses go
    to `logs`, see `_store_losses`. Grid: (N / BLOCK,).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    shift, safe = fixed_shift(reach, bits)
    places = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = places < N
    total = _add_up(
        running, parts, more_parts, places, N, part_count, more_first, more_end, FIRST, BLOCK
    )
    alike = total
    if CLASSES:
        alike = _add_up(
            alike_running, alike_parts, alike_more, places, N, part_count, more_first, more_end,
            FIRST, BLOCK,
        )  # fmt: skip
    if LAST:
        places_up = tl.zeros((BLOCK,), tl.float32) + shift
        if not SAFE:
            if safe == 0:
                total, places_up = _below_maxima(maxima, row_sums, places, N, program_count, BLOCK)
        if LOSS:
            _store_losses(
                total, places, places_up, alike, scale, logs, totals, pairs, means, shares, many, N,
                CLASSES,
            )  # fmt: skip
        else:
            tl.store(logs + places, logarithm(total, places_up), mask=there)
    else:
        tl.store(running + places, total, mask=there)
        if CLASSES:
            tl.store(alike_running + places, alike, mask=there)


class Losses(NamedTuple):
    """Where losses go and what they are made of; see `_store_losses`. With classes: the last."""

    losses: Tensor
    totals: Tensor
    pairs: Tensor
    means: Tensor
    shares: Tensor | None = None
    many: Tensor | None = None
    classes: Tensor | None = None


def _sum_rows(pair: Pair) -> tuple[Tensor, Tensor]:
    """Maxima and sums of rows where no shift serves all; see `sum_rows`."""
    shape = tuning.default_shape("robust", pair)
    blocks = triton.cdiv(pair.rows, shape.rows)
    visits = triton.cdiv(pair.columns, shape.columns)
    each = triton.cdiv(visits, min(ROBUST_PARTS, visits))
    parts = triton.cdiv(visits, each)
    maxima, sums = pair.empty(parts, pair.rows), pair.empty(parts, pair.rows)
    sum_rows[blocks, parts](
        *pair.tensors, maxima, sums, pair.rows, pair.columns, pair.bits, *pair.exclusion,
        visits, each,
        WIDTH=pair.width, BX=shape.rows, BY=shape.columns, CHUNK=shape.chunk,
        SPLIT=pair.split, EXCLUDE=pair.mode, num_warps=shape.warps, num_stages=shape.stages,
        **tuning.FUSED,
    )  # fmt: skip
    return maxima, sums


class Merge:
    """Adds up partial sums of the rows of a pair, round by round; logarithms or losses of them."""

    def __init__(self, pair: Pair, losses: Losses | None = None) -> None:
        self.pair, self.losses = pair, losses
        self.classes = losses is not None and losses.classes is not None
        self.running = pair.empty(2 if self.classes else 1, pair.rows)
        self.result = self.running[0] if losses is None else losses.losses
        # Where the host knows that they are not needed they are not looked at.
        self.maxima = self.sums = self.running
        if not pair.safe_sums:
            self.maxima, self.sums = _sum_rows(pair)

    def add(
        self,
        parts: Tensor,
        more: Tensor | None = None,
        more_range: tuple[int, int] = (0, 0),
        *,
        first: bool = True,
        last: bool = True,
    ) -> Tensor:
        """Adds `parts` (kinds, any, N) and a range of `more`, as the last of all if `last`.

        Kinds are one, or with classes two: exponentials, and products of rows of one class.

        Returns:
            (N,) logarithms or losses, of use after the last.
        """
        pair, kind = self.pair, 1 if self.classes else 0
        more = parts if more is None else more
        into = (self.losses or Losses(*[self.running] * 4))[1:6]
        merge_sums[(triton.cdiv(pair.rows, MERGED),)](
            self.running, self.result, parts, more, self.maxima, self.sums, *pair.stats,
            pair.temperature, self.running[kind], parts[kind], more[kind],
            *(self.running if vector is None else vector for vector in into),
            pair.rows, pair.bits, parts.shape[1], *more_range, len(self.maxima),
            FIRST=first, LAST=last, SAFE=pair.safe_sums, LOSS=self.losses is not None,
            CLASSES=self.classes, BLOCK=MERGED, **tuning.FUSED,
        )  # fmt: skip
        return self.result
