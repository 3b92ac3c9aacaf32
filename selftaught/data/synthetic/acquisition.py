"""How a film lies on its page: carrier, collimation, frame, letters, polarity."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.synthetic.raster import Map
from selftaught.data.synthetic.shapes import Array, rotation
from selftaught.data.synthetic.texture import blur

LETTERS = ("L", "R")


@dataclass(frozen=True, kw_only=True, eq=False)
class Layout:
    """Geometry and clutter of one picture.

    Attributes:
        height: rows of the picture.
        width: columns of the picture.
        matrix: (2, 3) from film mm (origin at the film's centre) to pixels.
        film: width and height of the film, mm.
        page: grey level around the film, 0 to 1.
        frame: width of the bright frame, pixels; 0 = none.
        shutter: left, top, right, bottom margins of the collimated field, mm.
        shutter_bright: outside the field the film is unexposed (bright) instead of blackened.
        inverted: bone is dark.
        letter: lead letter, or "" for none.
        parts: how many exposures share the film.
    """

    height: int
    width: int
    matrix: Array
    film: tuple[float, float]
    page: float
    frame: float
    shutter: tuple[float, float, float, float]
    shutter_bright: bool
    inverted: bool
    letter: str
    parts: int

    def pixels(self, points: Array) -> Array:
        """Film (N, 2) mm to pixels (N, 2), x then y."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    @property
    def scale(self) -> float:
        """Pixels per film mm."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    @property
    def quad(self) -> Array:
        """(4, 2) pixel corners of the film: top left, top right, bottom right, bottom left."""
        half = np.array(self.film) / 2
        corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)
        return self.pixels(corners * half)


def clean_layout(window: tuple[float, float], size: int) -> Layout:
    """An upright film that fills the picture."""
    scale = size / max(window)
    width, height = (max(8, round(side * scale)) for side in window)
    return Layout(
        height=height,
        width=width,
        matrix=np.array([[scale, 0, width / 2 - 0.5], [0, scale, height / 2 - 0.5]]),
        film=(width / scale, height / scale),
        page=0.0,
        frame=0.0,
        shutter=(0.0, 0.0, 0.0, 0.0),
        shutter_bright=False,
        inverted=False,
        letter="",
        parts=1,
    )


def cluttered_layout(
    window: tuple[float, float], size: int, side: str, generator: np.random.Generator
) -> Layout:
    """Draw a film somewhere on a page.

    Args:
        window: width and height of one exposure, mm.
        size: longer side of the picture, pixels.
        side: letter of the body side.
        generator: draws everything.
    """
    parts = 2 if generator.random() < 0.05 else 1
    film = np.array([window[0] * parts, window[1]]) * generator.uniform(1.0, 1.12, 2)
    turn = float(generator.normal(0, 6.0) if generator.random() < 0.75 else 0.0)
    turn = np.radians(np.clip(turn, -20, 20))
    matrix = rotation(turn)
    reach = np.abs(matrix) @ film
    page = reach * (1 + generator.uniform(0.0, 0.35, 2))
    scale = size / max(page)
    width, height = (max(8, round(extent * scale)) for extent in page)
    spare = (np.array([width, height]) - reach * scale) / 2
    middle = np.array([width, height]) / 2 - 0.5 + spare * generator.uniform(-0.9, 0.9, 2)
    shutter = np.zeros(4)
    if generator.random() < 0.35:
        shutter = generator.uniform(0.01, 0.07, 4) * np.array([film[0], film[1]] * 2)
    page_kind = generator.random()
    grey = 0.0 if page_kind < 0.65 else float(generator.uniform(0.88, 1.0))
    if page_kind > 0.85:
        grey = float(generator.uniform(0.15, 0.6))
    return Layout(
        height=height,
        width=width,
        matrix=np.column_stack((matrix * scale, middle)),
        film=(float(film[0]), float(film[1])),
        page=grey,
        frame=float(generator.uniform(0.002, 0.006)) * size if generator.random() < 0.35 else 0.0,
        shutter=tuple(float(margin) for margin in shutter),  # type: ignore[arg-type]
        shutter_bright=bool(generator.random() < 0.4),
        inverted=bool(generator.random() < 0.1),
        letter=side if generator.random() < 0.6 else "",
        parts=parts,
    )


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
