"""Where the film lies on its page, by scored candidates; None where that is not sure.

A page is of one grey level, and nothing but the film lies on it. So for each level that the
picture's border shows, what differs from it is content; rectangles around content are candidates.
A good candidate loses no content, has content right inside its sides and page right outside.
"""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.edges import refined
from selftaught.data.prepare.geometry import Quad, ordered, row_ends, working_picture
from selftaught.data.prepare.sides import completed

WORKING_SIZE, EDGE_SIZE = 384, 1024
FLAT, BLACK, WHITE = 0.3, 1.0, 254.0  # noise and levels of a page that is cut off
TOLERANCES = (0.25, 1.5, 4.0, 10.0, 25.0)
DENSITIES = (0.5, 0.1)
LEAST_AREA, LEAST_SCORE, LEAST_CONTENT = 0.1, 0.4, 0.97
# A letter or other piece left out of a rectangle speaks against it.
PIECE_LOST = 0.6

Map = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class Carrier(NamedTuple):
    """A film found on a page.

    Attributes:
        quad: (4, 2) float64, ordered corners in pixels of the picture.
        score: 0 to 1, how sure.
    """

    quad: Quad
    score: float


class _Page(NamedTuple):
    """One guess of the page: its level, its noise, and what is certainly not page."""

    level: float
    noise: float
    content: Mask
    pieces: npt.NDArray[np.float64]  # (K, 2) centres of the pieces of content


def find_carrier(grey: np.ndarray) -> Carrier | None:
    """Find the film's rectangle.

    Args:
        grey: (H, W) uint8 or uint16.

    Returns:
        The best candidate, or None where none is good enough or there is no page.
    """
    picture = working_picture(grey, WORKING_SIZE)
    best = Carrier(np.zeros((4, 2)), 0.0)
    pages = [_page(picture, level) for level in _page_levels(picture)]
    page = pages[0]
    for each in pages:
        for candidate in _candidates(picture, each):
            score = _score(picture, each, candidate)
            if score > best.score:
                best, page = Carrier(candidate, score), each
    fine = working_picture(grey, EDGE_SIZE)
    quad = _on_edges(picture, fine, page, best.quad) if best.score >= LEAST_SCORE else None
    cut_off = page.noise <= FLAT and not BLACK < page.level < WHITE
    if cut_off and page.content.any():
        quad = _with_unseen_sides(fine, page, quad)
    if quad is None:
        return None
    return Carrier(_scaled(quad, fine.shape, grey.shape), max(best.score, LEAST_SCORE))


def _on_edges(picture: Map, fine: Map, page: "_Page", quad: Quad) -> Quad | None:
    """Corners in `fine` with the sides on edges that are seen; None where none is a film's."""
    for small, large in ((picture, picture), (picture, fine)):
        corners = refined(
            np.maximum(np.abs(large - page.level) - page.noise, 0),
            _scaled(quad, small.shape, large.shape),
        )
        if corners is None:
            return None
        quad = corners
    return quad


def _scaled(quad: Quad, shape: tuple[int, ...], to: tuple[int, ...]) -> Quad:
    """Corners in pixels of one size of the picture in pixels of another."""
    return (quad + 0.5) * np.array([to[1] / shape[1], to[0] / shape[0]]) - 0.5


def _with_unseen_sides(picture: Map, page: "_Page", quad: Quad | None) -> Quad | None:
    """Complete a film whose page is flat, as film and page cut off at one level are."""
    content = cv2.resize(
        page.content.astype(np.uint8), picture.shape[::-1], interpolation=cv2.INTER_NEAREST
    )
    return completed(np.abs(picture - page.level), content > 0, page.noise, quad)


def _page_levels(picture: Map) -> list[float]:
    """Levels that the page may have: the border's commonest and those of the corners."""
    border = np.concatenate([picture[0], picture[-1], picture[:, 0], picture[:, -1]])
    counts, edges = np.histogram(border, 64, (0.0, 255.01))
    top = int(counts.argmax())
    common = border[(border >= edges[top]) & (border <= edges[top + 1])]
    corners = (picture[:6, :6], picture[:6, -6:], picture[-6:, :6], picture[-6:, -6:])
    levels: list[float] = []
    for level in (float(np.median(part)) for part in (common, *corners)):
        if all(abs(level - other) > 3.0 for other in levels):
            levels.append(level)
    return levels


def _page(picture: Map, level: float) -> _Page:
    """Noise of the page from the border, then everything that rises above it."""
    border = np.concatenate(
        [part.reshape(-1) for part in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:])]
    )
    apart = np.abs(border - level)
    near = apart[apart < 12.0]
    noise = max(0.25, 1.5 * float(np.percentile(near, 90))) if near.size > 20 else 0.25
    content = ~_outside(_density(np.abs(picture - level) > noise) > DENSITIES[-1])
    content = _without_specks(content, 80)
    components = cv2.connectedComponentsWithStats(content.astype(np.uint8), connectivity=8)
    return _Page(level, noise, content, np.asarray(components[3][1:], np.float64))


def _density(mask: Mask) -> Map:
    """Share of set pixels in the 7 x 7 around each."""
    size = (7, 7)
    share = cv2.boxFilter(mask.astype(np.float32), -1, size, borderType=cv2.BORDER_REPLICATE)
    return np.asarray(share, np.float32)


def _outside(content: Mask) -> Mask:
    """What is not content and hangs together with the picture's border."""
    count, labels = cv2.connectedComponents((~content).view(np.uint8), connectivity=4)
    touching = np.zeros(count, bool)
    for rim in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
        touching[rim] = True
    touching[0] = False
    return np.take(touching, np.asarray(labels, np.int32))


def _without_specks(mask: Mask, pixels: int) -> Mask:
    _, labels, facts, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    kept = facts[:, cv2.CC_STAT_AREA] >= pixels
    kept[0] = False
    return np.take(kept, np.asarray(labels, np.int32))


def _candidates(picture: Map, page: _Page) -> list[Quad]:
    """Rectangles around content at several tolerances, near-equal ones once."""
    apart = np.abs(picture - page.level)
    quads: list[Quad] = []
    for tolerance in TOLERANCES:
        raw = apart > tolerance
        if not 0.05 <= np.count_nonzero(raw) / raw.size <= 0.995:
            continue
        density = _density(raw)
        for least in DENSITIES:
            outside = _outside(density > least)
            if np.count_nonzero(outside) / outside.size < 0.005:
                continue
            turn = _turn_of_largest(~outside)
            if turn is None:
                continue
            # The density is wider than what is dense: the extent is that of the content itself.
            everything = _extent(raw & _without_specks(~outside, 20), turn[2])
            for quad in (_dense_extent(raw, turn), everything):
                if all(np.abs(quad - other).max() > 1.0 for other in quads):
                    quads.append(quad)
    return quads


Turned = tuple[tuple[float, float], tuple[float, float], float]


def _turn_of_largest(content: Mask) -> Turned | None:
    """Minimum-area rectangle of the largest piece of content: centre, size, degrees."""
    solid = cv2.morphologyEx(content.view(np.uint8), cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
    count, labels, facts, _ = cv2.connectedComponentsWithStats(solid, connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(facts[1:, cv2.CC_STAT_AREA].argmax())
    if facts[largest, cv2.CC_STAT_AREA] < LEAST_AREA * content.size:
        return None
    piece = (labels == largest).view(np.uint8)
    outlines, _ = cv2.findContours(piece, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    center, size, angle = cv2.minAreaRect(max(outlines, key=cv2.contourArea))
    return (center[0], center[1]), (size[0], size[1]), float(angle)


def _dense_extent(raw: Mask, turn: Turned) -> Quad:
    """The rectangle whose rows and columns are about as full of content as the median one."""
    (x, y), (width, height), angle = turn
    margin = 12
    size = round(width) + 2 * margin, round(height) + 2 * margin
    matrix = np.asarray(cv2.getRotationMatrix2D((x, y), angle, 1.0), np.float64)
    matrix[:, 2] += (size[0] / 2 - x, size[1] / 2 - y)
    turned = cv2.warpAffine(raw.astype(np.float32), matrix, size, flags=cv2.INTER_LINEAR)
    spans = []
    for profile in (turned.mean(axis=0), turned.mean(axis=1)):
        inner = profile[margin:-margin]
        least = max(0.35 * float(np.median(inner)), 1e-3) if inner.size else 1e-3
        full = np.flatnonzero(profile > least)
        spans.append((full[0], full[-1] + 1) if full.size else (0, profile.size))
    (left, right), (top, bottom) = spans
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)]) - 0.5
    back = cv2.invertAffineTransform(matrix)
    return ordered(corners @ back[:, :2].T + back[:, 2])


def _extent(content: Mask, angle: float) -> Quad:
    """The smallest rectangle of a given angle around all content."""
    turn = cv2.getRotationMatrix2D((0.0, 0.0), angle, 1.0)[:, :2]
    places = row_ends(content) @ turn.T
    (left, top), (right, bottom) = places.min(axis=0), places.max(axis=0)
    corners = np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    return ordered(corners @ turn)


def _score(picture: Map, page: _Page, quad: Quad) -> float:
    """0 to 1: no content lost, filled with content, sides that can be seen."""
    area = cv2.contourArea(quad.astype(np.float32))
    if not LEAST_AREA * picture.size <= area <= 1.1 * picture.size or not page.content.any():
        return 0.0
    drawn = np.zeros(picture.shape, np.uint8)
    cv2.fillConvexPoly(drawn, np.round(quad).astype(np.int32), 1)
    inside = drawn > 0
    filled = float((page.content & inside).sum() / max(int(inside.sum()), 1))
    around = cv2.dilate(drawn, np.ones((7, 7), np.uint8)) > 0
    kept = float((page.content & around).sum() / page.content.sum())
    if kept < LEAST_CONTENT:
        return 0.0
    seen = np.sort(_seen(picture, page, quad))[::-1]
    sides = float(seen @ np.array([0.3, 0.3, 0.25, 0.15]))
    columns, rows = np.rint(page.pieces).astype(int).T
    whole = 1.0 if (around[rows, columns]).all() else PIECE_LOST
    return (0.4 + 0.6 * filled) * kept**10 * sides * whole


def _seen(picture: Map, page: _Page, quad: Quad) -> npt.NDArray[np.float64]:
    """(4,) share of each side (top, right, bottom, left) with content inside and page outside."""
    height, width = picture.shape
    along = np.linspace(0.04, 0.96, 64)[:, None]
    inner, outer = np.linspace(2.0, 7.0, 4), np.linspace(-2.5, -7.0, 4)
    shares = np.zeros(4)
    for side in range(4):
        start, way = quad[side], quad[(side + 1) % 4] - quad[side]
        length = float(np.linalg.norm(way))
        if length < 8.0:
            return np.zeros(4)
        inwards = np.array([-way[1], way[0]]) / length
        points = start + along * way
        flush = (points < 4).any(axis=1) | (points > (width - 5, height - 5)).any(axis=1)
        strips = points + np.concatenate([inner, outer])[:, None, None] * inwards
        place = strips.astype(np.float32)
        values = cv2.remap(
            picture, place[..., 0], place[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        other = np.abs(values - page.level) > page.noise
        edge = (other[:4].mean(axis=0) >= 0.25) & (other[4:].mean(axis=0) <= 0.25)
        # A side on the picture's own border can neither be seen nor be wrong.
        shares[side] = np.where(flush, 0.6, edge).mean()
    return shares
