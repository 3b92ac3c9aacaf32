"""Log-sums of rows and columns: schedules, launches and merging of `passes.sum_tiles`.

Partial sums are held for a bounded number of tiles at a time: memory is O(N D), not O(N^2 / BX).
"""

import triton
from torch import Tensor

from selftaught.kernels.triton import passes, tuning
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.tables import Shape

# Programs that keep any GPU busy.
PROGRAMS = 1024
# Bytes of partial sums at a time, at least; or as many as the columns' entries.
PARTIAL_BYTES = 8 << 20
MERGED = 256
# Programs that share a row where its maximum has to be found.
ROBUST_PARTS = 8


def _slots(pair: Pair) -> int:
    """How many partial sums of every column may be held."""
    most = max(pair.rows, pair.columns)
    return max(1, max(PARTIAL_BYTES, most * pair.width) // (4 * most))


def _each(blocks: int, visits: int) -> int:
    """Visits of a program, so that there are about `PROGRAMS`."""
    return min(visits, triton.cdiv(blocks * visits, PROGRAMS))


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
    passes.sum_tiles[blocks[1], triton.cdiv(visits[1], each)](
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
    """Maxima and sums of rows where no shift serves all; see `passes.sum_rows`."""
    shape = tuning.default_shape("robust", pair)
    blocks = triton.cdiv(pair.rows, shape.rows)
    visits = triton.cdiv(pair.columns, shape.columns)
    each = triton.cdiv(visits, min(ROBUST_PARTS, visits))
    parts = triton.cdiv(visits, each)
    maxima, sums = pair.empty(parts, pair.rows), pair.empty(parts, pair.rows)
    passes.sum_rows[blocks, parts](
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
        passes.merge_sums[(triton.cdiv(pair.rows, MERGED),)](
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
    each = _each(blocks, held * tiles)
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
    each = max(_each(held, visits), triton.cdiv(visits, _slots(pair)))
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
