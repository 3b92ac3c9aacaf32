"""Rectangles on a page: corner order, overlap, and the upright picture inside one."""

import cv2
import numpy as np
import numpy.typing as npt

Quad = npt.NDArray[np.float64]


def ordered(quad: npt.ArrayLike) -> Quad:
    """Corners clockwise as seen, from the one that is top left after the smallest turn.

    Args:
        quad: (4, 2) corners, x then y in pixels.

    Returns:
        (4, 2) float64: top left, top right, bottom right, bottom left.
    """
    corners = np.asarray(quad, np.float64)
    offset = corners - corners.mean(axis=0)
    corners = corners[np.argsort(np.arctan2(offset[:, 1], offset[:, 0]), kind="stable")]
    # The side that points most to the right is the top one.
    sides = np.roll(corners, -1, axis=0) - corners
    length = np.maximum(np.linalg.norm(sides, axis=1), 1e-9)
    return np.roll(corners, -int(np.argmax(sides[:, 0] / length)), axis=0)


def side_lengths(quad: Quad) -> tuple[float, float]:
    """(width, height) in pixels: means of opposite sides of an ordered quad."""
    length = np.linalg.norm(np.roll(quad, -1, axis=0) - quad, axis=1)
    return float(length[0] + length[2]) / 2, float(length[1] + length[3]) / 2


def row_ends(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.intp]:
    """(N, 2) places, x then y, of the first and last set pixel of each row: they have its hull."""
    rows = np.flatnonzero(mask.any(axis=1))
    chosen = mask[rows]
    first, last = chosen.argmax(axis=1), mask.shape[1] - 1 - chosen[:, ::-1].argmax(axis=1)
    return np.stack([np.concatenate([first, last]), np.concatenate([rows, rows])], axis=1)


def overlap(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Intersection over union of two convex quadrilaterals, (4, 2) corners each."""
    first, second = ordered(a).astype(np.float32), ordered(b).astype(np.float32)
    common = float(cv2.intersectConvexConvex(first, second)[0])
    whole = cv2.contourArea(first) + cv2.contourArea(second) - common
    return common / whole if whole > 0 else 0.0


def whole_frame(shape: tuple[int, ...]) -> Quad:
    """The corners of a picture itself, through the centres of its outermost pixels."""
    bottom, right = shape[0] - 1.0, shape[1] - 1.0
    return np.array([(0.0, 0.0), (right, 0.0), (right, bottom), (0.0, bottom)])


def upright(image: np.ndarray, quad: Quad, *, portrait: bool = False) -> np.ndarray:
    """The content of a quad as an upright picture at its own scale.

    Args:
        image: (H, W) any depth.
        quad: (4, 2) ordered corners in pixels of the image.
        portrait: turn results that are wider than high by 270 degrees, as published.

    Returns:
        (h, w) of the same type, as large as the quad.
    """
    width, height = (max(1, round(side) + 1) for side in side_lengths(quad))
    if np.abs(quad - whole_frame(image.shape)).max() >= 0.5:
        target = whole_frame((height, width))
        matrix = cv2.getPerspectiveTransform(quad.astype(np.float32), target.astype(np.float32))
        image = cv2.warpPerspective(
            image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
    if portrait and image.shape[1] > image.shape[0]:
        image = np.rot90(image, 3)
    return np.ascontiguousarray(image)


def shrink(image: np.ndarray, longest: int) -> np.ndarray:
    """Resize so that the longer side is `longest` pixels at most; smaller pictures stay.

    Args:
        image: (H, W) uint8, uint16 or float32.
        longest: in pixels.
    """
    ratio = longest / max(image.shape)
    if ratio >= 1.0:
        return image
    shape = max(1, round(image.shape[1] * ratio)), max(1, round(image.shape[0] * ratio))
    return cv2.resize(image, shape, interpolation=cv2.INTER_AREA)


def levels(image: np.ndarray) -> npt.NDArray[np.float32]:
    """Grey levels as float32 from 0 to 255, whatever the depth."""
    if image.dtype == np.uint16:
        return image.astype(np.float32) * np.float32(255 / 65535)
    return image.astype(np.float32)


def working_picture(grey: np.ndarray, longest: int) -> npt.NDArray[np.float32]:
    """A small float picture to decide on; huge films pass through a middle size first.

    Args:
        grey: (H, W) uint8 or uint16.
        longest: side in pixels, at most.

    Returns:
        (h, w) float32, 0 to 255.
    """
    return shrink(levels(shrink(grey, 4 * longest)), longest)
