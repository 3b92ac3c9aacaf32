"""Sums that come out the same, to the last bit, in whatever order and on however many ranks.

Numbers are rounded to multiples of a power of two so coarse that no sum of them is ever rounded:
53 bits hold them in float64, 63 in int64. What is exact does not depend on the order, so atomics,
threads, shards and updates by difference all give the same sum. With N numbers up to m the
rounding is m N / 2^53 (2^62) of a number at most, far below that of float32.
"""

from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from selftaught.kernels.cpp import clusters
from selftaught.search.direct import block_rows, compiled, serial
from selftaught.search.shards import Ranks

BITS = {torch.float64: 52, torch.int64: 61}
LARGEST_POWER = 1000


def summing_dtype(device: torch.device) -> torch.dtype:
    """float64 on a CPU, which adds it three times faster; int64 on a GPU, whose atomics wrap."""
    return torch.float64 if device.type == "cpu" else torch.int64


def scale_for(largest: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
    """Powers of two that numbers are multiplied by before they are rounded and summed.

    Args:
        largest: float64 upper bounds of the numbers' magnitudes.
        rows: how many are summed.
        dtype: of the sum, one of `BITS`.

    Returns:
        float64, shaped as `largest`.
    """
    exponents = np.frexp(largest.cpu().numpy())[1].astype(np.int64)
    powers = BITS[dtype] - max(rows - 1, 1).bit_length() - exponents
    scales = np.ldexp(1.0, np.clip(powers, -LARGEST_POWER, LARGEST_POWER))
    return torch.as_tensor(scales, dtype=torch.float64, device=largest.device)


def on_grid(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """Integers round(values * scale), to be summed in `dtype`."""
    return (values.double() * scale).round_().to(dtype)


def limits(values: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    """Smallest and largest value on any rank over dimension 0, float64; no rows: -inf above inf."""
    if len(values):
        # Two passes: one of torch.aminmax over the rows was measured six times slower.
        here = torch.stack([-values.amin(dim=0), values.amax(dim=0)]).double()
    else:
        here = values.new_full((2, *values.shape[1:]), -torch.inf, dtype=torch.float64)
    low, high = ranks.largest(here)
    return -low, high


def peak(values: Tensor, ranks: Ranks) -> Tensor:
    """Largest magnitude on any rank over dimension 0, float64; 0 where no rank has a row."""
    low, high = limits(values, ranks)
    return torch.maximum(high, -low).clamp(min=0)


def mean_of_rows(x: Tensor, largest: Tensor, rows: int, ranks: Ranks) -> Tensor:
    """Mean (D,) float64 of all ranks' rows, `rows` in number, with `peak` `largest`."""
    dtype = summing_dtype(x.device)
    scale = scale_for(largest, rows, dtype)
    total = x.new_zeros(x.shape[1], dtype=dtype)
    if compiled(x.device):
        clusters.cluster_sums(x, total[None], x.new_zeros(1, dtype=dtype), None, scale=scale)
    else:
        with serial():
            for part in x.split(block_rows(x)):
                total += on_grid(part, scale, dtype).sum(dim=0)
    return ranks.total(total).double() / scale / rows


def moved_to_grid(x: Tensor, origin: Tensor, scale: Tensor) -> Tensor:
    """`x - origin` (N, D) in float32, each column rounded to multiples of 1 / `scale`.

    What float32 leaves of such a multiple is one too, so the float64 sum of these rows is exact.
    """
    if compiled(x.device):
        return clusters.to_grid(x, origin, scale)
    out, block = torch.empty_like(x, dtype=torch.float32), block_rows(x)
    with serial():
        for source, target in zip(x.split(block), out.split(block), strict=True):
            target.copy_((source.double() - origin).mul_(scale).round_().div_(scale))
    return out


def total_of(values: Tensor, rows: int, ranks: Ranks) -> float:
    """Sum of all ranks' `values` (N,) float64, right to about 100 bits of the largest."""
    total, rest = Fraction(0), values
    for _ in range(2):
        scale = scale_for(peak(rest, ranks), rows, torch.int64)
        rounded = on_grid(rest, scale, torch.int64)
        total += Fraction(int(ranks.total(rounded.sum()))) / Fraction(float(scale))
        rest = rest - rounded.double() / scale
    return float(total)
