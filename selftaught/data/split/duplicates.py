"""Perceptual hashes: near-duplicate images have nearly the same bits, mirrored or not.

The hash is the signs of an image's 255 lowest frequencies (16 x 16 of the discrete cosine
transform of a 32 x 32 reduction, without the mean). Mirroring an image turns the sign of its odd
horizontal frequencies, so that one hash finds mirrored copies too. Brightness, contrast, size and
file format hardly change it; another crop or rotation does.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

SIDE, KEPT = 32, 16
BITS = KEPT * KEPT - 1
BYTES = KEPT * KEPT // 8
# Differing bits up to which two images count as near-duplicates; docs/data.md has the figures.
NEAR = 24
BLOCK = 2**24  # pairs compared at once: bounds the memory where all codes are alike
# The bits of odd horizontal frequencies.
ODD = np.packbits(np.arange(KEPT * KEPT) % 2 == 1)


class Near(NamedTuple):
    """Pairs of near-duplicates.

    Attributes:
        first: (P,) int64, position in the first set of hashes.
        second: (P,) int64, position in the second.
        distance: (P,) int64, differing bits.
        mirrored: (P,) bool, whether the distance is that to the mirror image.
    """

    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    mirrored: np.ndarray


def perceptual_hash(grey: np.ndarray) -> np.ndarray | None:
    """The hash of one image.

    Args:
        grey: (H, W) uint8 or uint16.

    Returns:
        (BYTES,) uint8, the first bit unused; None for an image of a single grey level.
    """
    import cv2

    if int(grey.min()) == int(grey.max()):
        return None
    small = cv2.resize(grey.astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    signs = cv2.dct(small)[:KEPT, :KEPT] > 0
    signs[0, 0] = False
    return np.packbits(signs)


def near_duplicates(first: np.ndarray, second: np.ndarray, most: int = NEAR) -> Iterator[Near]:
    """Compare all images of one set with all of another, as they are and mirrored.

    Args:
        first: (N, BYTES) uint8 hashes.
        second: (M, BYTES) uint8 hashes.
        most: largest number of differing bits.

    Yields:
        Near pairs, block by block. A symmetric image is near its like twice, once `mirrored`.
    """
    for mirrored in (False, True):
        other = mirror(second) if mirrored else second
        for i, j, distance in near_codes(first, other, most):
            yield Near(i, j, distance, np.full(len(i), mirrored))


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
        positions = start + np.repeat(np.arange(len(block)), ends[1:] - ends[:-1])
        yield positions, position.astype(np.int64), distance.astype(np.int64)


def mirror(hashes: np.ndarray) -> np.ndarray:
    """Hashes (N, BYTES) of the images turned left to right."""
    return hashes ^ ODD
