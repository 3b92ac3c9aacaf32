"""Carrier and mask as in the published code (reference A2), for preset comparisons."""

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.carrier import Carrier
from selftaught.data.prepare.geometry import levels, ordered

# Least area in pixels by body part; other parts take the value of the code it was taken from.
LEAST_AREA = {
    "hand": 60_000,
    "elbow": 60_000,
    "forearm": 60_000,
    "humerus": 60_000,
    "shoulder": 70_000,
    "wrist": 30_000,
    "finger": 25_000,
}
OTHER_AREA = 100_000
LEVELS = range(0, 235, 26)
FACTORS = tuple(round(0.1 * step, 1) for step in range(2, 11))
LARGEST_COSINE = 0.45


def find_carrier(grey: np.ndarray, body_part: str) -> Carrier | None:
    """The first rectangle of ten binarisations that is large enough for its body part.

    Args:
        grey: (H, W) uint8 or uint16.
        body_part: as in the manifest, lower case; "" where unknown.
    """
    picture = cv2.GaussianBlur(np.rint(levels(grey)).astype(np.uint8), (5, 5), 0)
    least = LEAST_AREA.get(body_part, OTHER_AREA)
    for level in LEVELS:
        if level == 0:
            binary = cv2.dilate(cv2.Canny(picture, 0, 50, apertureSize=5), np.ones((3, 3)))
        else:
            binary = cv2.threshold(picture, level, 255, cv2.THRESH_BINARY)[1]
        outlines, _ = cv2.findContours(binary, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        for outline in outlines:
            polygon = cv2.approxPolyDP(outline, 0.02 * cv2.arcLength(outline, True), True)
            if len(polygon) < 4 or cv2.contourArea(polygon) < least:
                continue
            if cv2.isContourConvex(polygon) and _cosine(polygon[:, 0]) < LARGEST_COSINE:
                return Carrier(ordered(cv2.boxPoints(cv2.minAreaRect(polygon))), 1.0)
    return None


def _cosine(polygon: np.ndarray) -> float:
    """Largest |cosine| of the first four corners."""
    corners = polygon.astype(np.float64)
    largest = 0.0
    for index in range(4):
        before, after = corners[index - 1] - corners[index], corners[(index + 1) % len(corners)]
        after = after - corners[index]
        length = float(np.linalg.norm(before) * np.linalg.norm(after))
        largest = max(largest, abs(float(before @ after)) / max(length, 1e-9))
    return largest


def find_mask(grey: np.ndarray) -> npt.NDArray[np.bool_] | None:
    """Nine hysteresis thresholds of the equalised film; the mask most like the film wins.

    A later one must be better by a tenth of the spread of the distances seen so far. Holes that
    the largest outline contains are cut out.

    Args:
        grey: (H, W) uint8 or uint16, bone bright.

    Returns:
        (H, W) bool, or None where no threshold gives a usable mask.
    """
    from skimage.filters import apply_hysteresis_threshold, threshold_yen

    film = cv2.equalizeHist(np.rint(levels(grey)).astype(np.uint8))
    if film.min() == film.max():
        return None
    threshold = float(threshold_yen(film))
    disk = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (21, 21))
    best: npt.NDArray[np.bool_] | None = None
    distances: list[float] = []
    for factor in FACTORS:
        marked = apply_hysteresis_threshold(film, factor * threshold, threshold)
        opened = cv2.morphologyEx(marked.astype(np.uint8), cv2.MORPH_OPEN, disk)
        mask = _largest(opened)
        if mask is None or mask.all():
            continue
        distance = 1.0 - float(np.corrcoef(film.reshape(-1), mask.reshape(-1))[0, 1])
        spread = max(distances) - min(distances) if distances else 0.0
        if not distances or distance < min(distances) - 0.1 * spread:
            best = mask
        distances.append(distance)
    return best


def _largest(binary: np.ndarray) -> npt.NDArray[np.bool_] | None:
    """The largest outline filled, without the holes in it."""
    outlines, tree = cv2.findContours(binary, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    outer = [i for i in range(len(outlines)) if tree[0][i][3] < 0]
    if not outer:
        return None
    largest = max(outer, key=lambda i: cv2.contourArea(outlines[i]))
    drawn = np.zeros(binary.shape, np.uint8)
    cv2.drawContours(drawn, outlines, largest, 1, cv2.FILLED)
    holes = [outlines[i] for i in range(len(outlines)) if tree[0][i][3] == largest]
    for hole in holes:
        inner = np.zeros(binary.shape, np.uint8)
        cv2.drawContours(inner, [hole], -1, 1, cv2.FILLED)
        drawn[(inner > 0) & (binary == 0)] = 0
    return drawn > 0
