"""Weighted sums, the gradient by rows, in Triton: kernels and their launches.

Notation: rows x (R, D) and columns y (C, D), as operands padded to WIDTH columns, BX and BY rows a
block; see `log_sums`. A weight is (row_i + column_j) exp(logit_ij). Its factors, of both sides'
losses, are multiplied by g, one power of two, and by s_i, one of the row, so that weights reach up
to 2 ** 15 in every row and keep their digits in float16, however small the gradient is.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.tiles import Classes, Side
from selftaught.kernels.triton import tuning
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.pieces import (
    GRADIENT_EXPONENTS,
    INTERPRETED,
    LEFT_OUT,
    LN2,
    chunked_product,
    clamped,
    exponent,
    left_out,
    load_tile,
    log2e,
    multiply,
    power_of_two,
    scale_and_reach,
    touches,
)
from selftaught.kernels.triton.tuning import Shape

# Visits that a program's start and the partial sums it leaves take; most parts that a row's sum is
# made of, and bytes of all of them.
START, PARTS, PARTIAL_BYTES = 3.0, 16, 48 << 20
# Largest weight as a power of two: float16 ends at 2 ** 16, and a softmax may round above 1.
TOP = tl.constexpr(15)
BLOCK = 1024
# Integers that a kernel is not compiled anew for.
COUNTS = ["R", "C", "half", "row_shift", "column_shift", "visits", "visits_each"]


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
    largest = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        place = first + tl.arange(0, BLOCK)
        largest = tl.maximum(largest, tl.load(source + place, mask=place < count, other=0.0))
    return tl.max(largest, 0)


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


@triton.jit(do_not_specialize=COUNTS)
def weighted_tiles(
    x, x_low, y, y_low, x_stats, y_stats, temperature, of_rows, of_columns, unscale,
    row_classes, column_classes, sums, slopes,
    R, C, D, half, row_shift, column_shift, visits, visits_each,
    WIDTH: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, CHUNK: tl.constexpr,
    OUT: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr, EXCLUDE: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, CLASSES: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Sums of y weighted by both sides' softmax: an attention-like pass owned by rows.

    `of_rows` (7, R), `of_columns` (4, C) and `unscale` come from `find_factors`. Program
    (b, d, p) owns row block b and output columns d * OUT.., and visits `visits_each` column blocks
    from p * visits_each on; writes `sums` (programs, R, D) and `slopes` (programs, R).
    Grid: (blocks, D / OUT, programs).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    safe = reach <= GRADIENT_EXPONENTS
    first_row = tl.program_id(0) * BX
    column = tl.program_id(1) * OUT
    begin = tl.program_id(2) * visits_each
    end = tl.minimum(begin + visits_each, visits)
    rows = first_row + tl.arange(0, BX)
    place = of_rows + tl.minimum(rows, R - 1)
    row_scale = tl.load(place)
    row_factor = tl.load(place + R)
    row_weight = tl.load(place + 2 * R)
    row_total = tl.load(place + 3 * R)
    row_share = tl.load(place + 4 * R)
    row_positive = tl.load(place + 5 * R)
    row_unscale = tl.load(place + 6 * R)
    if CLASSES:
        row_class = tl.load(row_classes + tl.minimum(rows, R - 1))
    if CHUNK == WIDTH:
        held = load_tile(x, first_row, R, 0, WIDTH, BX, WIDTH)
        held_low = held
        if SPLIT:
            held_low = load_tile(x_low, first_row, R, 0, WIDTH, BX, WIDTH)
    total = tl.zeros((BX, OUT), tl.float32)
    slope = tl.zeros((BX,), tl.float32)
    for visit in range(begin, end):
        first = visit * BY
        if CHUNK == WIDTH:
            seen = load_tile(y, first, C, 0, WIDTH, BY, WIDTH)
            seen_low = seen
            if SPLIT:
                seen_low = load_tile(y_low, first, C, 0, WIDTH, BY, WIDTH)
            products = multiply(held, held_low, tl.trans(seen), tl.trans(seen_low), SPLIT)
        else:
            products = chunked_product(
                x, x_low, first_row, R, y, y_low, first, C, WIDTH, CHUNK, BX, BY, SPLIT
            )
        logits = products * scale
        columns = first + tl.arange(0, BY)
        special = first + BY > C
        special = special | touches(
            first + column_shift - first_row - row_shift, half, BX, BY, EXCLUDE
        )
        if special:
            out = left_out(
                (rows + row_shift)[:, None], tl.arange(0, BY)[None, :], first + column_shift,
                C - first, half, EXCLUDE,
            )  # fmt: skip
            logits = tl.where(out, LEFT_OUT, logits)
        other = of_columns + tl.minimum(columns, C - 1)
        if safe:
            powers = tl.exp2(logits)
            if COLUMN:
                factor = tl.load(other)[None, :] * row_scale[:, None]
                if ROW:
                    factor += row_factor[:, None]
                weights = powers * factor
            else:
                weights = powers * row_factor[:, None]
        else:
            powers = tl.exp2(logits - row_total[:, None])
            weights = powers * row_weight[:, None]
            if COLUMN:
                lower = tl.exp2(logits - tl.load(other + 2 * C)[None, :])
                lower = lower * tl.load(other + C)[None, :] * row_scale[:, None]
                weights = weights + lower if ROW else lower
        if CLASSES:
            column_class = tl.load(column_classes + tl.minimum(columns, C - 1))
            same = (row_class[:, None] == column_class[None, :]) & (logits > 0.5 * LEFT_OUT)
            share = tl.load(other + 3 * C)[None, :] * row_scale[:, None] + row_share[:, None]
            weights -= tl.where(same, share, 0.0)
        if SLOPE:
            slope += tl.sum(powers * (logits - row_positive[:, None]), 1)
        if CHUNK == WIDTH and OUT == WIDTH:
            values = seen
            values_low = seen_low
        else:
            values = load_tile(y, first, C, column, WIDTH, BY, OUT)
            values_low = values
            if SPLIT:
                values_low = load_tile(y_low, first, C, column, WIDTH, BY, OUT)
        if SPLIT:
            # Keeps digits where all softmax weights are tiny, as they are at small losses.
            room = clamped(13 - exponent(tl.max(tl.abs(weights), 1)), -100, 100)
            weights *= power_of_two(room)[:, None]
            upper = weights.to(HALF)
            lower = (weights - upper.to(tl.float32)).to(HALF)
            if INTERPRETED:
                upper = upper.to(tl.float32)
                lower = lower.to(tl.float32)
            part = tl.dot(lower, values)
            part = tl.dot(upper, values_low, part)
            part = tl.dot(upper, values, part)
            # Tensor cores round sums towards zero: long ones are added outside of them.
            total += part * (row_unscale * power_of_two(-room))[:, None]
        else:
            upper = weights.to(HALF)
            if INTERPRETED:
                upper = upper.to(tl.float32)
            total = tl.dot(upper, values, total)
    rest = tl.load(unscale)
    if not SPLIT:
        total = total * row_unscale[:, None]
    target = tl.program_id(2).to(tl.int64) * R + rows.to(tl.int64)
    if SLOPE:
        if tl.program_id(1) == 0:
            slope = slope * tl.where(safe, row_factor, row_weight) * row_unscale * rest * LN2
            tl.store(slopes + target, slope, mask=rows < R)
    places = column + tl.arange(0, OUT)
    tl.store(
        sums + target[:, None] * D + places[None, :],
        total / tl.load(y_stats) * rest,
        mask=(rows < R)[:, None] & (places < D)[None, :],
    )


class _Factors(NamedTuple):
    rows: Tensor
    columns: Tensor
    unscale: Tensor


def _find_factors(
    pair: Pair, row: Side | None, column: Side | None, share: bool, slope: bool
) -> _Factors:
    blocks = triton.cdiv(max(pair.rows, pair.columns), BLOCK)
    bounds = pair.empty(2, blocks)
    factors = _Factors(pair.empty(7, pair.rows), pair.empty(4, pair.columns), pair.empty(1))

    def vectors(side: Side | None) -> list[Tensor]:
        # Whatever is absent is not read.
        given = (side.weight, side.total, side.share) if side else (None, None, None)
        return [bounds if value is None else value.contiguous() for value in given]

    positive = bounds
    if slope:
        assert row is not None and row.positive is not None
        positive = row.positive.contiguous()
    flags = {"ROW": row is not None, "COLUMN": column is not None, "SHARE": share}
    scales = (*pair.stats, pair.temperature)
    find_bounds[blocks, 2](
        *vectors(row), *vectors(column), *scales, bounds, pair.rows, pair.columns, blocks,
        **flags, BLOCK=BLOCK,
    )  # fmt: skip
    find_factors[blocks, 2](
        *vectors(row), positive, *vectors(column), *scales, bounds, *factors,
        pair.rows, pair.columns, blocks, **flags, SLOPE=slope, BLOCK=BLOCK,
    )  # fmt: skip
    return factors


def weighted_sums(
    pair: Pair,
    width: int,
    row: Side | None,
    column: Side | None,
    classes: Classes | None,
    slope: bool,
) -> tuple[Tensor, Tensor | None]:
    """(R, width) sums and, if `slope`, (R,) slopes; see `Tiles.weighted_sums`."""
    factors = _find_factors(pair, row, column, classes is not None, slope)
    if classes is None:
        of_rows = of_columns = factors.unscale
    else:
        of_rows, of_columns = classes.rows.contiguous(), classes.columns.contiguous()
    bf16 = pair.operands[0].dtype == torch.bfloat16

    def launch(shape: Shape) -> tuple[Tensor, Tensor | None]:
        blocks, outs = triton.cdiv(pair.rows, shape.rows), triton.cdiv(width, shape.out)
        visits = triton.cdiv(pair.columns, shape.columns)
        device = pair.operands[0].device
        most = max(1, min(PARTS, PARTIAL_BYTES // (4 * pair.rows * width)))
        each = tuning.visits_each(blocks * outs, visits, shape, device, START, most)
        parts = triton.cdiv(visits, each)
        sums = pair.empty(parts, pair.rows, width)
        slopes = pair.empty(parts, pair.rows) if slope else None
        weighted_tiles[blocks, outs, parts](
            *pair.tensors, *factors, of_rows, of_columns,
            sums, sums if slopes is None else slopes,
            pair.rows, pair.columns, width, *pair.exclusion, visits, each,
            WIDTH=pair.width, BX=shape.rows, BY=shape.columns, CHUNK=shape.chunk, OUT=shape.out,
            SPLIT=pair.split, HALF=tl.bfloat16 if bf16 else tl.float16, EXCLUDE=pair.mode,
            ROW=row is not None, COLUMN=column is not None, CLASSES=classes is not None,
            SLOPE=slope, num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
        total = sums[0] if parts == 1 else sums.sum(0)
        return total, None if slopes is None else slopes.sum(0)

    more = classes is not None or slope
    return launch(tuning.best("more" if more else "weight", pair, launch))
