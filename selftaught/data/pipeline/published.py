"""Views in the published order, step by step with Pillow, quirks included (paper Fig. 5, A3).

Kept apart from the composed executor because it is a record of what was run, not a good way to do
it: five resamplings per view, scaling about a corner, rotation before padding. 8-bit images go
through the very operations of the published code; 16-bit ones through the same steps in float32,
so that they are not cut to 8 bits.
"""

import math
from collections.abc import Mapping

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from selftaught.data.augment import Augment
from selftaught.data.pipeline.sample import Sample

EPSILON = 1e-6
TOP = 65535.0


def render(
    base: Sample,
    row: Mapping[str, float],
    augment: Augment,
    view: np.ndarray,
    mask: np.ndarray | None,
    *,
    masked: bool,
) -> None:
    """Make one view.

    Args:
        base: image and mask at their own size.
        row: parameters of the view by name.
        augment: mask scale and pivot.
        view: (S, S) float32, filled in.
        mask: (S, S) float32, filled with the mask in [0, 1], or None.
        masked: multiply the view by the mask.
    """
    size = view.shape[0]
    corner = augment.scale_pivot == "corner"
    image = _flip(_to_pillow(base.image), row)
    image = _brightness(image, row["brightness"])
    image = _crop(_square(_move(image, row, corner=corner), size), row)
    image = _contrast(_brightness(image, row["color_brightness"]), row["color_contrast"])
    levels = np.asarray(_blur(image, row["blur_sigma"]), np.float32)
    low, high = float(levels.min()), float(levels.max())
    full = 255.0 if image.mode == "L" else TOP
    np.multiply(levels - low, augment.mask_scale / (high - low + EPSILON * full), out=view)
    if base.mask is None:
        return
    region = _move(_flip(Image.fromarray(base.mask), row), row, corner=corner)
    share = np.asarray(_crop(_square(region, size), row), np.float32) / np.float32(255)
    if masked:
        view *= share
    if mask is not None:
        mask[...] = share


def _to_pillow(image: np.ndarray) -> Image.Image:
    """Mode L for 8 bits, F for 16."""
    return Image.fromarray(image if image.dtype == np.uint8 else image.astype(np.float32))


def _flip(image: Image.Image, row: Mapping[str, float]) -> Image.Image:
    if row["horizontal_flip"]:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if row["vertical_flip"]:
        image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    return image


def _move(image: Image.Image, row: Mapping[str, float], *, corner: bool) -> Image.Image:
    """Scale, then rotate, each on the image's own canvas, so that corners are cut."""
    if row["scale"] != 1.0:
        factor = 1.0 / row["scale"]
        x, y = (0.0, 0.0) if corner else (image.width / 2, image.height / 2)
        image = image.transform(
            image.size,
            Image.Transform.AFFINE,
            (factor, 0.0, x * (1.0 - factor), 0.0, factor, y * (1.0 - factor)),
            Image.Resampling.BILINEAR,
        )
    return image.rotate(row["angle"], Image.Resampling.BILINEAR) if row["angle"] else image


def _square(image: Image.Image, size: int) -> Image.Image:
    """Resize the major axis to `size` and pad to a centred square."""
    ratio = size / max(image.size)
    width, height = max(1, round(image.width * ratio)), max(1, round(image.height * ratio))
    if (width, height) != image.size:
        image = _clipped(image.resize((width, height), Image.Resampling.LANCZOS))
    square = Image.new(image.mode, (size, size))
    square.paste(image, ((size - width) // 2, (size - height) // 2))
    return square


def _crop(image: Image.Image, row: Mapping[str, float]) -> Image.Image:
    size = image.width
    left, top = round(row["crop_left"] * size), round(row["crop_top"] * size)
    right = max(left + 1, round((row["crop_left"] + row["crop_width"]) * size))
    bottom = max(top + 1, round((row["crop_top"] + row["crop_height"]) * size))
    if (left, top, right, bottom) == (0, 0, size, size):
        return image
    return image.crop((left, top, right, bottom)).resize((size, size), Image.Resampling.BILINEAR)


def _brightness(image: Image.Image, factor: float) -> Image.Image:
    if factor == 1.0:
        return image
    if image.mode == "L":
        return ImageEnhance.Brightness(image).enhance(factor)
    return _clipped(Image.fromarray(np.asarray(image) * np.float32(factor)))


def _contrast(image: Image.Image, factor: float) -> Image.Image:
    if factor == 1.0:
        return image
    if image.mode == "L":
        return ImageEnhance.Contrast(image).enhance(factor)
    levels = np.asarray(image)
    mean = np.float32(math.floor(levels.mean(dtype=np.float64) + 0.5))
    return _clipped(Image.fromarray(mean + (levels - mean) * np.float32(factor)))


def _blur(image: Image.Image, sigma: float) -> Image.Image:
    if sigma <= 0.0:
        return image
    if image.mode == "L":
        return image.filter(ImageFilter.GaussianBlur(sigma))
    side = 2 * math.ceil(3.0 * sigma) + 1
    levels = np.asarray(image)
    return Image.fromarray(
        cv2.GaussianBlur(levels, (side, side), sigma, borderType=cv2.BORDER_REPLICATE)
    )


def _clipped(image: Image.Image) -> Image.Image:
    """Float images to the range of 16 bits; Pillow clips 8-bit ones itself."""
    return image if image.mode == "L" else Image.fromarray(np.clip(np.asarray(image), 0.0, TOP))
