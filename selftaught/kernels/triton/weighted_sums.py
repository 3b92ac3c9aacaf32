"""Weighted sums, the gradient by rows, in Triton: kernels and their launches.

Notation: rows x (R, D) and columns y (C, D), as operands padded to WIDTH columns, BX and BY rows a
block; see `log_sums`. A weight is (row_i + column_j) exp(logit_ij), see `factors`.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.tiles import Classes, Side
from selftaught.kernels.triton import tuning
from selftaught.kernels.triton.factors import make_factors
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
    multiply,
    power_of_two,
    scale_and_reach,
    touches,
)
from selftaught.kernels.triton.tuning import Shape

# Visits that a program's start and the partial sums it leaves take; most parts that a row's sum is
# made of, and bytes of all of them.
START, PARTS, PARTIAL_BYTES = 3.0, 16, 48 << 20
# Integers that a kernel is not compiled anew for.
COUNTS = ["R", "C", "half", "row_shift", "column_shift", "visits", "visits_each"]


@triton.jit(do_not_specialize=COUNTS)
def weighted_tiles(
    x, x_low, y, y_low, x_stats, y_stats, temperature, of_rows, of_columns, unscale,
    row_classes, column_classes, sums, slopes,
    R, C, D, half, row_shift, column_shift, visits, visits_each,
    WIDTH: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, CHUNK: tl.constexpr,
    OUT: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr, EXCLUDE: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, CLASSES: tl.constexpr, SLOPE: tl.constexpr,
    SAFE: tl.constexpr,
):  # fmt: skip
    """Sums of y weighted by both sides' softmax: an attention-like pass owned by rows.

    `of_rows` (7, R), `of_columns` (4, C) and `unscale` come from `find_factors`. Program
    (b, d, p) owns row block b and output columns d * OUT.., and visits `visits_each` column blocks
    from p * visits_each on; writes `sums` (programs, R, D) and `slopes` (programs, R). SAFE: the
    range holds all exponentials. Grid: (blocks, D / OUT, programs).
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
        if SAFE or safe:
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
            slope = (
                slope * tl.where(SAFE or safe, row_factor, row_weight) * row_unscale * rest * LN2
            )
            tl.store(slopes + target, slope, mask=rows < R)
    places = column + tl.arange(0, OUT)
    tl.store(
        sums + target[:, None] * D + places[None, :],
        total / tl.load(y_stats) * rest,
        mask=(rows < R)[:, None] & (places < D)[None, :],
    )


def weighted_parts(
    pair: Pair,
    width: int,
    row: Side | None,
    column: Side | None,
    classes: Classes | None,
    slope: bool,
    *,
    divided: bool = True,
    over: float = 0,
) -> tuple[Tensor, Tensor | None]:
    """(parts, R, width) sums and, if `slope`, (parts, R) slopes; see `Tiles.weighted_sums`.

    `divided`: the sides' shares are such; else what weights have to be divided by. With `over` the
    sides' weight is one number, divided by it.
    """
    share = 0 if classes is None else 1 if divided else 2
    factors = make_factors(pair, row, column, share, slope, over)
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
            SLOPE=slope, SAFE=pair.safe_gradient, num_warps=shape.warps, num_stages=shape.stages,
            **tuning.FUSED,
        )  # fmt: skip
        return sums, slopes

    more = classes is not None or slope
    return launch(tuning.best("more" if more else "weight", pair, launch))


def weighted_sums(
    pair: Pair,
    width: int,
    row: Side | None,
    column: Side | None,
    classes: Classes | None,
    slope: bool,
) -> tuple[Tensor, Tensor | None]:
    """(R, width) sums and, if `slope`, (R,) slopes; see `Tiles.weighted_sums`."""
    sums, slopes = weighted_parts(pair, width, row, column, classes, slope)
    total = sums[0] if len(sums) == 1 else sums.sum(0)
    return total, None if slopes is None else slopes.sum(0)
