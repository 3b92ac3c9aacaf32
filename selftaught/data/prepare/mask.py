"""Where the body is on an upright film of right polarity: a threshold, chosen and checked."""

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.geometry import working_picture

WORKING_SIZE = 384
INSET = 0.012  # share of the longer side that a frame's line and its blur may take
WHITE_STEP = 20.0  # levels by which page and unexposed film end, within a few pixels
FRAME = 0.016  # share of the longer side up to which what is white is a frame's line
DEEPEST_RIM = 0.16
BRIGHT = 180.0  # a level that page and unexposed film have, and background does not
TAIL = 0.07  # share of a row at either end of its levels that need not be flat
BAR = 0.9  # share of a row that a bar covers
BAR_TURN = 0.05  # radians that it may be turned
LEAST_BESIDE = 0.04  # share of a row that a bar covers and the body does not, on either side
STRAIGHT = 2.0  # pixels that nine tenths of a bar's edge may lie off a line; twice of a thin bar
THIN = 0.03  # share of the picture's height
MARGINS = (6, 2)  # pixels beyond a bright and any other rim
REGAINED = 2  # pixels of that margin that the body takes back
DEPTH = 6.0  # pixels inside the body where it is looked how fast its level rises
MOST_SKIN = 28.0  # pixels of unseen skin
TRUSTED, VAGUE = 0.5, 0.06
IMPLAUSIBLE = 1.2  # what is left out varies more than it differs from the body
SKIN = 2.75, 6.5  # pixels of unseen skin = first / (share of the body's level at DEPTH) - second
FAINTEST = 0.7  # level of tissue that only just shows on black
SPECKLED = 0.05  # share of a background that may differ from black where it is cut off
FAINT_STEP = 0.5  # levels per pixel; a border that rises less is vague
LEAST_AREA, MOST_AREA = 0.04, 0.97
LEAST_OUTSIDE = 0.005  # share inside the rims that is needed to judge a background
OFFSETS = (6.0, 15.0, 25.0)  # grey levels above the darkest twentieth

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


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
    longer = max(picture.shape)
    rims = [_rim(part) for part in _sides(picture)]
    white = [_last(rim > BRIGHT) for rim in rims]
    frames = [depth <= FRAME * longer for depth in white]
    cut = [
        max(round(INSET * longer), depth + 1) if frame else depth + MARGINS[0]
        for depth, frame in zip(white, frames, strict=True)
    ]
    height, width = picture.shape
    inner = picture[cut[0] : height - cut[1], cut[2] : width - cut[3]]
    if min(inner.shape) < 16:
        return None
    body = _body(inner, [rim[depth:] for rim, depth in zip(rims, cut, strict=True)])
    if body is None:
        return None
    whole = np.pad(body * np.float32(1), [(cut[0], cut[1]), (cut[2], cut[3])], mode="edge")
    for part, depth, frame in zip(_sides(whole), cut, frames, strict=True):
        # Under a frame's line the body goes on as beside it.
        part[: 0 if frame else depth - REGAINED] = 0
    size = (grey.shape[1], grey.shape[0])
    grown = cv2.resize(whole, size, interpolation=cv2.INTER_LINEAR) >= 0.5
    return grown if LEAST_AREA <= grown.mean() <= MOST_AREA else None


def _body(picture: Map, rims: list[Map]) -> Mask | None:
    """The body where nothing white is at the rims."""
    smooth = np.maximum(cv2.GaussianBlur(picture, (0, 0), 1.5), 0)
    top, bottom, left, right = (_depth(rim) for rim in rims)
    height, width = picture.shape
    core = smooth[top : height - bottom, left : width - right]
    level = _level(core)
    if level is None:
        return None
    body, none = _under_rims(picture, smooth, level, rims)
    skin = 1.0
    if _cut_off(picture, body, none):
        body, none = _under_rims(picture, smooth, min(level, FAINTEST), rims)
        skin = _unseen_skin(smooth, body)
    away = cv2.distanceTransform((~body).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(body | ((away <= skin) & ~none))


def _sides(picture: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
    """Views of a picture that begin at its top, bottom, left and right."""
    return picture, picture[::-1], picture.T, picture.T[::-1]


def _rim(picture: Map) -> Map:
    """Levels of the first rows that are flat, as page and collimation are; 0 for those between."""
    deepest = max(3, int(DEEPEST_RIM * picture.shape[0]))
    low, middle, high = np.quantile(picture[:deepest], (TAIL, 0.5, 1 - TAIL), axis=1)
    flat = high - low < np.where(middle > BRIGHT, 30, 10)
    # A letter or the film's edge may interrupt what is flat for the most part.
    mostly = np.cumsum(flat) >= 0.6 * np.arange(1, flat.size + 1)
    size = _last(flat & mostly)
    beyond = np.median(picture[min(size + MARGINS[0], len(picture) - 1)])
    if size and middle[size - 1] > BRIGHT and middle[size - 1] - beyond < WHITE_STEP:
        size = 0  # What fades is tissue.
    return np.where(flat, middle, 0)[:size].astype(np.float32)


def _last(rows: Mask) -> int:
    """How many rows there are up to the last one that is set."""
    numbers = np.flatnonzero(rows)
    return int(numbers[-1]) + 1 if numbers.size else 0


def _depth(rim: Map) -> int:
    """Pixels of a rim with its blurred edge."""
    return rim.size + MARGINS[1] if rim.size else 0


def _under_rims(picture: Map, smooth: Map, level: float, rims: list[Map]) -> tuple[Mask, Mask]:
    """The body with what is at the rims, and where it has no unseen skin.

    Flat rims that are brighter than `level` are no body; under dark ones, into which a finger
    may point, the level decides as elsewhere, but not where only blur reaches. Where nothing
    reaches into one, it is collimation.
    """
    body, none = smooth > level, np.zeros(smooth.shape, bool)
    for rim, part, sharp in zip(rims, _sides(body), _sides(picture), strict=True):
        shown = (sharp[: rim.size] > level).mean(axis=1)
        part[: rim.size][shown < 0.5 * part[: rim.size].mean(axis=1)] = False
        above = _last(rim > level)
        part[: above + MARGINS[0] if above else 0] = False
    body = tidy(body)
    for part in _sides(body):
        without_bar(part)
    for rim, part, shown in zip(rims, _sides(body), _sides(none), strict=True):
        if not part[: max(rim.size - MARGINS[0], 0)].any():
            shown[: max(_depth(rim) - REGAINED, 0)] = True
    return body, none


def without_bar(body: Mask) -> None:
    """Take off a bar along the upper side: the edge of a collimator or table beside the body.

    A body does not widen to the picture's width at once, on both sides and along a straight line.

    Args:
        body: (H, W) bool, changed in place; under the bar the body goes on as below it.
    """
    deepest = int(DEEPEST_RIM * body.shape[0])
    full = body[:deepest].mean(axis=1) >= BAR
    depth = deepest if full.all() else int(full.argmin())
    below = depth + round(BAR_TURN * body.shape[1])
    if not 0 < depth < deepest or not body[below : below + 1].any():
        return
    beside = np.flatnonzero(body[depth // 2] & ~body[below])
    left = int((beside < np.flatnonzero(body[below]).mean()).sum())
    if min(left, beside.size - left) < LEAST_BESIDE * body.shape[1]:
        return
    ends = body[depth // 2 : below + 1, beside].argmin(axis=0)
    line = np.polyval(np.polyfit(beside, ends, 1), beside)
    thin = depth <= THIN * body.shape[0]
    if np.quantile(np.abs(ends - line), 0.9) <= STRAIGHT * (2 if thin else 1):
        body[:below] = body[below]


def _level(core: Map) -> float | None:
    """The level above which the body lies, inside the rims; None where no level is plausible."""
    from skimage.filters import threshold_multiotsu, threshold_otsu, threshold_triangle

    values = core.reshape(-1)
    if values.size < 256 or float(np.ptp(values)) < 2.0:
        return None
    logarithm = np.log(core + 4)
    slope = _slope(core)
    dark = float(np.quantile(values, 0.05))

    def three() -> float:
        try:
            return float(np.exp(threshold_multiotsu(logarithm, 3)[0])) - 4
        except ValueError:  # fewer than three grey levels
            return np.inf

    makers: list[Callable[[], float]] = [
        lambda: float(threshold_triangle(values, 256)),
        three,
        lambda: float(np.exp(threshold_otsu(logarithm))) - 4,
        *(partial(float, dark + offset) for offset in OFFSETS),
    ]
    best, least = None, np.inf
    for number, make in enumerate(makers):
        level = make()
        mask = tidy(core > level)
        unrest, vague = _unrest(core, mask), _vague(slope, mask)
        if unrest + 2 * vague < least:
            best, least = level, unrest + 2 * vague
        usual = mask.mean() <= MOST_AREA
        if number < 2 and usual and unrest <= TRUSTED and vague <= VAGUE:
            return level
    return best if least <= IMPLAUSIBLE else None


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


def _cut_off(picture: Map, body: Mask, none: Mask) -> bool:
    """Whether the background is black and without a trace of noise: then skin may be, too."""
    outside = ~(body | none)
    away = cv2.distanceTransform((~body).astype(np.uint8), cv2.DIST_L2, 5)
    far = outside & (away > MOST_SKIN)
    chosen = far if far.sum() >= 200 else outside
    return bool(chosen.any() and (picture[chosen] > 0.5).mean() < SPECKLED)


def _unseen_skin(smooth: Map, body: Mask) -> float:
    """Pixels of skin beyond the last visible one, on a film that is cut off at black.

    There the body's level starts from below black: the slower it rises from the visible border,
    the more of the skin is hidden.
    """
    depth = cv2.distanceTransform(body.astype(np.uint8), cv2.DIST_L2, 5)
    ring = np.abs(depth - DEPTH) <= 0.5
    if ring.sum() < 20:
        return 1.0
    risen = float(np.median(smooth[ring])) / max(float(np.median(smooth[body])), 1.0)
    return float(np.clip(SKIN[0] / max(risen, 0.05) - SKIN[1], 0, MOST_SKIN))


def _unrest(core: Map, mask: Mask) -> float:
    """Spread of what is left out, in units of the step to the body; inf where one is missing."""
    outside, inside = core[~mask], core[mask]
    if outside.size < LEAST_OUTSIDE * core.size or inside.size < 0.05 * core.size:
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
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, _disk(3))
    _, labels, facts, _ = cv2.connectedComponentsWithStats(opened, connectivity=4)
    areas = facts[:, cv2.CC_STAT_AREA].copy()
    areas[0] = 0
    kept = (areas >= 0.15 * areas.max()) & (areas > 0)
    # A hole is what the outside does not reach by rows and columns.
    framed = cv2.copyMakeBorder(kept[labels].astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    cv2.floodFill(framed, None, (0, 0), 2)
    return np.asarray(framed[1:-1, 1:-1] != 2)


def _disk(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
