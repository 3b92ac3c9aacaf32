"""Reads the mask of an image."""

from pathlib import Path

import numpy as np

from selftaught.data.images.decode import read_grey
from selftaught.data.images.limits import BadImage


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
