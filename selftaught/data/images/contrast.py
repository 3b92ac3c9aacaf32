"""Grey levels stretched to the full range, after some pixels are cut at both ends."""

import cv2
import numpy as np


def autocontrast(image: np.ndarray, cutoff: float) -> np.ndarray:
    """Stretch grey levels to the full range, after cutting some pixels at both ends.

    Equal to Pillow's `ImageOps.autocontrast` for 8 bits, and the same rule at 16 bits. An image
    that is constant after the cut is returned as it is.

    Args:
        image: (H, W) uint8 or uint16.
        cutoff: per cent of the pixels at each end, 0 to below 50.

    Returns:
        (H, W) of the same type.
    """
    return stretch(image, *contrast_limits(image, cutoff))


def contrast_limits(image: np.ndarray, cutoff: float) -> tuple[int, int]:
    """Lowest and highest grey level left after cutting some pixels at both ends.

    Args:
        image: (H, W) uint8 or uint16.
        cutoff: per cent of the pixels at each end, 0 to below 50.
    """
    levels = 256 if image.dtype == np.uint8 else 65536
    counts = cv2.calcHist([image], [0], None, [levels], [0, levels]).astype(np.int64)
    below = np.cumsum(counts.reshape(-1))
    pixels = int(below[-1])
    cut = int(pixels * cutoff // 100)
    low = int(np.searchsorted(below, cut, side="right"))
    high = int(np.searchsorted(below, pixels - 1 - cut, side="right"))
    return low, high


def stretch(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """Spread the levels from `low` to `high` over the full range.

    Args:
        image: (H, W) uint8 or uint16.
        low: lowest level that is left, as `contrast_limits` gives it.
        high: highest level that is left.

    Returns:
        (H, W) of the same type.
    """
    if high <= low:
        return image
    levels = 256 if image.dtype == np.uint8 else 65536
    scale = (levels - 1) / (high - low)
    stretched = np.clip(np.trunc(np.arange(levels) * scale - low * scale), 0, levels - 1)
    table = stretched.astype(image.dtype)
    return cv2.LUT(image, table) if levels == 256 else table[image]
