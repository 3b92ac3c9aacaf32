"""One sample before augmentation: decoded, checked against its mask, contrast stretched."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack import locate


class Sample(NamedTuple):
    """What an executor renders views from.

    Attributes:
        image: (H, W) uint8 or uint16.
        mask: (H, W) uint8, 0 to 255, or None for all of the frame.
        framed: `mask` is but the image's frame, by which no view is multiplied.
    """

    image: np.ndarray
    mask: np.ndarray | None
    framed: bool = False

    @property
    def nbytes(self) -> int:
        """Memory of both arrays."""
        return self.image.nbytes + (0 if self.mask is None else self.mask.nbytes)


# Image and mask of a sample that is not as its files are, such as a film that is prepared only
# now; None: the files themselves. Called from many threads; raises `BadImage`.
Made = Callable[[int], Sample | None]


def load(path: Path, mask: Path | None, *, cutoff: float) -> Sample:
    """Read an image and its mask at the image's own size, from a pack where they lie in one.

    Args:
        path: the image file.
        mask: its body-part mask, or None.
        cutoff: per cent of the pixels cut at each end of the histogram.

    Raises:
        BadImage: as `read_grey`; also a mask of another size than the image, or an empty mask.
    """
    packed = locate(path)
    image = read_grey(path) if packed is None else packed.pack.image(packed.slot)
    region = None if mask is None else read_mask(mask, path, image.shape)
    if packed is not None and cutoff == packed.pack.cutoff:
        return Sample(_stretch(image, *packed.pack.limits(packed.slot)), region)
    return Sample(autocontrast(image, cutoff), region)


def read_mask(path: Path, image_path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Read a mask, whether its file holds 0/1, 0/255 or 0/65535.

    Args:
        path: the mask's file.
        image_path: its image's, for the message.
        shape: (H, W) of the image.

    Returns:
        (H, W) uint8, 0 or 255.

    Raises:
        BadImage: as `read_grey`; also another size than the image's, or an empty mask.
    """
    mask = read_grey(path)
    if mask.shape != shape:
        raise BadImage(
            path,
            f"mask of {mask.shape[1]} x {mask.shape[0]} pixels; its image {image_path.name} "
            f"has {shape[1]} x {shape[0]}",
        )
    highest = int(mask.max())
    if highest == 0:
        raise BadImage(path, "mask is empty: no pixel is above 0")
    return np.where(mask > highest // 2, np.uint8(255), np.uint8(0))


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
    return _stretch(image, *contrast_limits(image, cutoff))


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


def _stretch(image: np.ndarray, low: int, high: int) -> np.ndarray:
    """Spread the levels from low to high over the full range."""
    if high <= low:
        return image
    levels = 256 if image.dtype == np.uint8 else 65536
    scale = (levels - 1) / (high - low)
    stretched = np.clip(np.trunc(np.arange(levels) * scale - low * scale), 0, levels - 1)
    table = stretched.astype(image.dtype)
    return cv2.LUT(image, table) if levels == 256 else table[image]
