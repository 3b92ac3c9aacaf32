"""Device functions that the contrastive kernels share: tiles, scores, exclusions, powers of two.

Names in capitals are constexpr. The two numbers of `stats` are the power of two that operands were
multiplied by and a bound of the rows' lengths. Logits are in units of log 2.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

# Triton's interpreter multiplies the bits of bfloat16 as integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
# log2(e) as two float32 numbers, because literals may be rounded to float32.
LOG2E_HIGH = tl.constexpr(1.44269502162933349609375)
LOG2E_LOW = tl.constexpr(1.925963033500011e-08)
LN2 = tl.constexpr(0.6931471805599453)
# A logit that stands for "left out": its exponential is 0, and 0 times it is 0.
LEFT_OUT = tl.constexpr(-1e30)
# Lengths of rounded rows exceed the bound by a unit of bfloat16 at most.
SLACK = tl.constexpr(1.01)
# Exponents that a sum of exponentials may take in float32, and what a gradient may.
SUM_EXPONENTS = tl.constexpr(125.0)
GRADIENT_EXPONENTS = tl.constexpr(80.0)


@triton.jit
def log2e():
    """log2(e) in float64."""
    return tl.full((), LOG2E_HIGH, tl.float64) + tl.full((), LOG2E_LOW, tl.float64)


@triton.jit
def exponent(value):
    """Floor of log2 of a positive normal float32; -127 for 0."""
    return ((value.to(tl.int32, bitcast=True) >> 23) & 255) - 127


@triton.jit
def power_of_two(places):
    """2 ** places for -126..127."""
    return ((places + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def clamped(value, least, most):
    """`value` within bounds."""
    return tl.minimum(tl.maximum(value, least), most)


@triton.jit
def logarithm(value, places):
    """ln(value * 2 ** places) with an absolute error near float32's, whatever its size."""
    whole = exponent(value)
    part = value / power_of_two(clamped(whole, -126, 127))
    result = (whole.to(tl.float32) + places) * LN2 + tl.log(part)
    return tl.where(value == 0, float("-inf"), result)


@triton.jit
def log_of_one_more(value):
    """log(1 + value) in float64 for values from 0 up, to float32's digits however small."""
    return tl.where(value < 1e-5, value - 0.5 * value * value, tl.log(1.0 + value))


@triton.jit
def exponential_less_one(value):
    """exp(value) - 1 in float64, to float32's digits however small."""
    small = tl.abs(value) < 1e-5
    return tl.where(small, value + 0.5 * value * value, tl.exp(value) - 1.0)


@triton.jit
def scale_and_reach(x_stats, y_stats, temperature):
    """What a product of operands is multiplied by to be a logit, and a bound of the logits."""
    inverse = log2e() / tl.load(temperature).to(tl.float64)
    scales = tl.load(x_stats).to(tl.float64) * tl.load(y_stats).to(tl.float64)
    reach = tl.load(x_stats + 1) * tl.load(y_stats + 1) * SLACK * inverse.to(tl.float32)
    return (inverse / scales).to(tl.float32), reach


@triton.jit
def fixed_shift(reach, bits):
    """Shift of all logits, and whether sums of 2 ** bits exponentials then stay in range."""
    return tl.maximum(reach + bits - SUM_EXPONENTS, 0.0), 2 * reach + bits <= 2 * SUM_EXPONENTS


@triton.jit
def load_tile(source, first, count, column, WIDTH: tl.constexpr, ROWS: tl.constexpr,
              COLUMNS: tl.constexpr):  # fmt: skip
    """(ROWS, COLUMNS) of `source` (count, WIDTH); past its end the last row again."""
    # Clamped places instead of a mask: what is read there is masked as a logit.
    rows = tl.minimum(tl.arange(0, ROWS), count - 1 - first)
    base = source + tl.full((), WIDTH, tl.int64) * first + column
    tile = tl.load(base + rows[:, None] * WIDTH + tl.arange(0, COLUMNS)[None, :])
    if INTERPRETED:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def multiply(a, a_low, b, b_low, SPLIT: tl.constexpr):
    """The matrix product a b, small terms first."""
    if SPLIT:
        part = tl.dot(a_low, b)
        part = tl.dot(a, b_low, part)
        return tl.dot(a, b, part)
    return tl.dot(a, b)


@triton.jit
def chunked_product(x, x_low, x_first, R, y, y_low, y_first, C, WIDTH: tl.constexpr,
                    CHUNK: tl.constexpr, BX: tl.constexpr, BY: tl.constexpr,
                    SPLIT: tl.constexpr):  # fmt: skip
    """(BX, BY) products of rows that are too wide to be held."""
    products = tl.zeros((BX, BY), tl.float32)
    for column in range(0, WIDTH, CHUNK):
        a = load_tile(x, x_first, R, column, WIDTH, BX, CHUNK)
        b = load_tile(y, y_first, C, column, WIDTH, BY, CHUNK)
        if SPLIT:
            a_low = load_tile(x_low, x_first, R, column, WIDTH, BX, CHUNK)
            b_low = load_tile(y_low, y_first, C, column, WIDTH, BY, CHUNK)
            products = tl.dot(a_low, tl.trans(b), products)
            products = tl.dot(a, tl.trans(b_low), products)
        products = tl.dot(a, tl.trans(b), products)
    return products


@triton.jit
def touches(gap, half, ROWS: tl.constexpr, COLUMNS: tl.constexpr, EXCLUDE: tl.constexpr):
    """Whether a tile may hold an excluded entry; `gap`: first column less first row.

    EXCLUDE is 0: nothing, 1: the row itself, 2: its other view as well.
    """
    touched = gap != gap
    if EXCLUDE > 0:
        touched = (gap < ROWS) & (gap > -COLUMNS)
    if EXCLUDE == 2:
        touched = touched | ((gap - half < ROWS) & (gap - half > -COLUMNS))
        touched = touched | ((gap + half < ROWS) & (gap + half > -COLUMNS))
    return touched


@triton.jit
def left_out(place, local, base, limit, half, EXCLUDE: tl.constexpr):
    """Where entry `base` + `local` of one side is none, or excluded for entry `place` of the other.

    `local` counts from the first of a block, along the axis on which a thread holds many entries:
    nothing but compile-time numbers is kept for them. There are entries up to `limit`.
    """
    out = local >= limit
    if EXCLUDE > 0:
        out = out | (local == place - base)
    if EXCLUDE == 2:
        other = tl.where(place < half, place + half, place - half)
        other = tl.where((place >= 0) & (place < 2 * half), other - base, -1)
        out = out | (local == other)
    return out
