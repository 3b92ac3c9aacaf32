"""Log-sums of rows and columns in Triton: kernels, their schedules and launches, merging.

Notation: rows x (R, D) and columns y (C, D), as operands padded to WIDTH columns, BX and BY rows a
block. `x_low` and `y_low` are read with SPLIT only. Entry (i, j) is excluded by comparing
i + row_shift with j + column_shift; see `pieces.left_out`. Every sum is added in one fixed order.
Partial sums are held for a bounded number of tiles at a time: memory is O(N D), not O(N^2 / BX).
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

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
    load_tile,
    logarithm,
    multiply,
    scale_and_reach,
    touches,
)
from selftaught.kernels.triton.tuning import Shape

# Visits that a program's start takes, and programs that may share a block's visits.
START, PROGRAMS = 1.5, 64
# Bytes of partial sums at a time, at least; or as many as the columns' entries.
PARTIAL_BYTES = 8 << 20
MERGED = 256
# Programs that share a row where its maximum has to be found.
ROBUST_PARTS = 8
# Integers that a kernel is not compiled anew for.
COUNTS = ["R", "C", "half", "row_shift", "column_shift", "visits", "visits_each", "bits"]
STEPS = ["first_block", "first_visit"]
PARTS = ["bits", "N", "part_count", "more_first", "more_end", "program_count"]


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
    first_row = (first_block + tl.program_id(0)) * BX
    begin = tl.program_id(1) * visits_each
    end = tl.where(safe, tl.minimum(begin + visits_each, visits), begin)
    rows = first_row + tl.arange(0, BX)
    if CHUNK == WIDTH:
        held = tl.trans(load_tile(x, first_row, R, 0, WIDTH, BX, WIDTH))
        held_low = held
        if SPLIT:
            held_low = tl.trans(load_tile(x_low, first_row, R, 0, WIDTH, BX, WIDTH))
    # Rows lie along the second axis: their sums stay apart in registers until the end, and only
    # the columns' sums, along the first axis, are added up tile by tile, which costs less there.
    total = tl.zeros((BY, BX), tl.float32)
    for visit in range(begin, end):
        first = (first_visit + visit) * BY
        if SYMMETRIC:
            first += first_row
            first = tl.where(first >= tl.cdiv(R, BX) * BX, first - tl.cdiv(R, BX) * BX, first)
        if CHUNK == WIDTH:
            seen = load_tile(y, first, C, 0, WIDTH, BY, WIDTH)
            seen_low = seen
            if SPLIT:
                seen_low = load_tile(y_low, first, C, 0, WIDTH, BY, WIDTH)
            products = multiply(seen, seen_low, held, held_low, SPLIT)
        else:
            products = chunked_product(
                y, y_low, first, C, x, x_low, first_row, R, WIDTH, CHUNK, BY, BX, SPLIT
            )
        logits = products * scale - shift
        special = (first + BY > C) | (first_row + BX > R)
        special = special | touches(
            first + column_shift - first_row - row_shift, half, BX, BY, EXCLUDE
        )
        columns = first + tl.arange(0, BY)
        if special:
            there = tl.where(columns < C, R - first_row, 0)
            out = left_out(
                (columns + column_shift)[:, None], tl.arange(0, BX)[None, :], first_row + row_shift,
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
                maximum = tl.load(maxima + source + part * N.to(tl.int64), mask=there, other=0.0)
                highest = tl.maximum(highest, maximum)
            total = tl.zeros((BLOCK,), tl.float32)
            for part in range(0, program_count):
                place = source + part * N.to(tl.int64)
                maximum = tl.load(maxima + place, mask=there, other=0.0)
                some = tl.load(row_sums + place, mask=there, other=0.0)
                total += some * tl.exp2(maximum - highest)
            result = logarithm(total, highest)
        tl.store(logs + places, result, mask=there)
    else:
        tl.store(running + places, total, mask=there)


def _slots(pair: Pair) -> int:
    """How many partial sums of every column may be held."""
    most = max(pair.rows, pair.columns)
    return max(1, max(PARTIAL_BYTES, most * pair.width) // (4 * most))


def _each(pair: Pair, shape: Shape, blocks: int, visits: int) -> int:
    """Visits of a program; see `tuning.visits_each`."""
    device = pair.operands[0].device
    return tuning.visits_each(blocks, visits, shape, device, START, PROGRAMS)


def _sum_tiles(
    pair: Pair,
    shape: Shape,
    row_sums: Tensor,
    column_sums: Tensor,
    blocks: tuple[int, int],
    visits: tuple[int, int],
    each: int,
    *,
    symmetric: bool,
    columns: bool,
) -> None:
    """`blocks` and `visits`: first and number."""
    sum_tiles[blocks[1], triton.cdiv(visits[1], each)](
        *pair.tensors, row_sums, column_sums, pair.rows, pair.columns, pair.bits,
        *pair.exclusion, blocks[0], visits[0], visits[1], each,
        WIDTH=pair.width, BX=shape.rows, BY=shape.columns, CHUNK=shape.chunk,
        SPLIT=pair.split, EXCLUDE=pair.mode, SYMMETRIC=symmetric, COLUMNS=columns,
        num_warps=shape.warps, num_stages=shape.stages,
    )  # fmt: skip


def _shape(pair: Pair) -> Shape:
    def launch(shape: Shape) -> None:
        blocks = triton.cdiv(pair.rows, shape.rows)
        visits = triton.cdiv(pair.columns, shape.columns)
        sums = pair.empty(1, pair.rows)
        _sum_tiles(
            pair, shape, sums, sums, (0, blocks), (0, visits), visits, symmetric=False,
            columns=False,
        )  # fmt: skip

    return tuning.best("sum", pair, launch)


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
    )  # fmt: skip
    return maxima, sums


class _Merge:
    """Adds up partial sums of the rows of `pair`, round by round, and takes the logarithm."""

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        self.running = pair.empty(pair.rows)
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
        """Adds `parts` (any, N) and a range of `more`; (N,) logarithms, of use after the last."""
        pair = self.pair
        merge_sums[(triton.cdiv(pair.rows, MERGED),)](
            self.running, self.running, parts, parts if more is None else more,
            self.maxima, self.sums, *pair.stats, pair.temperature,
            pair.rows, pair.bits, len(parts), *more_range, len(self.maxima),
            FIRST=first, LAST=last, BLOCK=MERGED,
        )  # fmt: skip
        return self.running


def symmetric_log_sums(pair: Pair) -> Tensor:
    """(N,) log-sums where rows and columns are the same; a tile serves both.

    Row block I visits the blocks I, I + 1, ... I + n // 2, cyclically. Of blocks at the distances
    0 and n / 2 either visits the other, so that only rows are summed there.
    """
    shape = _shape(pair)
    blocks = triton.cdiv(pair.rows, shape.rows)
    distances = blocks // 2 + 1
    both = triton.cdiv(blocks, 2)
    held = min(distances, _slots(pair))
    tiles = shape.rows // shape.columns
    each = _each(pair, shape, blocks, held * tiles)
    merge = _Merge(pair)
    row_sums = pair.empty(triton.cdiv(held * tiles, each), pair.rows)
    column_sums = pair.empty(held, pair.rows)
    for first in range(0, distances, held):
        visits = min(held, distances - first)
        _sum_tiles(
            pair, shape, row_sums, column_sums, (0, blocks), (first * tiles, visits * tiles), each,
            symmetric=True, columns=True,
        )  # fmt: skip
        merge.add(
            row_sums[: triton.cdiv(visits * tiles, each)],
            column_sums,
            (max(1 - first, 0), min(both - first, visits)),
            first=first == 0,
            last=first + visits == distances,
        )
    return merge.running


def log_sums(pair: Pair, columns: bool) -> tuple[Tensor, Tensor | None]:
    """(R,) log-sums of rows and, if `columns`, (C,) of columns."""
    shape = _shape(pair)
    blocks = triton.cdiv(pair.rows, shape.rows)
    visits = triton.cdiv(pair.columns, shape.columns)
    held = min(blocks, _slots(pair)) if columns else blocks
    each = max(_each(pair, shape, held, visits), triton.cdiv(visits, _slots(pair)))
    of_rows = _Merge(pair)
    row_sums = pair.empty(triton.cdiv(visits, each), pair.rows)
    if not columns:
        _sum_tiles(
            pair, shape, row_sums, row_sums, (0, blocks), (0, visits), each, symmetric=False,
            columns=False,
        )  # fmt: skip
        return of_rows.add(row_sums), None
    of_columns = _Merge(pair.swapped())
    column_sums = pair.empty(held, pair.columns)
    for first in range(0, blocks, held):
        many = min(held, blocks - first)
        _sum_tiles(
            pair, shape, row_sums, column_sums, (first, many), (0, visits), each,
            symmetric=False, columns=True,
        )  # fmt: skip
        of_columns.add(column_sums[:many], first=first == 0, last=first + many == blocks)
    return of_rows.add(row_sums), of_columns.running
