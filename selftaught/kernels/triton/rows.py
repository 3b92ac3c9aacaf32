"""Passes over single rows in Triton: operands, products of pairs, finished gradients.

A program holds BLOCK whole rows of D columns, WIDE the next power of two.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.tiles import Embeddings
from selftaught.kernels.triton.pairs import on
from selftaught.kernels.triton.pieces import clamped, exponent, power_of_two
from selftaught.kernels.triton.tuning import FUSED, padded

# Rows of length 1 are multiplied by this power of two: far from float16's ends on both sides.
UNIT_PLACES = tl.constexpr(8)
# The largest entry of other rows is moved to about this power of two.
TOP_PLACES = tl.constexpr(13)
SMALLEST_NORMAL = tl.constexpr(1.1754943508222875e-38)
# Entries that one program of the kernels over rows holds.
ENTRIES = 4096


@triton.jit
def load_rows(source, rows, N, D, stride, WIDE: tl.constexpr):
    """Rows of `source` (N, D) in float32, 0 beyond its ends."""
    columns = tl.arange(0, WIDE)
    mask = (rows < N)[:, None] & (columns < D)[None, :]
    place = rows.to(tl.int64)[:, None] * stride + columns[None, :]
    return tl.load(source + place, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def _lengths(values):
    """Rows below their largest entry, that entry (1 for 0), lengths of those rows, which are 0."""
    largest = tl.max(tl.abs(values), 1)
    zero = largest < SMALLEST_NORMAL
    largest = tl.where(zero, 1.0, largest)
    # Without this, squares would under- and overflow.
    below = tl.where(zero[:, None], 0.0, tl.div_rn(values, largest[:, None]))
    length = tl.sqrt_rn(tl.where(zero, 1.0, tl.sum(below * below, 1)))
    return below, largest, length, zero


@triton.jit(do_not_specialize=["N"])
def measure(z, maxima, N, D, stride, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Largest entry and largest length of BLOCK rows: `maxima` (programs, 2)."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = load_rows(z, rows, N, D, stride, WIDE)
    _, largest, length, zero = _lengths(values)
    tl.store(maxima + tl.program_id(0) * 2, tl.max(tl.where(zero, 0.0, largest), 0))
    tl.store(maxima + tl.program_id(0) * 2 + 1, tl.max(tl.where(zero, 0.0, largest * length), 0))


@triton.jit
def unit_rows(z, rows, N, D, stride, NORMALIZE: tl.constexpr, WIDE: tl.constexpr):
    """Rows, divided by their length with NORMALIZE, and the inverse lengths, 0 for zero rows."""
    values = load_rows(z, rows, N, D, stride, WIDE)
    inverse = 1.0
    if NORMALIZE:
        values, largest, length, zero = _lengths(values)
        values = tl.div_rn(values, length[:, None])
        inverse = tl.where(zero, 0.0, tl.div_rn(1.0, length * largest))
    return values, inverse


@triton.jit
def set_stats(stats, measured, NORMALIZE: tl.constexpr, SCALED: tl.constexpr):
    """Program 0 writes `stats`; the power of two that operands are multiplied by."""
    bound = 1.0
    places = tl.full((), 0, tl.int32)
    if NORMALIZE:
        if SCALED:
            places = tl.full((), UNIT_PLACES, tl.int32)
    else:
        bound = tl.load(measured + 1)
        if SCALED:
            places = clamped(-exponent(tl.load(measured)) + TOP_PLACES, -100, 100)
    scale = power_of_two(places)
    if tl.program_id(0) == 0:
        tl.store(stats, scale)
        tl.store(stats + 1, bound)
    return scale


@triton.jit
def store_operands(
    values, place, mask, high, low, WIDTH: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr
):
    """Values of rows `place`, already scaled, as one operand or as a high and a low part."""
    upper = values.to(HALF)
    tl.store(high + place * WIDTH, upper, mask=mask)
    if SPLIT:
        tl.store(low + place * WIDTH, (values - upper.to(tl.float32)).to(HALF), mask=mask)


@triton.jit(do_not_specialize=["N"])
def make_operands(
    z, unit, inverse, high, low, stats, measured, N, D, stride,
    WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr,
    SCALED: tl.constexpr, UNIT: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Unit rows (N, D), their inverse lengths (N,), and operands (N, WIDTH) times a power of two.

    `stats` (2,): that power of two and a bound of lengths; `measured` (2,): largest entry and
    length of rows that are not normalised, and then `inverse` is not written.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    columns = tl.arange(0, WIDE)[None, :]
    values, raw = unit_rows(z, rows, N, D, stride, NORMALIZE, WIDE)
    if NORMALIZE:
        tl.store(inverse + rows, raw, mask=rows < N)
    scale = set_stats(stats, measured, NORMALIZE, SCALED)
    there = (rows < N)[:, None]
    place = rows.to(tl.int64)[:, None]
    if UNIT:
        tl.store(unit + place * D + columns, values, mask=there & (columns < D))
    mask = there & (columns < WIDTH)
    store_operands(values * scale, place, mask, high + columns, low + columns, WIDTH, SPLIT, HALF)


@triton.jit(do_not_specialize=["N"])
def multiply_rows(
    x, y, products, N, D, x_stride, y_stride, BLOCK: tl.constexpr, WIDE: tl.constexpr
):
    """Products of rows of the same place: `products` (N,)."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    product = load_rows(x, rows, N, D, x_stride, WIDE) * load_rows(y, rows, N, D, y_stride, WIDE)
    tl.store(products + rows, tl.sum(product, 1), mask=rows < N)


@triton.jit(do_not_specialize=["N"])
def finish_rows(
    sums, unit, inverse, partner, coefficient, temperature, gradient, N, D,
    sums_stride, unit_stride, partner_stride, inverse_stride,
    NORMALIZED: tl.constexpr, PARTNER: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients by raw rows, `gradient` (N, D); see `Tiles.finish`."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < N
    columns = tl.arange(0, WIDE)
    values = load_rows(sums, rows, N, D, sums_stride, WIDE)
    if PARTNER:
        factor = tl.load(coefficient + rows, mask=there, other=0.0)
        values += factor[:, None] * load_rows(partner, rows, N, D, partner_stride, WIDE)
    values = tl.div_rn(values, tl.load(temperature))
    if NORMALIZED:
        direction = load_rows(unit, rows, N, D, unit_stride, WIDE)
        along = tl.sum(values * direction, 1)
        factor = tl.load(inverse + rows.to(tl.int64) * inverse_stride, mask=there, other=0.0)
        values = (values - along[:, None] * direction) * factor[:, None]
    place = rows.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(gradient + place, values, mask=there[:, None] & (columns < D)[None, :])


def dense(z: Tensor) -> Tensor:
    """The same rows, each without gaps."""
    return z if z.stride(1) == 1 else z.contiguous()


def _block(count: int, width: int) -> tuple[tuple[int], dict[str, int]]:
    """Grid and block of a kernel over rows."""
    wide = triton.next_power_of_2(width)
    block = max(1, ENTRIES // wide)
    return (triton.cdiv(count, block),), {"BLOCK": block, "WIDE": wide, **FUSED}


def operand_kind(precision: str, dtype: torch.dtype) -> tuple[torch.dtype, bool]:
    """Dtype of the operands, and whether there are two, a high and a low part."""
    if precision == "auto":
        precision = "fp32" if dtype == torch.float32 else "fp16"
    return torch.bfloat16 if precision == "bf16" else torch.float16, precision == "fp32"


def measure_rows(several: Sequence[Tensor]) -> Tensor:
    """(2,) largest entry and largest length of the rows of one shape of several tensors."""
    count, width = several[0].shape
    grid, block = _block(count, padded(width))
    maxima = several[0].new_empty(len(several), grid[0], 2, dtype=torch.float32)
    for z, into in zip(several, maxima, strict=True):
        measure[grid](z, into, count, width, z.stride(0), **block)
    return maxima.amax((0, 1))


def prepare(z: Tensor, normalize: bool, precision: str) -> Embeddings:
    """See `Tiles.prepare`, and `TritonTiles` for the operands."""
    z = dense(z)
    count, width = z.shape
    half, split = operand_kind(precision, z.dtype)
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
                measured = measure_rows([z])
            make_operands[grid](
                z, unit, stats if inverse is None else inverse, high, low, stats, measured,
                count, width, z.stride(0),
                WIDTH=wide, NORMALIZE=normalize, SPLIT=split, UNIT=not kept,
                HALF=tl.bfloat16 if half == torch.bfloat16 else tl.float16,
                SCALED=half == torch.float16, **block,
            )  # fmt: skip
    return Embeddings(unit=unit, inverse=inverse, operands=operands)


def dots(x: Embeddings, y: Embeddings) -> Tensor:
    """See `Tiles.dots`."""
    left, right = dense(x.unit), dense(y.unit)
    count, width = left.shape
    products = left.new_empty(count)
    if count:
        grid, block = _block(count, width)
        with on(left):
            multiply_rows[grid](
                left, right, products, count, width, left.stride(0), right.stride(0), **block
            )
    return products


def finish(
    sums: Tensor,
    x: Embeddings,
    temperature: Tensor,
    partner: Embeddings | None = None,
    coefficient: Tensor | None = None,
) -> Tensor:
    """See `Tiles.finish`."""
    sums, unit = dense(sums), dense(x.unit)
    other = unit if partner is None else dense(partner.unit)
    factor = sums if coefficient is None else coefficient.contiguous()
    inverse = unit if x.inverse is None else x.inverse
    gradient = sums.new_empty(sums.shape)
    count, width = sums.shape
    if count:
        grid, block = _block(count, width)
        with on(sums):
            finish_rows[grid](
                sums, unit, inverse, other, factor, temperature, gradient, count, width,
                sums.stride(0), unit.stride(0), other.stride(0), inverse.stride(0),
                NORMALIZED=x.inverse is not None, PARTNER=partner is not None, **block,
            )  # fmt: skip
    return gradient
