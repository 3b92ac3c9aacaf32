"""Sides of a film that cannot be seen, where page and film are both cut off at one level.

On such a page the film's edge shows only where something on the film reaches it. Three facts are
left. What the film's edge cuts ends abruptly and straight: that gives the turn and some sides. A
collimator's edge is straight but soft, and the film goes on beyond it. And films fill their
picture but for a small margin. All content stays inside whatever is concluded.
"""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.geometry import Quad, ordered

# Levels that one piece of content steps up by within two pixels where it is cut.
STEP = 12.0
FAINTEST = 0.4
ALIGNED = 0.96  # cosine between an edge's normal and its side's
LEAST_CUT = 0.025  # of the picture's longer side that must be cut
PIECE = 0.02  # of the picture: smaller pieces are letters, whose edges are not the film's
# Pixels from 10 to 90 % of an edge: that the film cuts, that a collimator casts; skin is softer.
CUT_WIDTH, FIELD_WIDTH = 1.65, 3.4
LEAST_SEEN, LEAST_FIELD = 0.05, 0.3  # shares of a side that show a cut, and a collimator's edge
COLLIMATED = 0.04  # of the field, by which the film exceeds a collimated side
MARGIN = 0.05  # of the picture, between its border and a side of which nothing is known
TURNS = np.radians(np.arange(-45.0, 45.0, 0.25))

Map = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]
OUTWARDS = np.array([-1.0, -1.0, 1.0, 1.0])  # of left, top, right, bottom


class _Edge(NamedTuple):
    """What is seen along one side: the share of it that is straight, and its width in pixels."""

    share: float
    width: float


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
    edges = [_edge(apart, *line, noise) for line in _lines(turn, inner)]
    beyond = OUTWARDS * (outer - inner) > 3.0
    sharpest = min(e.width if e.share >= LEAST_FIELD else np.inf for e in edges)
    limit = max(CUT_WIDTH, min(1.35 * sharpest, 1.35 * CUT_WIDTH) if sharpest <= CUT_WIDTH else 0)
    cut = np.array([e.share >= LEAST_SEEN and e.width <= limit for e in edges]) & ~beyond
    if cut.all():
        return quad if quad is not None else corners(turn, inner)
    if cut.any():
        return corners(turn, _likely(turn, outer, cut, apart.shape))
    field = np.array([e.share >= LEAST_FIELD and e.width <= FIELD_WIDTH for e in edges]) & ~beyond
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


def _axes(turn: float) -> tuple[Floats, Floats]:
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
    points = cv2.findNonZero(mask.astype(np.uint8))
    if points is None:
        return np.zeros((0, 2))
    return np.asarray(cv2.convexHull(points)[:, 0], np.float64)


def _extent(hull: Floats, turn: float) -> Floats:
    """Left, top, right, bottom of a hull along turned axes."""
    places = np.stack([hull @ axis for axis in _axes(turn)], axis=1)
    return np.concatenate([places.min(axis=0) - 0.5, places.max(axis=0) + 0.5])


def _turn_of_cuts(apart: Map, hull: Floats, noise: float) -> float | None:
    """The turn, in radians, at which most abrupt edges lie on the sides of the content."""
    places, normals = _abrupt(apart, noise)
    least = LEAST_CUT * max(apart.shape)
    best, most = None, 0
    for turn in TURNS:
        extent = _extent(hull, turn)
        counts = np.zeros(4)
        for number, axis in enumerate(_axes(turn)):
            place, facing = places @ axis, normals @ axis
            counts[number] = ((facing > ALIGNED) & (place < extent[number] + 2.5)).sum()
            counts[number + 2] = ((facing < -ALIGNED) & (place > extent[number + 2] - 2.5)).sum()
        total = int(counts[counts >= least].sum())
        if total > most:
            best, most = float(turn), total
    return best


def _abrupt(apart: Map, noise: float) -> tuple[Floats, Floats]:
    """Places (N, 2) where page changes to content at once, and normals (N, 2) into the content."""
    smooth = cv2.GaussianBlur(apart, (0, 0), 0.7)
    slope = [cv2.Sobel(smooth, cv2.CV_32F, *way, ksize=3, scale=1 / 8) for way in ((1, 0), (0, 1))]
    steepness = np.asarray(cv2.magnitude(*slope), np.float32)
    rows, columns = np.nonzero(steepness > STEP / 2.5)
    normals = np.stack([part[rows, columns] for part in slope], 1) / steepness[rows, columns, None]
    places = np.stack([columns, rows], axis=1).astype(np.float64)

    def at(picture: Map, step: float) -> Map:
        return _sampled(picture, np.asarray(places + step * normals, np.float64))

    inside = at(apart, 2.0)
    crest = (steepness[rows, columns] >= at(steepness, 1.0)) & (
        steepness[rows, columns] >= at(steepness, -1.0)
    )
    page = (at(apart, -3.0) <= noise + 1) & (at(apart, -2.0) <= noise + 1)
    found = crest & page & (inside > STEP) & (inside > 0.75 * at(apart, 5.0))
    return places[found], normals[found].astype(np.float64)


def _sampled(picture: Map, places: Floats) -> Map:
    """Values (...,) at places (..., 2), x then y, between pixels; the border goes on."""
    flat = places.reshape(-1, 2).astype(np.float32)
    wide = np.zeros((-(-len(flat) // 4096) * 4096, 2), np.float32)
    wide[: len(flat)] = flat
    grid = wide.reshape(-1, 4096, 2)
    if not len(flat):
        return np.zeros(places.shape[:-1], np.float32)
    found = cv2.remap(
        picture, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(found.reshape(-1)[: len(flat)].reshape(places.shape[:-1]), np.float32)


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


def _edge(apart: Map, start: Floats, end: Floats, inwards: Floats, noise: float) -> _Edge:
    """How much of a side has content right inside, on one straight line, and how soft that is."""
    length = float(np.linalg.norm(end - start))
    steps = np.arange(-8.0, 8.01, 0.5)
    share = np.linspace(0.03, 0.97, int(np.clip(length, 16, 400)))
    base = start + share[:, None] * (end - start)
    strips = _sampled(apart, base + steps[:, None, None] * inwards)
    blurred = cv2.blur(strips, (9, 1), borderType=cv2.BORDER_REPLICATE)
    strips = np.asarray(blurred, np.float32)
    outside = strips[steps <= -6].mean(axis=0)
    inside = strips[(steps >= 1) & (steps <= 6)].max(axis=0)
    shows = (inside > FAINTEST) & (outside <= 0.12 * inside)
    if shows.sum() < 10:
        return _Edge(0.0, np.inf)
    onset = steps[np.argmax(strips > (inside + outside) / 2, axis=0)]
    line = _straight(share[shows] * length, onset[shows])
    if line is None:
        return _Edge(0.0, np.inf)
    slope, offset, kept = line
    chosen = np.flatnonzero(shows)[kept]
    shift = slope * share[chosen] * length + offset
    fine = np.arange(-4.0, 4.01, 0.25)
    middle = base[chosen] + shift[:, None] * inwards
    profile = _sampled(apart, middle + fine[:, None, None] * inwards).mean(axis=1)
    low, high = profile[:4].mean(), profile.max()
    rise = np.maximum.accumulate((profile - low) / max(high - low, 1e-6))
    width = float(np.interp(0.9, rise, fine) - np.interp(0.1, rise, fine))
    return _Edge(len(chosen) / len(share), width)


def _straight(place: Floats, onset: Floats) -> tuple[float, float, npt.NDArray[np.bool_]] | None:
    """Slope, offset and members of the line that most onsets lie on."""
    kept = np.ones(len(place), bool)
    slope = offset = 0.0
    for _ in range(4):
        slope, offset = np.polyfit(place[kept], onset[kept], 1)
        away = np.abs(slope * place + offset - onset)
        kept = away < max(1.0, 1.5 * float(np.median(away)))
        if kept.sum() < 8:
            return None
    return float(slope), float(offset), kept


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
