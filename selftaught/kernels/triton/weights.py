"""Weighted sums, the gradient by rows: launches of `factors` and `passes.weighted_tiles`."""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.tiles import Classes, Side
from selftaught.kernels.triton import factors, passes, tuning
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.tables import Shape

# Programs that occupy a large GPU, and most parts that a row's sum is made of.
PROGRAMS = 132
PARTS = 8


class _Factors(NamedTuple):
    rows: Tensor
    columns: Tensor
    unscale: Tensor


def _find_factors(
    pair: Pair, row: Side | None, column: Side | None, share: bool, slope: bool
) -> _Factors:
    blocks = triton.cdiv(max(pair.rows, pair.columns), factors.BLOCK)
    bounds = pair.empty(2, blocks)
    found = _Factors(pair.empty(7, pair.rows), pair.empty(4, pair.columns), pair.empty(1))

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
    factors.find_bounds[blocks, 2](
        *vectors(row), *vectors(column), *scales, bounds, pair.rows, pair.columns, blocks,
        **flags, BLOCK=factors.BLOCK,
    )  # fmt: skip
    factors.find_factors[blocks, 2](
        *vectors(row), positive, *vectors(column), *scales, bounds, *found,
        pair.rows, pair.columns, blocks, **flags, SLOPE=slope, BLOCK=factors.BLOCK,
    )  # fmt: skip
    return found


def weighted_sums(
    pair: Pair,
    width: int,
    row: Side | None,
    column: Side | None,
    classes: Classes | None,
    slope: bool,
) -> tuple[Tensor, Tensor | None]:
    """(R, width) sums and, if `slope`, (R,) slopes; see `Tiles.weighted_sums`."""
    found = _find_factors(pair, row, column, classes is not None, slope)
    if classes is None:
        of_rows = of_columns = found.unscale
    else:
        of_rows, of_columns = classes.rows.contiguous(), classes.columns.contiguous()
    bf16 = pair.operands[0].dtype == torch.bfloat16

    def launch(shape: Shape) -> tuple[Tensor, Tensor | None]:
        blocks, outs = triton.cdiv(pair.rows, shape.rows), triton.cdiv(width, shape.out)
        visits = triton.cdiv(pair.columns, shape.columns)
        each = triton.cdiv(visits, min(PARTS, visits, triton.cdiv(PROGRAMS, blocks * outs)))
        parts = triton.cdiv(visits, each)
        sums = pair.empty(parts, pair.rows, width)
        slopes = pair.empty(parts, pair.rows) if slope else None
        passes.weighted_tiles[blocks, outs, parts](
            *pair.tensors, *found, of_rows, of_columns,
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
