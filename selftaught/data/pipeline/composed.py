"""Views in the composed order: one square canvas per image, one resampling per view."""

import math
from collections.abc import Mapping

import cv2
import numpy as np

from selftaught.data.augment import Augment
from selftaught.data.pipeline.sample import Sample

IDENTITY = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
# Min-max divides by the range plus this, in units of the full range (A3, row 13).
EPSILON = 1e-6


def canvas(sample: Sample, size: int, *, frame: bool) -> Sample:
    """Resize the major axis to `size`, antialiased, and pad to a centred square with zeros.

    Args:
        sample: image and mask at their own size.
        size: S, in pixels.
        frame: without a mask, make one that is 255 inside the image and 0 in the padding.

    Returns:
        image and mask (S, S).
    """
    mask, framed = sample.mask, sample.mask is None and frame
    if framed:
        mask = np.full(sample.image.shape, 255, np.uint8)
    square = _square(sample.image, size)
    return Sample(square, None if mask is None else _square(mask, size), framed)


def inner_shape(height: int, width: int, size: int) -> tuple[int, int]:
    """Height and width on a canvas of side `size`, of an image of any size."""
    ratio = size / max(height, width)
    return max(1, round(height * ratio)), max(1, round(width * ratio))


def _square(image: np.ndarray, size: int) -> np.ndarray:
    shape = inner_shape(image.shape[0], image.shape[1], size)
    if shape != image.shape:
        interpolation = cv2.INTER_AREA if size < max(image.shape) else cv2.INTER_LINEAR
        image = cv2.resize(image, shape[::-1], interpolation=interpolation)
    square = np.zeros((size, size), image.dtype)
    top, left = (size - image.shape[0]) // 2, (size - image.shape[1]) // 2
    square[top : top + image.shape[0], left : left + image.shape[1]] = image
    return square


def matrix(row: Mapping[str, float], size: int, *, corner: bool = False) -> np.ndarray:
    """Where each pixel of a view comes from on the canvas.

    The view is the canvas flipped, scaled, rotated and cropped, in this order.

    Args:
        row: parameters of one view by name.
        size: S, side of canvas and view in pixels.
        corner: scale about the top left corner instead of the centre.

    Returns:
        (2, 3) float64, view pixel (x, y, 1) to canvas pixel (x, y).
    """
    center = size / 2.0
    pivot = 0.0 if corner else center
    crop = np.array(
        [
            [row["crop_width"], 0.0, row["crop_left"] * size],
            [0.0, row["crop_height"], row["crop_top"] * size],
            [0.0, 0.0, 1.0],
        ]
    )
    angle = math.radians(row["angle"])
    # y points down, so this turns the picture counter-clockwise as seen.
    turn = _about(center, math.cos(angle), -math.sin(angle), math.sin(angle), math.cos(angle))
    shrink = _about(pivot, 1.0 / row["scale"], 0.0, 0.0, 1.0 / row["scale"])
    flip = _about(
        center,
        -1.0 if row["horizontal_flip"] else 1.0,
        0.0,
        0.0,
        -1.0 if row["vertical_flip"] else 1.0,
    )
    # Pixel (0, 0) covers [0, 1) x [0, 1): its centre is at one half.
    half = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5], [0.0, 0.0, 1.0]])
    back = np.array([[1.0, 0.0, -0.5], [0.0, 1.0, -0.5], [0.0, 0.0, 1.0]])
    return (back @ flip @ shrink @ turn @ crop @ half)[:2]


def _about(pivot: float, a: float, b: float, c: float, d: float) -> np.ndarray:
    """The linear map ((a, b), (c, d)) about the point (pivot, pivot)."""
    return np.array(
        [
            [a, b, pivot - a * pivot - b * pivot],
            [c, d, pivot - c * pivot - d * pivot],
            [0.0, 0.0, 1.0],
        ]
    )


def render(
    base: Sample,
    row: Mapping[str, float],
    augment: Augment,
    view: np.ndarray,
    mask: np.ndarray | None,
    *,
    masked: bool,
) -> None:
    """Make one view; 8-bit images stay 8-bit until the last step, deeper ones become float32.

    Args:
        base: canvas, image and mask (S, S).
        row: parameters of the view by name.
        augment: mask scale and pivot.
        view: (S, S) float32, filled in.
        mask: (S, S) float32, filled with the mask in [0, 1], or None.
        masked: multiply the view by the mask.
    """
    size = base.image.shape[0]
    turn = matrix(row, size, corner=augment.scale_pivot == "corner")
    image = _warp(base.image, turn)
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
    image = _blur(_tone(image, row), row["blur_sigma"])
    _normalise(image, float(augment.mask_scale), view)
    if base.mask is None:
        return
    region = _warp(base.mask, turn)
    if masked:
        cv2.multiply(view, region, dst=view, scale=1.0 / 255.0, dtype=cv2.CV_32F)
    if mask is not None:
        np.multiply(region, np.float32(1.0 / 255.0), out=mask)


def _warp(image: np.ndarray, turn: np.ndarray) -> np.ndarray:
    if np.array_equal(turn, IDENTITY):
        return image
    return cv2.warpAffine(
        image,
        turn,
        (image.shape[1], image.shape[0]),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=0,
    )


def _tone(image: np.ndarray, row: Mapping[str, float]) -> np.ndarray:
    """Brightness of the fine-tuning stage, then colour brightness, then contrast.

    Each step clips, and contrast pivots on the rounded mean, as Pillow's enhancers do.
    """
    for name in ("brightness", "color_brightness"):
        if row[name] != 1.0:
            image = _linear(image, row[name], 0.0)
    contrast = row["color_contrast"]
    if contrast != 1.0:
        mean = math.floor(cv2.mean(image)[0] + 0.5)
        image = _linear(image, contrast, (1.0 - contrast) * mean)
    return image


def _linear(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """Scaled by factor, moved by offset, rounded for uint8, clipped to 0..255 or 0..65535."""
    if image.dtype == np.uint8:
        table = np.clip(np.rint(np.arange(256) * factor + offset), 0, 255)
        return cv2.LUT(image, table.astype(np.uint8))
    return np.clip(image * np.float32(factor) + np.float32(offset), 0.0, 65535.0)


def _blur(image: np.ndarray, sigma: float) -> np.ndarray:
    if sigma <= 0.0:
        return image
    side = 2 * math.ceil(3.0 * sigma) + 1
    return cv2.GaussianBlur(image, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)


def _normalise(image: np.ndarray, scale: float, view: np.ndarray) -> None:
    """Min-max over the whole frame to [0, scale], into `view`; a constant image becomes 0."""
    low, high, _, _ = cv2.minMaxLoc(image)
    full = 255.0 if image.dtype == np.uint8 else 65535.0
    factor = scale / (high - low + EPSILON * full)
    if image.dtype == np.uint8:
        table = (np.arange(256) - low) * factor
        cv2.LUT(image, np.clip(table, 0.0, scale).astype(np.float32), dst=view)
    else:
        np.multiply(image - np.float32(low), np.float32(factor), out=view)
