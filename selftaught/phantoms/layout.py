"""How a film lies on its page."""

from dataclasses import dataclass

import numpy as np

from selftaught.phantoms.geometry import rotation
from selftaught.phantoms.shapes import Array


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
