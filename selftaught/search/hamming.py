"""Pairs of binary codes that differ in few bits, through FAISS."""

from collections.abc import Iterator

import numpy as np

BLOCK = 2**24  # pairs compared at once: bounds the memory where all codes are alike


def near_codes(
    first: np.ndarray, second: np.ndarray, most: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Compare all codes of one set with all of another, block by block.

    Args:
        first: (N, bytes) uint8.
        second: (M, bytes) uint8.
        most: largest number of differing bits.

    Yields:
        (P,) int64 positions in `first`, rising over the blocks, (P,) int64 positions in `second`
        and (P,) int64 numbers of differing bits.
    """
    import faiss

    index = faiss.IndexBinaryFlat(8 * second.shape[1])
    index.add(np.ascontiguousarray(second))
    rows = max(1, BLOCK // max(len(second), 1))
    for start in range(0, len(first), rows):
        block = np.ascontiguousarray(first[start : start + rows])
        limits, distance, position = index.range_search(block, most + 1)
        ends = limits.astype(np.int64)
        own = start + np.repeat(np.arange(len(block)), ends[1:] - ends[:-1])
        yield own, position.astype(np.int64), distance.astype(np.int64)
