"""Where the body is on an upright film of right polarity: a threshold, chosen and checked."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.geometry import working_picture

WORKING_SIZE = 384
INSET = 0.012  # share of a side that a frame's line may take
DEEPEST_RIM = 0.16
TAIL = 0.07  # share of a row at either end of its levels that need not be flat
MARGINS = (6, 2)  # pixels beyond a bright and any other rim
REGAINED = 2  # pixels of that margin that the body takes back
DEPTH = 8.0  # pixels inside the body where it is looked how fast its level rises
MOST_SKIN = 28.0  # pixels of unseen skin
TRUSTED, VAGUE = 0.5, 0.06
SKIN = 4.0, 6.0  # pixels of unseen skin = first / (share of the body's level at DEPTH) - second
FAINT_STEP = 0.5  # levels per pixel; a border that rises less is vague
LEAST_AREA, MOST_AREA = 0.04, 0.97
OFFSETS = (6.0, 15.0, 25.0)  # grey levels above the darkest twentieth

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Rim(NamedTuple):
    """What is left out at one side: pixels, and whether the body may go on there."""

    pixels: int
    body: bool


def find_mask(grey: np.ndarray) -> Mask | None:
    """Mark the body on a film.

    Flat rims (collimation, page) are taken off. The triangle threshold decides where what it
    leaves out is uniform, as a background is; where it has locked onto bone, metal or a cast,
    the most uniform of other thresholds does.

    Args:
        grey: (H, W) uint8 or uint16, bone bright.

    Returns:
        (H, W) bool, or None where no mask is plausible; then the whole frame counts.
    """
    picture = working_picture(grey, WORKING_SIZE)
    if min(picture.shape) < 16 or float(np.ptp(picture)) < 4.0:
        return None
    smooth = np.maximum(cv2.GaussianBlur(picture, (0, 0), 1.5), 0)
    rims = [_rim(part) for part in (picture, picture[::-1], picture.T, picture.T[::-1])]
    top, bottom, left, right = (rim.pixels for rim in rims)
    height, width = picture.shape
    core = smooth[top : height - bottom, left : width - right]
    chosen = _choose(core)
    if chosen is None:
        return None
    away = cv2.distanceTransform((~chosen).astype(np.uint8), cv2.DIST_L2, 5)
    wide = _replaced(away <= _unseen_skin(core, chosen), rims)
    size = (grey.shape[1], grey.shape[0])
    grown = cv2.resize(wide * np.float32(1), size, interpolation=cv2.INTER_LINEAR) >= 0.5
    return grown if LEAST_AREA <= grown.mean() <= MOST_AREA else None


def _rim(picture: Map) -> Rim:
    """How many of the first rows are flat: page, collimation, or a frame's line."""
    deepest = max(3, int(DEEPEST_RIM * picture.shape[0]))
    inset = max(2, round(INSET * picture.shape[0]))
    low, middle, high = np.quantile(picture[:deepest], (TAIL, 0.5, 1 - TAIL), axis=1)
    flat = (high - low < np.where(middle > 180, 30, 10))[inset:]
    # A letter or the film's edge may interrupt what is flat for the most part.
    mostly = np.cumsum(flat) >= 0.6 * np.arange(1, flat.size + 1)
    last = np.flatnonzero(flat & mostly)
    if last.size == 0 or last[-1] == 0:
        return Rim(inset, True)
    # A bright rim is blurred and may be a degree askew, which leaves a bright line.
    bright = middle[inset + last[-1]] > 180
    return Rim(inset + int(last[-1]) + (MARGINS[0] if bright else MARGINS[1]), False)


def _choose(core: Map) -> Mask | None:
    """The body inside the rims."""
    from skimage.filters import threshold_multiotsu, threshold_otsu, threshold_triangle

    values = core.reshape(-1)
    if values.size < 256 or float(np.ptp(values)) < 2.0:
        return None
    logarithm = np.log(core + 4)
    slope = _slope(core)
    dark = float(np.quantile(values, 0.05))

    def three() -> Mask:
        try:
            return np.asarray(logarithm > threshold_multiotsu(logarithm, 3)[0])
        except ValueError:  # fewer than three grey levels
            return np.zeros(core.shape, bool)

    makers: list[Callable[[], Mask]] = [
        lambda: core > threshold_triangle(values, 256),
        three,
        lambda: logarithm > threshold_otsu(logarithm),
        *(partial(np.greater, core, dark + offset) for offset in OFFSETS),
    ]
    best, least = None, np.inf
    for number, make in enumerate(makers):
        mask = tidy(make())
        unrest, vague = _unrest(core, mask), _vague(slope, mask)
        if unrest + 2 * vague < least:
            best, least = mask, unrest + 2 * vague
        if number < 2 and unrest <= TRUSTED and vague <= VAGUE:
            return mask
    return best


def _slope(core: Map) -> Map:
    """Grey levels per pixel, over a few pixels."""
    smooth = cv2.GaussianBlur(core, (0, 0), 5.0)
    ways = [cv2.Sobel(smooth, cv2.CV_32F, *way, ksize=3, scale=1 / 8) for way in ((1, 0), (0, 1))]
    return np.asarray(cv2.magnitude(*ways), np.float32)


def _vague(slope: Map, mask: Mask) -> float:
    """Share of a mask's border where nothing changes, as where it runs through background."""
    plain = mask.astype(np.uint8)
    border = (plain - cv2.erode(plain, _disk(1))) > 0
    return float((slope[border] < FAINT_STEP).mean()) if border.any() else 1.0


def _unseen_skin(core: Map, mask: Mask) -> float:
    """Pixels of skin beyond the last visible one.

    One where the background shows. On films cut off at black the body's level starts from below
    black: the slower it rises within the mask, the more of the skin is hidden.
    """
    if _background(core, mask) >= 1:
        return 1.0
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    ring = np.abs(depth - DEPTH) <= 0.5
    if ring.sum() < 20:
        return 1.0
    steepness = float(np.median(core[ring])) / max(float(np.median(core[mask])), 1.0)
    return float(np.clip(SKIN[0] / max(steepness, 0.05) - SKIN[1], 1, MOST_SKIN))


def _unrest(core: Map, mask: Mask) -> float:
    """Spread of what is left out, in units of the step to the body; inf where one is missing."""
    outside, inside = core[~mask], core[mask]
    if outside.size < 0.02 * core.size or inside.size < 0.05 * core.size:
        return np.inf
    low, middle, high = np.quantile(outside, (0.1, 0.5, 0.9))
    return float((high - low + 2) / max(float(np.median(inside)) - middle, 1.0))


def tidy(mask: Mask) -> Mask:
    """Opened, without small pieces, without holes.

    Args:
        mask: (H, W) bool.

    Returns:
        (H, W) bool: all pieces with at least 15 % of the largest one's area.
    """
    from scipy.ndimage import binary_fill_holes

    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disk(3))
    _, labels, facts, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    areas = facts[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = (areas >= 0.15 * areas.max()) & (areas > 0)
    return np.asarray(binary_fill_holes(kept[labels]), bool)


def _replaced(core: Mask, rims: list[Rim]) -> Mask:
    """The mask of the whole film: on under a frame's line, not under flat rims."""
    pads = [(rims[0].pixels, rims[1].pixels), (rims[2].pixels, rims[3].pixels)]
    full = np.pad(core, pads, mode="edge")
    for rim, part in zip(rims, (full, full[::-1], full.T, full.T[::-1]), strict=True):
        if not rim.body:
            part[: max(rim.pixels - REGAINED, 0)] = False
    return full


def _background(core: Map, mask: Mask) -> float:
    """Median grey level outside; 0 where the film is cut off at black."""
    return float(np.median(core[~mask])) if (~mask).any() else 255.0


def _disk(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
