"""Sides of a film that cannot be seen, where page and film are both cut off at one level.

On such a page the film's edge shows only where something on the film reaches it. Three facts are
left. What the film's edge cuts ends abruptly and straight: that gives the turn and some sides. A
collimator's edge is straight but soft, and the film goes on beyond it. And films fill their
picture but for a small margin. All content stays inside whatever is concluded.
"""

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.edges import SHARP, Floats, Map, edge_along, sampled
from selftaught.data.prepare.geometry import Quad, ordered, row_ends

# Levels that one piece of content steps up by within two pixels where it is cut.
STEP = 12.0
ALIGNED = 0.96  # cosine between an edge's normal and its side's
LEAST_CUT = 0.025  # of the picture's longer side that must be cut
PIECE = 0.02  # of the picture: smaller pieces are letters, whose edges are not the film's
# Pixels from 10 to 90 % of an edge that the film cuts.
CUT_WIDTH = 1.65
LEAST_SEEN, LEAST_FIELD = 0.05, 0.3  # shares of a side that show a cut, and a collimator's edge
COLLIMATED = 0.04  # of the field, by which the film exceeds a collimated side
MARGIN = 0.05  # of the picture, between its border and a side of which nothing is known
TURNS = np.radians(np.arange(-45.0, 45.0, 0.25))

OUTWARDS = np.array([-1.0, -1.0, 1.0, 1.0])  # of left, top, right, bottom


def completed(
    apart: Map, content: npt.NDArray[np.bool_], noise: float, quad: Quad | None
) -> Quad | None:
    """A film's rectangle from the sides that show, and from what is likely of the others.

    Args:
        apart: (H, W) absolute difference from the page's level.
        content: (H, W) where something is known to lie on the page.
        noise: of the page, in the units of `apart`.
        quad: (4, 2) the best rectangle so far, or None.

    Returns:
        (4, 2) ordered corners; `quad` itself where there is nothing to add.
    """
    large, every = _pieces(content, apart > noise)
    if len(large) < 3:
        return quad
    turn = _turn_of_cuts(apart, large, noise)
    if quad is not None:
        way = quad[1] - quad[0]
        given = float(np.arctan2(way[1], way[0]))
        if turn is None or abs(given - turn) < np.radians(1):
            turn = given
    if turn is None:
        return None
    inner, outer = _extent(large, turn), _extent(every, turn)
    edges = [edge_along(apart, *line) for line in _lines(turn, inner)]
    beyond = OUTWARDS * (outer - inner) > 3.0
    sharpest = min(e.width if e.share >= LEAST_FIELD else np.inf for e in edges)
    limit = max(CUT_WIDTH, min(1.35 * sharpest, 1.35 * CUT_WIDTH) if sharpest <= CUT_WIDTH else 0)
    cut = np.array([e.share >= LEAST_SEEN and e.width <= limit for e in edges]) & ~beyond
    if cut.all():
        return quad if quad is not None else corners(turn, inner)
    if cut.any():
        return corners(turn, _likely(turn, outer, cut, apart.shape))
    field = np.array([e.share >= LEAST_FIELD and e.width <= SHARP for e in edges]) & ~beyond
    if field.sum() < 2:
        return quad
    size = np.tile(outer[2:] - outer[:2], 2)
    widened = outer + OUTWARDS * COLLIMATED * size * field
    return corners(turn, _likely(turn, widened, field, apart.shape))


def corners(turn: float, sides: Floats) -> Quad:
    """(4, 2) corners of the rectangle between left, top, right, bottom along turned axes."""
    along, down = _axes(turn)
    left, top, right, bottom = sides
    places = ((left, top), (right, top), (right, bottom), (left, bottom))
    return ordered(np.array([x * along + y * down for x, y in places]))


def _axes(turn: float | Floats) -> tuple[Floats, Floats]:
    """Directions (2,), or (2, T) of T turns, to the right and down once turned."""
    return np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])


def _pieces(content: npt.NDArray[np.bool_], above: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Outlines (N, 2) of the large pieces of content, and of all."""
    _, labels, facts, _ = cv2.connectedComponentsWithStats(content.astype(np.uint8), connectivity=8)
    areas = facts[:, cv2.CC_STAT_AREA]
    large = areas >= PIECE * content.size
    large[0] = False
    return _hull(above & large[labels]), _hull(above & content)


def _hull(mask: npt.NDArray[np.bool_]) -> Floats:
    """(N, 2) corners of the convex hull of the set pixels."""
    points = row_ends(mask).astype(np.int32)
    return np.asarray(cv2.convexHull(points)[:, 0], np.float64) if len(points) else np.zeros((0, 2))


def _extent(hull: Floats, turn: float) -> Floats:
    """Left, top, right, bottom of a hull along turned axes."""
    places = np.stack([hull @ axis for axis in _axes(turn)], axis=1)
    return np.concatenate([places.min(axis=0) - 0.5, places.max(axis=0) + 0.5])


def _turn_of_cuts(apart: Map, hull: Floats, noise: float) -> float | None:
    """The turn, in radians, at which most abrupt edges lie on the sides of the content."""
    places, normals = _abrupt(apart, noise)
    totals = []
    for turns in np.split(TURNS, 9):  # Some at a time: there may be many places.
        counts = np.zeros((4, len(turns)))
        for number, axes in enumerate(_axes(turns)):
            extent, place, facing = (of @ axes for of in (hull, places, normals))
            low, high = extent.min(axis=0) - 0.5, extent.max(axis=0) + 0.5
            counts[number] = ((facing > ALIGNED) & (place < low + 2.5)).sum(axis=0)
            counts[number + 2] = ((facing < -ALIGNED) & (place > high - 2.5)).sum(axis=0)
        totals.append(np.where(counts >= LEAST_CUT * max(apart.shape), counts, 0).sum(axis=0))
    total = np.concatenate(totals)
    return float(TURNS[total.argmax()]) if total.any() else None


def _abrupt(apart: Map, noise: float) -> tuple[Floats, Floats]:
    """Places (N, 2) where page changes to content at once, and normals (N, 2) into the content."""
    smooth = cv2.GaussianBlur(apart, (0, 0), 0.7)
    slope = [cv2.Sobel(smooth, cv2.CV_32F, *way, ksize=3, scale=1 / 8) for way in ((1, 0), (0, 1))]
    steepness = np.asarray(cv2.magnitude(*slope), np.float32)
    rows, columns = np.nonzero(steepness > STEP / 2.5)
    steep = steepness[rows, columns]
    normals = np.stack([part[rows, columns] for part in slope], 1) / steep[:, None]
    places = np.stack([columns, rows], axis=1).astype(np.float64)

    def at(picture: Map, step: float) -> Map:
        return sampled(picture, np.asarray(places + step * normals, np.float64))

    for step in (-3.0, -2.0):  # Most places fail here and need no further look.
        chosen = at(apart, step) <= noise + 1
        places, normals, steep = places[chosen], normals[chosen], steep[chosen]
    crest = (steep >= at(steepness, 1.0)) & (steep >= at(steepness, -1.0))
    inside = at(apart, 2.0)
    chosen = crest & (inside > STEP) & (inside > 0.75 * at(apart, 5.0))
    return places[chosen], normals[chosen].astype(np.float64)


def _lines(turn: float, sides: Floats) -> list[tuple[Floats, Floats, Floats]]:
    """Start, end and normal inwards of left, top, right, bottom."""
    along, down = _axes(turn)
    left, top, right, bottom = sides

    def at(x: float, y: float) -> Floats:
        return x * along + y * down

    return [
        (at(left, top), at(left, bottom), along),
        (at(left, top), at(right, top), down),
        (at(right, top), at(right, bottom), -along),
        (at(left, bottom), at(right, bottom), -down),
    ]


def _likely(
    turn: float, sides: Floats, known: npt.NDArray[np.bool_], shape: tuple[int, ...]
) -> Floats:
    """Move unknown sides outwards until the picture's margins are as even as they can be.

    The margins between the rectangle's corners and the picture's four borders should be `MARGIN`
    each; least squares over how far each unknown side moves, never inwards.
    """
    from scipy.optimize import nnls

    unknown = np.flatnonzero(~known)
    if not unknown.size:
        return sides
    size = np.array([shape[1], shape[0]] * 2, np.float64)

    def margins(moved: Floats) -> Floats:
        quad = corners(turn, moved)
        low, high = quad.min(axis=0), quad.max(axis=0)
        return np.concatenate([low, size[:2] - 1 - high]) / size

    now = margins(sides)
    ways = [margins(sides + np.eye(4)[side] * OUTWARDS) - now for side in unknown]
    steps, _ = nnls(-np.stack(ways, axis=1), now - MARGIN)
    moved = sides.copy()
    moved[unknown] += OUTWARDS[unknown] * steps
    return moved
