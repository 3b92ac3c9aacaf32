"""Heat on a film's own pixels: the way back through the view's square and the preparation's cut."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.images.decode import read_grey
from selftaught.data.images.pack import locate
from selftaught.data.manifest.spelling import cleaned
from selftaught.data.pipeline.composed import inner_shape
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import prepare_film
from selftaught.data.prepare.geometry import Quad, shrink, side_lengths, whole_frame
from selftaught.models.preprocessing import Preprocessing

# From none to all of the scale: yellow that turns red, over a grey film that shines through.
COLOURS = np.array([(255, 226, 60), (255, 150, 0), (225, 20, 30)], np.float32)
STRONGEST = 0.6  # opacity at the top of the scale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cut:
    """What preparation took of a film.

    Attributes:
        quad: (4, 2) corners of the carrier in the film, x then y in pixels.
        portrait: turned where it was wider than high, as published.
        longest: side of the prepared film, in pixels, at most.
    """

    quad: Quad
    portrait: bool
    longest: int


def film_of(
    path: Path, preprocessing: Preprocessing, body_part: str = ""
) -> tuple[np.ndarray, Cut | None]:
    """A film's own pixels (H, W), and what a model's preparation takes of them; None: all.

    Raises:
        BadImage: it cannot be read or prepared.
    """
    packed = locate(path)
    if packed is not None:
        return packed.pack.image(packed.slot), None
    film = read_grey(path)
    if preprocessing.prepared is None:
        return film, None
    config = PrepareConfig(**preprocessing.prepared)
    # Neither polarity nor mask moves a pixel.
    fast = dataclasses.replace(config, polarity="none", mask="none")
    made = prepare_film(path, None, cleaned(body_part).lower(), fast)
    portrait = config.carrier == "paper" and made.carrier == "cropped"
    return film, Cut(quad=made.quad, portrait=portrait, longest=config.size)


def on_film(
    heat: npt.ArrayLike, shape: tuple[int, int], cut: Cut | None = None
) -> npt.NDArray[np.float32]:
    """A map of the network's view, on the film that the view was made of.

    Args:
        heat: (S, S), of `Detector.maps`.
        shape: (H, W) of the film.
        cut: of `film_of`; None: the view shows all of the film.

    Returns:
        (H, W) float32; 0 outside what the network saw.
    """
    view = np.asarray(heat, np.float32)
    if view.ndim != 2 or view.shape[0] != view.shape[1]:
        raise ValueError(f"heat: shape {view.shape}, must be (S, S)")
    if cut is None:
        return _unsquared(view, shape)
    width, height = (max(1, round(side) + 1) for side in side_lengths(cut.quad))
    turned = cut.portrait and width > height
    upright = (width, height) if turned else (height, width)
    # Which side the network's view rounds depends on the prepared film's size, not the carrier's.
    prepared = shrink(np.empty(upright, np.uint8), cut.longest).shape
    inside = _unsquared(view, upright, prepared)
    inside = np.ascontiguousarray(np.rot90(inside, 1)) if turned else inside
    if np.abs(cut.quad - whole_frame(shape)).max() < 0.5:
        return inside
    source = whole_frame((height, width)).astype(np.float32)
    matrix = cv2.getPerspectiveTransform(source, cut.quad.astype(np.float32))
    warped = cv2.warpPerspective(inside, matrix, shape[::-1], flags=cv2.INTER_LINEAR)
    return np.asarray(warped, np.float32)


def _unsquared(
    view: np.ndarray, shape: tuple[int, ...], seen: tuple[int, ...] | None = None
) -> np.ndarray:
    """What of a square view is picture, resized to `shape`; `seen`: size of that picture."""
    size = view.shape[0]
    tall, wide = (seen or shape)[:2]
    height, width = inner_shape(tall, wide, size)
    top, left = (size - height) // 2, (size - width) // 2
    inside = np.ascontiguousarray(view[top : top + height, left : left + width])
    return cv2.resize(inside, tuple(shape[1::-1]), interpolation=cv2.INTER_LINEAR)


def overlay(film: np.ndarray, heat: npt.ArrayLike, cut: Cut | None = None) -> npt.NDArray[np.uint8]:
    """A film with its heat, whose colour means the same on every film of a model.

    Args:
        film: (H, W) uint8, uint16 or floats.
        heat: (S, S) in [0, 1], of `Detector.maps`.
        cut: as for `on_film`.

    Returns:
        (H, W, 3) uint8, red, green, blue; the film alone where the heat is 0.

    Raises:
        ValueError: another shape.
    """
    film = np.asarray(film)
    if film.ndim != 2:
        raise ValueError(f"film: shape {film.shape}, must be (H, W)")
    placed = np.clip(on_film(heat, film.shape, cut), 0.0, 1.0)
    stops = np.linspace(0.0, 1.0, len(COLOURS))
    colour = np.stack([np.interp(placed, stops, channel) for channel in COLOURS.T], axis=-1)
    share = STRONGEST * placed[..., None]
    mixed = (1.0 - share) * eight_bits(film)[..., None] + share * colour
    return np.rint(mixed).astype(np.uint8)


def eight_bits(film: np.ndarray) -> npt.NDArray[np.uint8]:
    """Grey levels to show: deeper ones from their 0.5 % to their 99.5 % quantile.

    Most 16-bit radiographs use a part of the range.
    """
    if film.dtype == np.uint8:
        return film
    low, high = np.percentile(film, [0.5, 99.5])
    span = high - low if high > low else 1.0
    shown = np.clip((film.astype(np.float32) - low) * (255.0 / span), 0, 255)
    return shown.astype(np.uint8)
