"""What surrounds a film: collimation, letters, polarity, frame, page."""

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.phantoms.layout import Layout
from selftaught.phantoms.raster import Map
from selftaught.phantoms.shapes import Array
from selftaught.phantoms.texture import blur


def filled(layout: Layout, corners: Array) -> Map:
    """Share of every pixel (height, width) inside a polygon given in pixels."""
    fine = 4
    mask = np.zeros((layout.height * fine, layout.width * fine), np.uint8)
    points = np.clip((corners + 0.5) * fine - 0.5, -30000, 30000)
    cv2.fillPoly(mask, [np.round(points * 16).astype(np.int32)], 255, shift=4)
    small = cv2.resize(mask, (layout.width, layout.height), interpolation=cv2.INTER_AREA)
    return small.astype(np.float32) / np.float32(255)


def film_cover(layout: Layout) -> Map:
    """Share of every pixel (height, width) on the film."""
    return filled(layout, layout.quad)


def field_cover(layout: Layout) -> Map:
    """Share of every pixel (height, width) inside the collimated field, with soft edges."""
    left, top, right, bottom = layout.shutter
    if not any(layout.shutter):
        return np.ones((layout.height, layout.width), np.float32)
    x, y = layout.film[0] / 2, layout.film[1] / 2
    corners = np.array(
        [(left - x, top - y), (x - right, top - y), (x - right, y - bottom), (left - x, y - bottom)]
    )
    sharp = filled(layout, layout.pixels(corners))
    return blur(sharp, max(0.4 * layout.scale, 0.5))


def part_cover(layout: Layout, part: int) -> Map:
    """Share of every pixel (height, width) that belongs to one of the exposures."""
    if layout.parts == 1:
        return np.ones((layout.height, layout.width), np.float32)
    x, y = layout.film[0] / 2, layout.film[1]
    low, high = (-2 * x, 0.0) if part == 0 else (0.0, 2 * x)
    return filled(layout, layout.pixels(np.array([(low, -y), (high, -y), (high, y), (low, y)])))


def letter_map(layout: Layout, thick: Map) -> Map:
    """Line integral (height, width) of a lead letter in the emptiest corner of the film."""
    lead = np.zeros((layout.height, layout.width), np.float32)
    if not layout.letter:
        return lead
    half = np.array(layout.film) / 2
    inset = 0.11 * min(layout.film)
    places = [np.array(c) * (half - inset) for c in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    reach = max(2, round(inset * layout.scale))

    def covered(place: Array) -> float:
        column, row = np.round(layout.pixels(place[None])[0]).astype(int)
        around = thick[max(row - reach, 0) : row + reach, max(column - reach, 0) : column + reach]
        return float(around.mean()) if around.size else np.inf

    place = min(places, key=covered)
    stamp = np.zeros((96, 96), np.uint8)
    cv2.putText(stamp, layout.letter, (20, 78), cv2.FONT_HERSHEY_SIMPLEX, 2.6, 255, 9, cv2.LINE_AA)
    size = 0.10 * min(layout.film) / 96
    stamp_to_film = np.array([[size, 0, place[0] - 48 * size], [0, size, place[1] - 48 * size]])
    full = layout.matrix[:, :2] @ stamp_to_film
    full[:, 2] += layout.matrix[:, 2]
    warped = cv2.warpAffine(stamp, full, (layout.width, layout.height), flags=cv2.INTER_AREA)
    return warped.astype(np.float32) * np.float32(3.0 / 255)


def mount(shown: Map, layout: Layout) -> npt.NDArray[np.uint16]:
    """Shutter, polarity, frame and page around a film.

    Args:
        shown: (height, width) in [0, 1], bone bright.
        layout: where the film lies.

    Returns:
        (height, width) 16-bit picture.
    """
    field = field_cover(layout)
    edge = np.float32(0.93 if layout.shutter_bright else 0.0)
    film = shown * field + edge * (1 - field)
    if layout.inverted:
        film = 1 - film
    cover = film_cover(layout)
    out = film * cover + np.float32(layout.page) * (1 - cover)
    if layout.frame:
        line = np.zeros((layout.height, layout.width), np.uint8)
        points = [np.round(layout.quad * 16).astype(np.int32)]
        width = max(1, round(layout.frame))
        cv2.polylines(line, points, True, 255, width, cv2.LINE_AA, 4)
        bright = line.astype(np.float32) / np.float32(255)
        out = out * (1 - bright) + np.float32(0.97) * bright
    return np.round(np.clip(out, 0, 1) * 65535).astype(np.uint16)
