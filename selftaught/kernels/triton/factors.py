"""Triton kernels that turn both sides' losses into factors of a tile, scaled to fit float16.

A weight of the gradient pass is (row_i + column_j) exp(logit_ij). Factors are multiplied by g, one
power of two, and by s_i, one of the row, so that weights reach up to 2 ** 15 in every row and keep
their digits in float16, however small the gradient is.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from selftaught.kernels.triton.pieces import (
    clamped,
    exponent,
    log2e,
    power_of_two,
    scale_and_reach,
)

# Largest weight as a power of two: float16 ends at 2 ** 16, and a softmax may round above 1.
TOP = tl.constexpr(15)
BLOCK = 1024


@triton.jit
def _largest_weight(weight, total, share, reach, place, there, SHARE: tl.constexpr):
    """Bounds of |weight| exp(logit - total) + |share|."""
    below = reach - tl.load(total + place, mask=there, other=0.0) * log2e().to(tl.float32)
    bound = tl.abs(tl.load(weight + place, mask=there, other=0.0)) * tl.exp2(tl.minimum(below, 0.0))
    if SHARE:
        bound += tl.abs(tl.load(share + place, mask=there, other=0.0))
    return bound


@triton.jit(do_not_specialize=["R", "C", "blocks"])
def find_bounds(
    row_weight, row_total, row_share, column_weight, column_total, column_share,
    x_stats, y_stats, temperature, bounds, R, C, blocks,
    ROW: tl.constexpr, COLUMN: tl.constexpr, SHARE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Largest weights of blocks of rows and of columns: `bounds` (2, blocks). Grid: (blocks, 2)."""
    _, reach = scale_and_reach(x_stats, y_stats, temperature)
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    bound = tl.zeros((BLOCK,), tl.float32)
    if tl.program_id(1) == 0:
        if ROW:
            bound = _largest_weight(
                row_weight, row_total, row_share, reach, place, place < R, SHARE
            )
    else:
        if COLUMN:
            bound = _largest_weight(
                column_weight, column_total, column_share, reach, place, place < C, SHARE
            )
    tl.store(bounds + tl.program_id(1) * blocks + tl.program_id(0), tl.max(bound, 0))


@triton.jit
def _maximum(source, count, BLOCK: tl.constexpr):
    """Largest of `count` numbers from 0 up."""
    found = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        place = first + tl.arange(0, BLOCK)
        found = tl.maximum(found, tl.load(source + place, mask=place < count, other=0.0))
    return tl.max(found, 0)


@triton.jit
def _over_total(weight, total):
    """Product of weight and 2 ** -total for float64 totals, with the digits of float32."""
    whole = tl.floor(total)
    part = tl.exp2((whole - total).to(tl.float32))
    places = clamped(-whole, -126.0, 126.0).to(tl.int32)
    return tl.where(weight == 0, 0.0, weight * (part * power_of_two(places)))


@triton.jit(do_not_specialize=["R", "C", "blocks"])
def find_factors(
    row_weight, row_total, row_share, row_positive, column_weight, column_total, column_share,
    x_stats, y_stats, temperature, bounds, of_rows, of_columns, unscale, R, C, blocks,
    ROW: tl.constexpr, COLUMN: tl.constexpr, SHARE: tl.constexpr, SLOPE: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Factors of rows and of columns; totals and positives in units of log 2.

    `of_rows` (7, R): s, s g weight exp(-total), s g weight, total, s g share, positive, 1 / s.
    `of_columns` (4, C): g weight exp(-total), g weight, total, g share. `unscale` (1,): 1 / g.
    Grid: (blocks, 2).
    """
    _, reach = scale_and_reach(x_stats, y_stats, temperature)
    most_row = _maximum(bounds, blocks, BLOCK)
    most_column = _maximum(bounds + blocks, blocks, BLOCK)
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
            weight = tl.load(row_weight + place, mask=there, other=0.0) * common
            total = tl.load(row_total + place, mask=there, other=0.0).to(tl.float64) * log2e()
            bound = _largest_weight(row_weight, row_total, row_share, reach, place, there, SHARE)
            if SHARE:
                share = tl.load(row_share + place, mask=there, other=0.0) * common
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
            weight = tl.load(column_weight + place, mask=there, other=0.0) * common
            total = tl.load(column_total + place, mask=there, other=0.0).to(tl.float64) * log2e()
            if SHARE:
                share = tl.load(column_share + place, mask=there, other=0.0) * common
        tl.store(of_columns + place, _over_total(weight, total), mask=there)
        tl.store(of_columns + C + place, weight, mask=there)
        tl.store(of_columns + 2 * C + place, total.to(tl.float32), mask=there)
        tl.store(of_columns + 3 * C + place, share, mask=there)
