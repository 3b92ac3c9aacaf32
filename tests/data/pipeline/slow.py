"""A slow executor of a plan in float64, step by step, to compare the fast ones with."""

import math
from collections.abc import Mapping

import numpy as np
from scipy.ndimage import convolve1d, map_coordinates

from selftaught.data.plan import PARAMETERS

NEUTRAL = {name: 0.0 for name in PARAMETERS} | {
    name: 1.0
    for name in (
        "brightness",
        "scale",
        "crop_width",
        "crop_height",
        "color_brightness",
        "color_contrast",
    )
}


def geometry(canvas: np.ndarray, row: Mapping[str, float]) -> np.ndarray:
    """Follow every view pixel's centre back to the canvas: crop, rotation, scale, flips."""
    size = canvas.shape[0]
    y, x = np.mgrid[:size, :size] + 0.5
    x = row["crop_left"] * size + row["crop_width"] * x
    y = row["crop_top"] * size + row["crop_height"] * y
    x, y = x - size / 2, y - size / 2
    angle = math.radians(row["angle"])
    x, y = (
        math.cos(angle) * x - math.sin(angle) * y,
        math.sin(angle) * x + math.cos(angle) * y,
    )
    x, y = x / row["scale"], y / row["scale"]
    x = -x if row["horizontal_flip"] else x
    y = -y if row["vertical_flip"] else y
    where = [y + size / 2 - 0.5, x + size / 2 - 0.5]
    return map_coordinates(canvas.astype(float), where, order=1, mode="grid-constant", cval=0.0)


def view(canvas: np.ndarray, mask: np.ndarray | None, row: Mapping[str, float]) -> np.ndarray:
    """One view in [0, 1]; canvas (S, S) uint8 or uint16, mask (S, S) 0 to 255."""
    top = 255.0 if canvas.dtype == np.uint8 else 65535.0
    image = geometry(canvas, row)
    image = np.clip(image * row["brightness"], 0, top)
    image = np.clip(image * row["color_brightness"], 0, top)
    mean = image.mean()
    image = np.clip(mean + (image - mean) * row["color_contrast"], 0, top)
    sigma = row["blur_sigma"]
    if sigma > 0:
        offsets = np.arange(-math.ceil(4 * sigma), math.ceil(4 * sigma) + 1)
        kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
        for axis in (0, 1):
            image = convolve1d(image, kernel / kernel.sum(), axis, mode="nearest")
    image = (image - image.min()) / (image.max() - image.min() + 1e-6 * top)
    return image if mask is None else image * geometry(mask, row) / 255
