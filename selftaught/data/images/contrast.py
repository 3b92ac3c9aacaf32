"""Grey levels stretched to the full range, after some pixels are cut at both ends."""

import cv2
import numpy as np

SHALLOWEST = 10  # bits that detectors and scanners give, where more than 8 are stored
CLEARLY = 12  # a 16-bit film whose highest level needs no more bits was not scaled to 16
WHITE, LETTERS = 65535, 0.01  # level, share of the pixels
SMOOTH = 3.0  # pixels, standard deviation: what is left of noise is a tenth


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


def is_low_contrast(image: np.ndarray, least: float) -> bool:
    """Whether the 1st to 99th percentile spans less than a share of the type's range.

    Args:
        image: (H, W) uint8 or uint16.
        least: share, 0.05 in scikit-image's test, which the published code uses.
    """
    low, high = contrast_limits(image, 1.0)
    return (high - low) / int(np.iinfo(image.dtype).max) < least


def used_bits(image: np.ndarray, stated: int | None, least: float) -> int:
    """How many bits the levels of a film have that was stored in 16 bits, perhaps without scaling.

    Where its file does not state them, they are guessed from the highest level, and only where
    the film shows something once noise is smoothed; from 13 bits on, only where it would be of low
    contrast otherwise: a dark film of 16 bits stays as dark as it is. A few pixels at 65535 do not
    count: letters that were burnt in. Shifted like the others, they stay white.

    Args:
        image: (H, W) uint16.
        stated: bits that the file states, or None.
        least: share of the range that a film has to span.

    Returns:
        16, or fewer where every level that counts is below 2 to their power.
    """
    highest = int(image.max())
    if highest == WHITE:
        rest = image[image < WHITE]
        if rest.size >= (1 - LETTERS) * image.size:
            highest = int(rest.max())
    if stated is not None:
        beyond = highest >> stated if stated < 16 else 1
        # Levels that were scaled are multiples: then it is but a dark film.
        return 16 if beyond or not np.any(image & (2 ** (16 - stated) - 1)) else stated
    bits = max(SHALLOWEST, highest.bit_length())
    if bits >= 16 or bits > CLEARLY and not is_low_contrast(image, least):
        return 16
    shown = cv2.GaussianBlur(image << (16 - bits), (0, 0), SMOOTH)
    return 16 if is_low_contrast(shown, least) else bits
