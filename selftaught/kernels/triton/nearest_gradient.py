"""Triton kernels of the gradients of the nearest squared distance and of the MAD loss on it.

Notation: N rows, K centres, D columns; names in capitals are constexpr.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

from selftaught.kernels.triton.nearest_center import differences


@triton.jit
def _coefficient(
    grad, labels, squared, index, rows, inside, grad_stride, label_stride, eta, eps,
    MAD: tl.constexpr,
):  # fmt: skip
    """Gradient by x over x - c, and the nearest centre, 0 where there is none (there NaN)."""
    nearest = tl.load(index + rows, mask=inside, other=0)
    slope = 2.0 * tl.load(grad + rows * grad_stride, mask=inside, other=0.0).to(tl.float32)
    if MAD:
        label = tl.load(labels + rows * label_stride, mask=inside, other=0)
        distance = tl.load(squared + rows, mask=inside, other=0.0) + eps
        by_distance = tl.where(label == 0, 1.0, float("nan"))
        by_distance = tl.where(label == 1, eta, by_distance)
        # Divided twice: the square of a small eps is 0 in float32.
        steep = -tl.math.div_rn(tl.math.div_rn(tl.zeros_like(distance) + eta, distance), distance)
        slope = slope * tl.where(label == -1, steep, by_distance)
    return tl.where(nearest < 0, float("nan"), slope), tl.maximum(nearest, 0)


@triton.jit(do_not_specialize=["N"])
def gradient_rows(
    grad, x, centers, labels, squared, index, result,
    N, D, stride, c_stride, grad_stride, label_stride, eta, eps,
    MAD: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient by x: `result` (N, D). Grid: (cdiv(N, BN), cdiv(D, BD))."""
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inside = rows < N
    slope, nearest = _coefficient(
        grad, labels, squared, index, rows, inside, grad_stride, label_stride, eta, eps, MAD
    )
    start = tl.program_id(1) * BD
    part = differences(x, centers, nearest, rows, inside, start, D, stride, c_stride, BD)
    columns = start + tl.arange(0, BD)
    mask = inside[:, None] & (columns < D)[None, :]
    value = (slope[:, None] * part).to(result.dtype.element_ty)
    tl.store(result + rows[:, None] * D + columns[None, :], value, mask=mask)


@triton.jit(do_not_specialize=["K"])
def gradient_centers(
    grad, x, centers, labels, squared, index, order, bounds, result,
    K, D, stride, c_stride, grad_stride, label_stride, eta, eps,
    MAD: tl.constexpr, SPLITS: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Gradient by centers in SPLITS parts. Grid: (K, SPLITS, cdiv(D, BD)).

    The rows of centre k are `order[bounds[k] : bounds[k + 1]]`; `result` (SPLITS, K, D) float32.
    """
    center = tl.program_id(0).to(tl.int64)
    first, last = tl.load(bounds + center), tl.load(bounds + center + 1)
    share = tl.cdiv(last - first, SPLITS)
    first += share * tl.program_id(1)
    last = tl.minimum(first + share, last)
    start = tl.program_id(2) * BD
    total = tl.zeros((BD,), tl.float32)
    while first < last:
        places = first + tl.arange(0, BN)
        inside = places < last
        rows = tl.load(order + places, mask=inside, other=0)
        slope, nearest = _coefficient(
            grad, labels, squared, index, rows, inside, grad_stride, label_stride, eta, eps, MAD
        )
        part = differences(x, centers, nearest, rows, inside, start, D, stride, c_stride, BD)
        total -= tl.sum(tl.where(inside[:, None], slope[:, None] * part, 0.0), 0)
        first += BN
    columns = start + tl.arange(0, BD)
    place = (tl.program_id(1).to(tl.int64) * K + center) * D
    tl.store(result + place + columns, total, mask=columns < D)
