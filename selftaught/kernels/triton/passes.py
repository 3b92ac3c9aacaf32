"""Triton kernels of the contrastive passes: log-sums by tiles, by rows, and weighted sums.

Notation: rows x (R, D) and columns y (C, D), as operands padded to WIDTH columns, BX and BY rows a
block. `x_low` and `y_low` are read with SPLIT only. Entry (i, j) is excluded by comparing
i + row_shift with j + column_shift; see `pieces.excluded`. Every sum is added in one fixed order.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from selftaught.kernels.triton.pieces import (
    GRADIENT_EXPONENTS,
    INTERPRETED,
    LEFT_OUT,
    LN2,
    chunked_product,
    clamped,
    exponent,
    fixed_shift,
    left_out,
    load_tile,
    logarithm,
    multiply,
    power_of_two,
    scale_and_reach,
    touches,
)

# Integers that a kernel is not compiled anew for.
STEPS = ["first_block", "first_visit"]
PARTS = ["bits", "N", "part_count", "more_first", "more_end", "program_count"]
WEIGHTED = ["R", "C", "half", "row_shift", "column_shift", "visits", "visits_each"]
COUNTS = [*WEIGHTED, "bits"]


@triton.jit(do_not_specialize=COUNTS + STEPS)
def sum_tiles(
    x, x_low, y, y_low, x_stats, y_stats, temperature, row_sums, column_sums,
    R, C, bits, half, row_shift, column_shift, first_block, first_visit, visits, visits_each,
    WIDTH: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, CHUNK: tl.constexpr,
    SPLIT: tl.constexpr, EXCLUDE: tl.constexpr, SYMMETRIC: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of exp(logit - shift) of tiles, one exponential for a row's and a column's sum.

    Program (b, p) owns row block `first_block` + b and visits `visits_each` column blocks from
    `first_visit` + p * visits_each on. With SYMMETRIC that is a distance: it visits the block so
    far on, cyclically. It writes its rows to `row_sums` (programs, R). With COLUMNS every tile
    writes its columns' sums to `column_sums` (slots, C); the slot is the distance in row blocks
    with SYMMETRIC, else b. Sums are 0 where float32's range does not hold them.
    Grid: (blocks, programs).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    shift, safe = fixed_shift(reach, bits)
    own = (first_block + tl.program_id(0)) * BX
    begin = tl.program_id(1) * visits_each
    end = tl.where(safe, tl.minimum(begin + visits_each, visits), begin)
    rows = own + tl.arange(0, BX)
    if CHUNK == WIDTH:
        held = tl.trans(load_tile(x, own, R, 0, WIDTH, BX, WIDTH))
        held_low = held
        if SPLIT:
            held_low = tl.trans(load_tile(x_low, own, R, 0, WIDTH, BX, WIDTH))
    # Rows lie along the second axis: their sums stay apart in registers until the end, and only
    # the columns' sums, along the first axis, are added up tile by tile, which costs less there.
    total = tl.zeros((BY, BX), tl.float32)
    for visit in range(begin, end):
        first = (first_visit + visit) * BY
        if SYMMETRIC:
            first += own
            first = tl.where(first >= tl.cdiv(R, BX) * BX, first - tl.cdiv(R, BX) * BX, first)
        if CHUNK == WIDTH:
            seen = load_tile(y, first, C, 0, WIDTH, BY, WIDTH)
            seen_low = seen
            if SPLIT:
                seen_low = load_tile(y_low, first, C, 0, WIDTH, BY, WIDTH)
            found = multiply(seen, seen_low, held, held_low, SPLIT)
        else:
            found = chunked_product(
                y, y_low, first, C, x, x_low, own, R, WIDTH, CHUNK, BY, BX, SPLIT
            )
        logits = found * scale - shift
        special = (first + BY > C) | (own + BX > R)
        special = special | touches(first + column_shift - own - row_shift, half, BX, BY, EXCLUDE)
        columns = first + tl.arange(0, BY)
        if special:
            there = tl.where(columns < C, R - own, 0)
            out = left_out(
                (columns + column_shift)[:, None], tl.arange(0, BX)[None, :], own + row_shift,
                there[:, None], half, EXCLUDE,
            )  # fmt: skip
            logits = tl.where(out, LEFT_OUT, logits)
        powers = tl.exp2(logits)
        total += powers
        if COLUMNS:
            slot = visit // (BX // BY) if SYMMETRIC else tl.program_id(0)
            tl.store(
                column_sums + slot * C.to(tl.int64) + columns, tl.sum(powers, 1), mask=columns < C
            )
    tl.store(row_sums + tl.program_id(1).to(tl.int64) * R + rows, tl.sum(total, 0), mask=rows < R)


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
    own = tl.program_id(0) * BX
    begin = tl.program_id(1) * visits_each
    end = tl.minimum(begin + visits_each, visits)
    rows = own + tl.arange(0, BX)
    highest = tl.full((BX,), LEFT_OUT, tl.float32)
    total = tl.zeros((BX,), tl.float32)
    for visit in range(begin, end):
        first = visit * BY
        found = chunked_product(x, x_low, own, R, y, y_low, first, C, WIDTH, CHUNK, BX, BY, SPLIT)
        out = left_out(
            (rows + row_shift)[:, None], tl.arange(0, BY)[None, :], first + column_shift, C - first,
            half, EXCLUDE,
        )  # fmt: skip
        logits = tl.where(out, LEFT_OUT, found * scale)
        above = tl.maximum(highest, tl.max(logits, 1))
        powers = tl.where(out, 0.0, tl.exp2(logits - above[:, None]))
        total = total * tl.exp2(highest - above) + tl.sum(powers, 1)
        highest = above
    target = tl.program_id(1).to(tl.int64) * R + rows
    tl.store(maxima + target, highest, mask=rows < R)
    tl.store(sums + target, total, mask=rows < R)


@triton.jit(do_not_specialize=PARTS)
def merge_sums(
    running, logs, parts, more_parts, maxima, row_sums, x_stats, y_stats, temperature,
    N, bits, part_count, more_first, more_end, program_count,
    FIRST: tl.constexpr, LAST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Adds partial sums in their order to `running` (N,); with LAST, their logarithms to `logs`.

    `parts` (part_count, N), then rows more_first..more_end of `more_parts`; `maxima` and
    `row_sums` (program_count, N) of `sum_rows` where the range needs them. Grid: (N / BLOCK,).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    shift, safe = fixed_shift(reach, bits)
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = places < N
    if FIRST:
        total = tl.zeros((BLOCK,), tl.float32)
    else:
        total = tl.load(running + places, mask=there, other=0.0)
    source = places.to(tl.int64)
    for part in range(0, part_count):
        total += tl.load(parts + source + part * N.to(tl.int64), mask=there, other=0.0)
    for part in range(more_first, more_end):
        total += tl.load(more_parts + source + part * N.to(tl.int64), mask=there, other=0.0)
    if LAST:
        result = logarithm(total, shift)
        if safe == 0:
            highest = tl.full((BLOCK,), LEFT_OUT, tl.float32)
            for part in range(0, program_count):
                found = tl.load(maxima + source + part * N.to(tl.int64), mask=there, other=0.0)
                highest = tl.maximum(highest, found)
            total = tl.zeros((BLOCK,), tl.float32)
            for part in range(0, program_count):
                place = source + part * N.to(tl.int64)
                found = tl.load(maxima + place, mask=there, other=0.0)
                some = tl.load(row_sums + place, mask=there, other=0.0)
                total += some * tl.exp2(found - highest)
            result = logarithm(total, highest)
        tl.store(logs + places, result, mask=there)
    else:
        tl.store(running + places, total, mask=there)


@triton.jit(do_not_specialize=WEIGHTED)
def weighted_tiles(
    x, x_low, y, y_low, x_stats, y_stats, temperature, of_rows, of_columns, unscale,
    row_classes, column_classes, sums, slopes,
    R, C, D, half, row_shift, column_shift, visits, visits_each,
    WIDTH: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, CHUNK: tl.constexpr,
    OUT: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr, EXCLUDE: tl.constexpr,
    ROW: tl.constexpr, COLUMN: tl.constexpr, CLASSES: tl.constexpr, SLOPE: tl.constexpr,
):  # fmt: skip
    """Sums of y weighted by both sides' softmax: an attention-like pass owned by rows.

    `of_rows` (7, R), `of_columns` (4, C) and `unscale` come from `factors.find_factors`. Program
    (b, d, p) owns row block b and output columns d * OUT.., and visits `visits_each` column blocks
    from p * visits_each on; writes `sums` (programs, R, D) and `slopes` (programs, R).
    Grid: (blocks, D / OUT, programs).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    safe = reach <= GRADIENT_EXPONENTS
    own = tl.program_id(0) * BX
    column = tl.program_id(1) * OUT
    begin = tl.program_id(2) * visits_each
    end = tl.minimum(begin + visits_each, visits)
    rows = own + tl.arange(0, BX)
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
        held = load_tile(x, own, R, 0, WIDTH, BX, WIDTH)
        held_low = held
        if SPLIT:
            held_low = load_tile(x_low, own, R, 0, WIDTH, BX, WIDTH)
    total = tl.zeros((BX, OUT), tl.float32)
    slope = tl.zeros((BX,), tl.float32)
    for visit in range(begin, end):
        first = visit * BY
        if CHUNK == WIDTH:
            seen = load_tile(y, first, C, 0, WIDTH, BY, WIDTH)
            seen_low = seen
            if SPLIT:
                seen_low = load_tile(y_low, first, C, 0, WIDTH, BY, WIDTH)
            found = multiply(held, held_low, tl.trans(seen), tl.trans(seen_low), SPLIT)
        else:
            found = chunked_product(
                x, x_low, own, R, y, y_low, first, C, WIDTH, CHUNK, BX, BY, SPLIT
            )
        logits = found * scale
        columns = first + tl.arange(0, BY)
        special = first + BY > C
        special = special | touches(first + column_shift - own - row_shift, half, BX, BY, EXCLUDE)
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
