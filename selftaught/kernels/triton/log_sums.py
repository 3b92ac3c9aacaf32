"""Log-sums of rows and columns in Triton: the kernel over tiles, its schedules and launches.

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
from selftaught.kernels.triton.merging import Losses, Merge
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.pieces import (
    LEFT_OUT,
    chunked_product,
    fixed_shift,
    left_out,
    load_tile,
    multiply,
    scale_and_reach,
    touches,
)
from selftaught.kernels.triton.tuning import Shape

# Visits that a program's start takes, and programs that may share a block's visits.
START, PROGRAMS = 1.5, 64
# Bytes of partial sums at a time, at least; or as many as the columns' entries.
PARTIAL_BYTES = 20 << 20
# Integers that a kernel is not compiled anew for.
COUNTS = ["R", "C", "half", "row_shift", "column_shift", "visits", "visits_each", "bits"]
STEPS = ["first_block", "first_visit"]


@triton.jit(do_not_specialize=COUNTS + STEPS)
def sum_tiles(
    x, x_low, y, y_low, x_stats, y_stats, temperature, row_sums, column_sums,
    classes, row_alike, column_alike,
    R, C, bits, half, row_shift, column_shift, first_block, first_visit, visits, visits_each,
    WIDTH: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr, CHUNK: tl.constexpr,
    SPLIT: tl.constexpr, EXCLUDE: tl.constexpr, SYMMETRIC: tl.constexpr, COLUMNS: tl.constexpr,
    SAFE: tl.constexpr, CLASSES: tl.constexpr,
):  # fmt: skip
    """Sums of exp(logit - shift) of tiles, one exponential for a row's and a column's sum.

    Program (b, p) owns row block `first_block` + b and visits `visits_each` column blocks from
    `first_visit` + p * visits_each on. With SYMMETRIC that is a distance: it visits the block so
    far on, cyclically. It writes its rows to `row_sums` (programs, R). With COLUMNS every tile
    writes its columns' sums to `column_sums` (slots, C); the slot is the distance in row blocks
    with SYMMETRIC, else b. Sums are of no use where float32's range does not hold them: SAFE says
    that it does. With CLASSES, of one matrix's rows, products of rows of one class are summed in
    the same way to `row_alike` and `column_alike`. Grid: (blocks, programs).
    """
    scale, reach = scale_and_reach(x_stats, y_stats, temperature)
    shift, safe = fixed_shift(reach, bits)
    first_row = (first_block + tl.program_id(0)) * BX
    begin = tl.program_id(1) * visits_each
    end = tl.minimum(begin + visits_each, visits)
    if not (SAFE or CLASSES):
        end = tl.where(safe, end, begin)
    rows = first_row + tl.arange(0, BX)
    if CLASSES:
        row_class = tl.load(classes + tl.minimum(rows, R - 1))
    if CHUNK == WIDTH:
        held = tl.trans(load_tile(x, first_row, R, 0, WIDTH, BX, WIDTH))
        held_low = held
        if SPLIT:
            held_low = tl.trans(load_tile(x_low, first_row, R, 0, WIDTH, BX, WIDTH))
    # Rows lie along the second axis: their sums stay apart in registers until the end, and only
    # the columns' sums, along the first axis, are added up tile by tile, which costs less there.
    total = tl.zeros((BY, BX), tl.float32)
    alike = tl.zeros((BY, BX), tl.float32)
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
        slot = visit // (BX // BY) if SYMMETRIC else tl.program_id(0)
        target = slot * C.to(tl.int64) + columns
        if COLUMNS:
            tl.store(column_sums + target, tl.sum(powers, 1), mask=columns < C)
        if CLASSES:
            column_class = tl.load(classes + tl.minimum(columns, C - 1))
            same = (column_class[:, None] == row_class[None, :]) & (logits > 0.5 * LEFT_OUT)
            products = tl.where(same, products, 0.0)
            alike += products
            tl.store(column_alike + target, tl.sum(products, 1), mask=columns < C)
    target = tl.program_id(1).to(tl.int64) * R + rows
    tl.store(row_sums + target, tl.sum(total, 0), mask=rows < R)
    if CLASSES:
        tl.store(row_alike + target, tl.sum(alike, 0), mask=rows < R)


def _slots(pair: Pair) -> int:
    """How many partial sums of every column may be held."""
    most = max(pair.rows, pair.columns)
    return max(1, max(PARTIAL_BYTES, most * pair.width) // (4 * most))


def _sum_tiles(
    pair: Pair,
    shape: Shape,
    sums: tuple[Tensor, Tensor],
    blocks: tuple[int, int],
    visits: tuple[int, int],
    each: int,
    *,
    symmetric: bool,
    columns: bool,
    classes: Tensor | None = None,
) -> None:
    """`sums`: (kinds, any, N) of rows and of columns; `blocks`, `visits`: first and number."""
    kind = 0 if classes is None else 1
    sum_tiles[blocks[1], triton.cdiv(visits[1], each)](
        *pair.tensors, *sums, sums[0] if classes is None else classes, sums[0][kind], sums[1][kind],
        pair.rows, pair.columns, pair.bits, *pair.exclusion, blocks[0], *visits, each,
        WIDTH=pair.width, BX=shape.rows, BY=shape.columns, CHUNK=shape.chunk,
        SPLIT=pair.split, EXCLUDE=pair.mode, SYMMETRIC=symmetric, COLUMNS=columns,
        SAFE=pair.safe_sums, CLASSES=classes is not None,
        num_warps=shape.warps, num_stages=shape.stages, **tuning.FUSED,
    )  # fmt: skip


def _each(pair: Pair, shape: Shape, blocks: int, visits: int) -> int:
    """Visits of a program; see `tuning.visits_each`."""
    device = pair.operands[0].device
    return tuning.visits_each(blocks, visits, shape, device, START, PROGRAMS)


def _shape(pair: Pair, classes: Tensor | None = None) -> Shape:
    def launch(shape: Shape) -> None:
        blocks = triton.cdiv(pair.rows, shape.rows)
        visits = triton.cdiv(pair.columns, shape.columns)
        of_rows = pair.empty(2, 1, pair.rows)
        of_columns = of_rows if classes is None else pair.empty(2, blocks, pair.columns)
        _sum_tiles(
            pair, shape, (of_rows, of_columns), (0, blocks), (0, visits), visits, symmetric=False,
            columns=False, classes=classes,
        )  # fmt: skip

    return tuning.best("sum" if classes is None else "alike", pair, launch)


def symmetric_log_sums(pair: Pair, losses: Losses | None = None) -> Tensor:
    """(N,) log-sums where rows and columns are the same, or losses; a tile serves both.

    Row block I visits the blocks I, I + 1, ... I + n // 2, cyclically. Of blocks at the distances
    0 and n / 2 either visits the other, so that only rows are summed there.
    """
    classes = None if losses is None else losses.classes
    shape = _shape(pair, classes)
    blocks = triton.cdiv(pair.rows, shape.rows)
    distances = blocks // 2 + 1
    both = triton.cdiv(blocks, 2)
    kinds = 1 if classes is None else 2
    held = min(distances, max(1, _slots(pair) // kinds))
    tiles = shape.rows // shape.columns
    each = _each(pair, shape, blocks, held * tiles)
    merge = Merge(pair, losses)
    row_sums = pair.empty(kinds, triton.cdiv(held * tiles, each), pair.rows)
    column_sums = pair.empty(kinds, held, pair.rows)
    for first in range(0, distances, held):
        visits = min(held, distances - first)
        of_rows = row_sums.view(-1)[: kinds * triton.cdiv(visits * tiles, each) * pair.rows]
        of_rows = of_rows.view(kinds, -1, pair.rows)
        _sum_tiles(
            pair, shape, (of_rows, column_sums), (0, blocks), (first * tiles, visits * tiles), each,
            symmetric=True, columns=True, classes=classes,
        )  # fmt: skip
        merge.add(
            of_rows,
            column_sums,
            (max(1 - first, 0), min(both - first, visits)),
            first=first == 0,
            last=first + visits == distances,
        )
    return merge.result


def log_sums(pair: Pair, columns: bool) -> tuple[Tensor, Tensor | None]:
    """(R,) log-sums of rows and, if `columns`, (C,) of columns."""
    shape = _shape(pair)
    blocks = triton.cdiv(pair.rows, shape.rows)
    visits = triton.cdiv(pair.columns, shape.columns)
    held = min(blocks, _slots(pair)) if columns else blocks
    each = max(_each(pair, shape, held, visits), triton.cdiv(visits, _slots(pair)))
    of_rows = Merge(pair)
    row_sums = pair.empty(1, triton.cdiv(visits, each), pair.rows)
    of_columns = Merge(pair.swapped()) if columns else None
    column_sums = pair.empty(1, held, pair.columns) if columns else row_sums
    for first in range(0, blocks, held):
        many = min(held, blocks - first)
        _sum_tiles(
            pair, shape, (row_sums, column_sums), (first, many), (0, visits), each,
            symmetric=False, columns=columns,
        )  # fmt: skip
        if of_columns is not None:
            part = column_sums[:, :many]
            of_columns.add(part, first=first == 0, last=first + many == blocks)
    return of_rows.add(row_sums), None if of_columns is None else of_columns.result
