"""The contrastive passes of `kernels.tiles.Tiles` by Triton kernels."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.tiles import Classes, Excluded, Rows, Side
from selftaught.kernels.triton import rows as row_kernels
from selftaught.kernels.triton.pairs import make_pair, on
from selftaught.kernels.triton.sums import log_sums, symmetric_log_sums
from selftaught.kernels.triton.tables import padded
from selftaught.kernels.triton.weights import weighted_sums

# Entries that one program of the kernels over rows holds.
ENTRIES = 4096


def _dense(z: Tensor) -> Tensor:
    return z if z.stride(1) == 1 else z.contiguous()


def _block(count: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and block of a kernel over rows."""
    wide = triton.next_power_of_2(width)
    block = max(1, ENTRIES // wide)
    return (triton.cdiv(count, block),), {"BLOCK": block, "WIDE": wide}


def _kind(precision: str, dtype: torch.dtype) -> tuple[torch.dtype, bool]:
    """Dtype of the operands, and whether there are two, a high and a low part."""
    if precision == "auto":
        precision = "fp32" if dtype == torch.float32 else "fp16"
    return torch.bfloat16 if precision == "bf16" else torch.float16, precision == "fp32"


class TritonTiles:
    """`selftaught.kernels.tiles.Tiles` on a GPU, or in Triton's interpreter.

    `Rows.operands` are the high part, the low part of split operands, and (N, 2) equal rows: the
    power of two that operands were multiplied by, and a bound of the rows' lengths.
    """

    def prepare(self, z: Tensor, normalize: bool, precision: str) -> Rows:
        """See `Tiles`."""
        z = _dense(z)
        count, width = z.shape
        half, split = _kind(precision, z.dtype)
        wide = padded(width)
        # Rows that are float32 already, and not to be normalised, are what they are.
        kept = not normalize and z.dtype == torch.float32 and z.is_contiguous()
        unit = z if kept else z.new_empty(count, width, dtype=torch.float32)
        inverse = unit.new_empty(count, 1) if normalize else None
        high = z.new_empty(count, wide, dtype=half)
        low = torch.empty_like(high) if split else high
        stats = unit.new_empty(1, 2)
        operands = (high, low, stats.expand(count, 2)) if split else (high, stats.expand(count, 2))
        if count:
            grid, block = _block(count, wide)
            with on(z):
                measured = stats
                if not normalize:
                    found = unit.new_empty(grid[0], 2)
                    row_kernels.measure[grid](z, found, count, width, z.stride(0), **block)
                    measured = found.amax(0)
                row_kernels.make_operands[grid](
                    z, unit, stats if inverse is None else inverse, high, low, stats, measured,
                    count, width, z.stride(0),
                    WIDTH=wide, NORMALIZE=normalize, SPLIT=split, UNIT=not kept,
                    HALF=tl.bfloat16 if half == torch.bfloat16 else tl.float16,
                    SCALED=half == torch.float16, **block,
                )  # fmt: skip
        return Rows(unit=unit, inverse=inverse, operands=operands)

    def dots(self, x: Rows, y: Rows) -> Tensor:
        """See `Tiles`."""
        left, right = _dense(x.unit), _dense(y.unit)
        count, width = left.shape
        products = left.new_empty(count)
        if count:
            grid, block = _block(count, width)
            with on(left):
                row_kernels.multiply_rows[grid](
                    left, right, products, count, width, left.stride(0), right.stride(0), **block
                )
        return products

    def log_sums(
        self,
        x: Rows,
        y: Rows,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        columns: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Tiles`."""
        pair = make_pair(x, y, temperature, excluded)
        if not pair.rows or not pair.columns:
            nothing = x.unit.new_full((pair.rows + pair.columns,), float("-inf"))
            return nothing[: pair.rows], nothing[pair.rows :] if columns else None
        with on(x.unit):
            if y is not x:
                return log_sums(pair, columns)
            of_rows = symmetric_log_sums(pair)
            return of_rows, of_rows.clone() if columns else None

    def weighted_sums(
        self,
        x: Rows,
        y: Rows,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        row: Side | None,
        column: Side | None,
        classes: Classes | None = None,
        slope: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Tiles`."""
        pair = make_pair(x, y, temperature, excluded)
        slope = slope and row is not None
        if not pair.rows or not pair.columns:
            sums = x.unit.new_zeros(x.unit.shape)
            return sums, x.unit.new_zeros(pair.rows) if slope else None
        with on(x.unit):
            return weighted_sums(pair, x.unit.shape[1], row, column, classes, slope)

    def finish(
        self,
        sums: Tensor,
        x: Rows,
        temperature: Tensor,
        partner: Rows | None = None,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """See `Tiles`."""
        sums, unit = _dense(sums), _dense(x.unit)
        other = unit if partner is None else _dense(partner.unit)
        factor = sums if coefficient is None else coefficient.contiguous()
        inverse = unit if x.inverse is None else x.inverse
        gradient = sums.new_empty(sums.shape)
        count, width = sums.shape
        if count:
            grid, block = _block(count, width)
            with on(sums):
                row_kernels.finish_rows[grid](
                    sums, unit, inverse, other, factor, temperature, gradient, count, width,
                    sums.stride(0), unit.stride(0), other.stride(0), inverse.stride(0),
                    NORMALIZED=x.inverse is not None, PARTNER=partner is not None, **block,
                )  # fmt: skip
        return gradient


TILES = TritonTiles()
