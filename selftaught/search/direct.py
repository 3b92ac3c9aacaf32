"""Squared distances by direct difference in float64, the same bits in any batch on any device."""

import torch
from torch import Tensor

# Values of a block: on a CPU its float64 copies stay in the cache.
BLOCK_VALUES = {"cpu": 1 << 17, "cuda": 1 << 24}


def squared_rows(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance (N,) float64 of each row of `x` to the row of `y` (or the one row).

    The additions are elementwise, in an order that the width alone decides; a library's sum over
    a dimension may add differently in another batch.

    Args:
        x: (N, D).
        y: (N, D) or (1, D).
    """
    terms = (x.double() - y.double()).square_()
    while (width := terms.shape[1]) > 1:
        half = (width + 1) // 2
        folded = terms[:, :half].clone()
        folded[:, : width - half] += terms[:, half:]
        terms = folded
    return terms[:, 0]


def squared_to(x: Tensor, centers: Tensor, index: Tensor) -> Tensor:
    """Squared distance (N,) float64 of each row to `centers[index]`, in blocks."""
    block = max(1, BLOCK_VALUES[x.device.type] // max(x.shape[1], 1))
    parts = [
        squared_rows(part, centers[numbers])
        for part, numbers in zip(x.split(block), index.split(block), strict=True)
        if len(part)
    ]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64)
