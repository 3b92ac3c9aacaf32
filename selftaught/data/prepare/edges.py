"""Where a film's side really runs: edges seen across a side, and sides moved onto them."""

from typing import NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.prepare.geometry import Quad, ordered

FAINTEST = 0.4  # levels above the page that count as an edge
REACH = 8.0  # pixels to either side of a guessed side
LEAST_ON_LINE = 0.3  # share of a side whose edge must be seen on one line
MOSTLY_ON_LINE = 0.6  # share of all sides, if none is sharp, as with a frame's line beside it
SHARP = 3.4  # pixels from 10 to 90 % of a film's or collimator's edge; skin is softer
FLUSH = 4.0  # pixels: a side this near to the picture's border shows no edge
MOST_TURNED = 0.035  # radians between a guessed side and its edge
MOST_BEYOND = 0.03  # share of a side that may show content more than two pixels outside that line

Map = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]


class Edge(NamedTuple):
    """What is seen along one side.

    Attributes:
        share: of the side, that lies on one straight line.
        width: pixels from 10 to 90 % of the edge; inf where nothing is seen.
        shift: (2,) pixels inwards from the side to that line, at the side's start and end.
        beyond: share of the side that shows content more than two pixels outside the line.
    """

    share: float
    width: float
    shift: Floats
    beyond: float


UNSEEN = Edge(0.0, np.inf, np.zeros(2), 0.0)


def refined(apart: Map, quad: Quad) -> Quad | None:
    """Move each side onto the straight edge that is seen along it; sides without one stay.

    Args:
        apart: (H, W) absolute difference from the page's level, beyond the page's noise.
        quad: (4, 2) ordered corners, a few pixels wrong.

    Returns:
        (4, 2) ordered corners; None where no side shows an edge as a film has it, sharp or straight
        all around, though some could: then what was found is the body itself.
    """
    last = np.array([apart.shape[1] - 1.0, apart.shape[0] - 1.0])
    starts, ends = quad, np.roll(quad, -1, axis=0)
    length = np.maximum(np.linalg.norm(ends - starts, axis=1, keepdims=True), 1e-9)
    inwards = (ends - starts)[:, ::-1] * (-1, 1) / length
    edges = [edge_along(apart, *line) for line in zip(starts, ends, inwards, strict=True)]
    sharp = np.array([e.share >= LEAST_ON_LINE and e.width <= SHARP for e in edges])
    around = np.mean([edge.share for edge in edges]) >= MOSTLY_ON_LINE
    middle = (starts + ends) / 2
    flush = (np.minimum(middle, last - middle) < FLUSH).any(axis=1)
    if not (sharp.any() or around or flush.all()):
        return None
    shifts = np.array([edge.shift for edge in edges])
    moves = (sharp | around) & np.array([e.share >= LEAST_ON_LINE for e in edges])
    moves &= np.array([e.beyond <= MOST_BEYOND for e in edges])
    moves &= np.abs(shifts[:, 1] - shifts[:, 0]) <= MOST_TURNED * length[:, 0]
    shifts *= moves[:, None]
    starts, ends = starts + shifts[:, :1] * inwards, ends + shifts[:, 1:] * inwards
    crossings = [_crossing(starts[i - 1], ends[i - 1], starts[i], ends[i]) for i in range(4)]
    return ordered(crossings)


def _crossing(a: Floats, b: Floats, c: Floats, d: Floats) -> Floats:
    """Where the line through a and b meets the one through c and d."""
    first, second = b - a, d - c
    across = first[0] * second[1] - first[1] * second[0]
    if abs(across) < 1e-9:
        return c
    gap = c - a
    return np.asarray(a + first * ((gap[0] * second[1] - gap[1] * second[0]) / across))


def sampled(picture: Map, places: Floats) -> Map:
    """Values (...,) at places (..., 2), x then y, between pixels; the border goes on."""
    flat = places.reshape(-1, 2).astype(np.float32)
    wide = np.zeros((-(-len(flat) // 4096) * 4096, 2), np.float32)
    wide[: len(flat)] = flat
    grid = wide.reshape(-1, 4096, 2)
    if not len(flat):
        return np.zeros(places.shape[:-1], np.float32)
    values = cv2.remap(
        picture, grid[..., 0], grid[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(values.reshape(-1)[: len(flat)].reshape(places.shape[:-1]), np.float32)


def edge_along(apart: Map, start: Floats, end: Floats, inwards: Floats) -> Edge:
    """How much of a side has content right inside, on one straight line, and how soft that is."""
    length = float(np.linalg.norm(end - start))
    steps = np.arange(-REACH, REACH + 0.01, 0.5)
    share = np.linspace(0.03, 0.97, int(np.clip(length, 16, 400)))
    base = start + share[:, None] * (end - start)
    strips = sampled(apart, base + steps[:, None, None] * inwards)
    blurred = cv2.blur(strips, (9, 1), borderType=cv2.BORDER_REPLICATE)
    strips = np.asarray(blurred, np.float32)
    outside = strips[steps <= -6].mean(axis=0)
    inside = strips[(steps >= 1) & (steps <= 6)].max(axis=0)
    shows = (inside > FAINTEST) & (outside <= 0.12 * inside)
    if shows.sum() < 10:
        return UNSEEN
    onset = steps[np.argmax(strips > (inside + outside) / 2, axis=0)]
    line = _straight(share[shows] * length, onset[shows])
    if line is None:
        return UNSEEN
    slope, offset, kept = line
    chosen = np.flatnonzero(shows)[kept]
    shift = slope * share[chosen] * length + offset
    fine = np.arange(-4.0, 4.01, 0.25)
    middle = base[chosen] + shift[:, None] * inwards
    profile = sampled(apart, middle + fine[:, None, None] * inwards).mean(axis=1)
    low, high = profile[:4].mean(), profile.max()
    rise = np.maximum.accumulate((profile - low) / max(high - low, 1e-6))
    width = float(np.interp(0.9, rise, fine) - np.interp(0.1, rise, fine))
    away = onset[shows] - (slope * share[shows] * length + offset)
    return Edge(
        len(chosen) / len(share),
        width,
        offset + slope * length * np.array([0.0, 1.0]),
        float((away < -2.0).sum() / len(share)),
    )


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
