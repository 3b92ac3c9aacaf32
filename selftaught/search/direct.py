"""Squared distances by direct difference in float64, the same bits in any batch on any device."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from selftaught.kernels import dispatch, native
from selftaught.kernels.cpp import clusters

# On a CPU torch wakes its threads for 32,768 values and more. Waking them for every pass over a
# block costs more than they save, and on a busy machine a scheduler's turn each; smaller blocks
# also stay in the cache.
BLOCK_VALUES = {"cpu": 32_767, "cuda": 1 << 24}


def compiled(device: torch.device) -> bool:
    """Whether passes over rows on `device` run in C++; the plain ones give the same bits."""
    allowed = dispatch.requested(None) in ("auto", "cpp")
    return device.type == "cpu" and allowed and not native.reason()


@contextmanager
def serial() -> Iterator[None]:
    """Keep torch's CPU work in the calling thread.

    Some of its ops (`index_add_`, `round_`) wake the threads for blocks however small: the sums of
    20,000 x 128 rows took 72 ms with two threads on a busy two-core machine, 1.3 ms with one.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def block_rows(x: Tensor) -> int:
    """Rows (at least 1) of `x` (N, D) to work on at a time."""
    return max(1, BLOCK_VALUES[x.device.type] // max(x.shape[1], 1))


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
    if compiled(x.device) and x.dtype in (torch.float32, torch.float64):
        return clusters.squared_to(x.contiguous(), centers, index)
    block = block_rows(x)
    with serial():
        parts = [
            squared_rows(part, centers[numbers])
            for part, numbers in zip(x.split(block), index.split(block), strict=True)
            if len(part)
        ]
    return torch.cat(parts) if parts else x.new_zeros(0, dtype=torch.float64)
