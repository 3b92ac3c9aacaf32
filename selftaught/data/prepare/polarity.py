"""Whether a film is a negative: bone dark on a bright background."""

import cv2
import numpy as np

from selftaught.data.prepare.geometry import levels, working_picture

WORKING_SIZE = 256
BRIGHT_MEAN = 125.0
RIM = 0.08  # of a side, which frames and collimation may take
SMOOTH = 0.75  # negatives of limbs have 0.7 at most; two bright knees with a dark gap 0.8 and more


def is_inverted_published(grey: np.ndarray) -> bool:
    """The published rule: a mean above 125 of 255. Films that the body fills are caught too.

    Args:
        grey: (H, W) uint8 or uint16.
    """
    return bool(levels(grey).mean() > BRIGHT_MEAN)


def is_inverted(grey: np.ndarray) -> bool:
    """Whether the background, not the body, is the bright part of a cropped film.

    Asks for a bright mean, for corners (inside a rim) that are bright and hardly darker than the
    middle, for more white than black, and for white that is smooth, as bone is not.

    Args:
        grey: (H, W) uint8 or uint16.
    """
    picture = working_picture(grey, WORKING_SIZE)
    if picture.mean() <= BRIGHT_MEAN:
        return False
    low, high = np.percentile(picture, (1, 99))
    shown = np.clip((picture - low) / max(high - low, 1.0), 0, 1).astype(np.float32)
    rows, columns = (_ends(side) for side in shown.shape)
    corners = np.sort([np.median(shown[r, c]) for r in rows for c in columns])
    middle = np.median(shown[_middle(shown.shape[0]), _middle(shown.shape[1])])
    if corners[2] < max(0.65, float(middle) - 0.06):
        return False
    rim = [int(RIM * side) for side in shown.shape]
    core = shown[rim[0] : shown.shape[0] - rim[0], rim[1] : shown.shape[1] - rim[1]]
    if (core > 0.9).mean() <= (core < 0.1).mean():
        return False
    steepness = cv2.magnitude(cv2.Sobel(core, cv2.CV_32F, 1, 0), cv2.Sobel(core, cv2.CV_32F, 0, 1))
    white = steepness[core > 0.8]
    return bool(white.size and white.mean() < SMOOTH * steepness.mean())


def invert(grey: np.ndarray) -> np.ndarray:
    """The negative of a picture, over the full range of its type."""
    return np.iinfo(grey.dtype).max - grey


def _ends(side: int) -> tuple[slice, slice]:
    """From 8 to 20 per cent at either end."""
    near, far = int(RIM * side), int(0.2 * side) + 1
    return slice(near, far), slice(side - far, side - near)


def _middle(side: int) -> slice:
    return slice(int(0.3 * side), int(0.7 * side) + 1)
