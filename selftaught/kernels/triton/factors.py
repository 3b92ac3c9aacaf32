"""Factors of the gradient's weights in Triton: what a row and a column have to themselves.

A weight is (row_i + column_j) exp(logit_ij). Its factors, of both sides' losses, are multiplied by
g, one power of two, and by s_i, one of the row, so that weights reach up to 2 ** 15 in every row
and keep their digits in float16, however small the gradient is.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.tiles import Side
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.pieces import (
    clamped,
    exponent,
    log2e,
    power_of_two,
    scale_and_reach,
)
from selftaught.kernels.triton.tuning import FUSED

# Largest weight as a power of two: float16 ends at 2 ** 16, and a softmax may round above 1.
TOP = tl.constexpr(15)
BLOCK = 1024


@triton.jit
def load_weight(weight, place, there, stride, over):
    """Weights of rows divided by `over`; they are `stride` apart, 0 where all are one number."""
    values = tl.load(weight + place * stride, mask=there, other=0.0)
    return tl.div_rn(values, tl.zeros_like(values) + over)


@triton.jit
def _share(weight, share, place, there, SHARE: tl.constexpr):
    """Shares of weights that go to each of a row's classmates, 0 where there is no row."""
    given = tl.load(share + place, mask=there, other=0.0)
    if SHARE == 2:
        given = tl.where(there, weight / tl.where(there, given, 1.0), 0.0)
    return given


@triton.jit
def _largest_weight(
    weight, total, share, reach, place, there, stride, over, SHARE: tl.constexpr
):  # fmt: skip
    """Bounds of |weight| exp(logit - total) + |share|."""
    below = reach - tl.load(total + place, mask=there, other=0.0) * log2e().to(tl.float32)
    values = load_weight(weight, place, there, stride, over)
    bound = tl.abs(values) * tl.exp2(tl.minimum(below, 0.0))
    if SHARE > 0:
        bound += tl.abs(_share(values, share, place, there, SHARE))
    return bound


@triton.jit
def _largest(
    weight, total, share, reach, count, stride, over, GIVEN: tl.constexpr, SHARE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest of these bounds of a side, 0 of an absent one."""
    largest = tl.zeros((BLOCK,), tl.float32)
    if GIVEN:
        for first in range(0, count, BLOCK):
            place = first + tl.arange(0, BLOCK)
            bound = _largest_weight(
                weight, total, share, reach, place, place < count, stride, over, SHARE
            )
            largest = tl.maximum(largest, bound)
    return tl.max(largest, 0)


@triton.jit
def _over_total(weight, total):
    """Product of weight and 2 ** -total for float64 totals, with the digits of float32."""
    whole = tl.floor(total)
    part = tl.exp2((whole - total).to(tl.float32))
    places = clamped(-whole, -126.0, 126.0).to(tl.int32)
    return tl.where(weight == 0, 0.0, weight * (part * power_of_two(places)))


@triton.jit(do_not_specialize=["R", "C"])
def find_factors(
    row_weight, row_total, row_share, row_positive, column_weight, column_total, column_share,
    x_stats, y_stats, temperature, of_rows, of_columns, unscale, R, C, stride, over,
    ROW: tl.constexpr, COLUMN: tl.constexpr, SAME: tl.constexpr, SHARE: tl.constexpr,
    SLOPE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Factors of rows and of columns; totals and positives in units of log 2.

    `of_rows` (7, R): s, s g weight exp(-total), s g weight, total, s g share, positive, 1 / s.
    `of_columns` (4, C): g weight exp(-total), g weight, total, g share. `unscale` (1,): 1 / g.
    SAME: rows and columns are one side. SHARE is 0: none, 1: given, 2: weight / what is given.
    `stride`, `over`: see `load_weight`.
    Every program looks at all weights for g, which costs less than a launch that waits for it.
    Grid: (blocks, 2).
    """
    _, reach = scale_and_reach(x_stats, y_stats, temperature)
    most_row = _largest(
        row_weight, row_total, row_share, reach, R, stride, over, ROW, SHARE, BLOCK
    )  # fmt: skip
    most_column = most_row
    if not SAME:
        most_column = _largest(
            column_weight, column_total, column_share, reach, C, stride, over, COLUMN, SHARE, BLOCK
        )
    places = clamped(-1 - exponent(most_row + most_column), -100, 100)
    common = power_of_two(places)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    nothing = tl.zeros((BLOCK,), tl.float32)
    if tl.program_id(1) == 0:
        there = place < R
        bound = nothing
        weight = nothing
        total = nothing.to(tl.float64)
        share = nothing
        positive = nothing
        if ROW:
            weight = load_weight(row_weight, place, there, stride, over)
            total = tl.load(row_total + place, mask=there, other=0.0).to(tl.float64) * log2e()
            bound = _largest_weight(
                row_weight, row_total, row_share, reach, place, there, stride, over, SHARE
            )
            if SHARE > 0:
                share = _share(weight, row_share, place, there, SHARE) * common
            weight *= common
            if SLOPE:
                positive = tl.load(row_positive + place, mask=there, other=0.0)
                positive = (positive.to(tl.float64) * log2e()).to(tl.float32)
        # The tensor comes first: a constant less a tensor is a constant to the interpreter.
        room = clamped(-exponent((bound + most_column) * common) + TOP - 1, 0, 40)
        scale = power_of_two(room)
        tl.store(of_rows + place, scale, mask=there)
        tl.store(of_rows + R + place, _over_total(weight, total) * scale, mask=there)
        tl.store(of_rows + 2 * R + place, weight * scale, mask=there)
        tl.store(of_rows + 3 * R + place, total.to(tl.float32), mask=there)
        tl.store(of_rows + 4 * R + place, share * scale, mask=there)
        tl.store(of_rows + 5 * R + place, positive, mask=there)
        tl.store(of_rows + 6 * R + place, power_of_two(-room), mask=there)
        if tl.program_id(0) == 0:
            tl.store(unscale, power_of_two(-places))
    else:
        there = place < C
        weight = nothing
        total = nothing.to(tl.float64)
        share = nothing
        if COLUMN:
            weight = load_weight(column_weight, place, there, stride, over)
            total = tl.load(column_total + place, mask=there, other=0.0).to(tl.float64) * log2e()
            if SHARE > 0:
                share = _share(weight, column_share, place, there, SHARE) * common
            weight *= common
        tl.store(of_columns + place, _over_total(weight, total), mask=there)
        tl.store(of_columns + C + place, weight, mask=there)
        tl.store(of_columns + 2 * C + place, total.to(tl.float32), mask=there)
        tl.store(of_columns + 3 * C + place, share, mask=there)


class Factors(NamedTuple):
    """Of rows, of columns, and 1 / g; see `find_factors`."""

    rows: Tensor
    columns: Tensor
    unscale: Tensor


def make_factors(
    pair: Pair, row: Side | None, column: Side | None, share: int, slope: bool, over: float
) -> Factors:
    """`over`: see `weighted_parts`."""
    blocks = triton.cdiv(max(pair.rows, pair.columns), BLOCK)
    factors = Factors(pair.empty(7, pair.rows), pair.empty(4, pair.columns), pair.empty(1))

    def vectors(side: Side | None) -> list[Tensor]:
        # Whatever is absent is not read.
        given = (side.weight, side.total, side.share) if side else (None, None, None)
        return [factors.unscale if value is None else value.contiguous() for value in given]

    of_rows = vectors(row)
    of_columns = of_rows if column is row else vectors(column)
    positive = factors.unscale
    if slope:
        assert row is not None and row.positive is not None
        positive = row.positive.contiguous()
    find_factors[blocks, 2](
        *of_rows, positive, *of_columns, *pair.stats, pair.temperature, *factors,
        pair.rows, pair.columns, 0 if over else 1, float(over or 1),
        ROW=row is not None, COLUMN=column is not None, SAME=column is row, SHARE=share,
        SLOPE=slope, BLOCK=BLOCK, **FUSED,
    )  # fmt: skip
    return factors
