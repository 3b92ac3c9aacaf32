"""From outlines in millimetres to pixels: masks, depths, coverage."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.phantoms.shapes import Array

Map = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """Pixel grid of one exposure.

    Attributes:
        height: rows.
        width: columns.
        matrix: (2, 3) from mm to pixels, a similarity (perhaps mirrored).
        fine: sub-pixels per pixel side when outlines are filled.
        grain: (height, width) texture of spongy bone around 1.
        fibres: (height, width) texture of muscle around 1.
    """

    height: int
    width: int
    matrix: Array
    fine: int
    grain: Map
    fibres: Map

    @property
    def scale(self) -> float:
        """Pixels per mm."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def pixels(self, points: Array) -> Array:
        """(N, 2) mm to (N, 2) pixels, x then y."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]


Box = tuple[slice, slice]


def box_of(canvas: Canvas, points: Array, margin: float = 2.0) -> Box | None:
    """Rows and columns that hold (N, 2) pixel points, or None outside the canvas."""
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    left, top = np.maximum(low, 0)
    right, bottom = np.minimum(high, (canvas.width, canvas.height))
    if right - left < 1 or bottom - top < 1:
        return None
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def filled_box(canvas: Canvas, box: Box, pixels: Array) -> npt.NDArray[np.uint8]:
    """Sub-pixel mask (0 or 1) of a polygon inside `box`."""
    rows, columns = box
    fine = canvas.fine
    shape = ((rows.stop - rows.start) * fine, (columns.stop - columns.start) * fine)
    mask = np.zeros(shape, np.uint8)
    corners = (pixels - (columns.start, rows.start) + 0.5) * fine - 0.5
    corners = np.clip(corners, -8000, 8000)
    cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 1, lineType=cv2.LINE_8, shift=4)
    return mask


def shrink(canvas: Canvas, fine: Map, box: Box) -> Map:
    """Average sub-pixels to pixels."""
    rows, columns = box
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), np.float32)


def coverage(canvas: Canvas, outline: Array) -> Map:
    """Share of every pixel inside a polygon (N, 2) in mm -> (height, width) float32."""
    full = (slice(0, canvas.height), slice(0, canvas.width))
    out = np.zeros((canvas.height, canvas.width), np.float32)
    pixels = canvas.pixels(outline)
    box = box_of(canvas, pixels)
    if box is not None:
        out[box] = shrink(canvas, filled_box(canvas, box, pixels).astype(np.float32), box)
    assert out.shape == (full[0].stop, full[1].stop)
    return out


def depths(canvas: Canvas, box: Box, pixels: Array) -> Map:
    """Distance of every pixel in `box` from the rim of a polygon, mm; 0 outside."""
    mask = filled_box(canvas, box, pixels)
    inside: Map = np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.float32)
    np.maximum(inside - 0.5, 0, out=inside)
    return shrink(canvas, inside, box) / np.float32(canvas.fine * canvas.scale)


def chord(distance: Map, width: Map | float) -> Map:
    """Relative thickness of a rod at `distance` from its rim: 0 at the rim, 1 at `width`."""
    share = np.minimum(distance / width, 1)
    return np.sqrt(np.maximum(share * (2 - share), 0))


@lru_cache(maxsize=8)
def fine_for(size: int) -> int:
    """Sub-pixels per pixel side: small pictures get more, so that thin shells survive."""
    return 3 if size >= 320 else 4
