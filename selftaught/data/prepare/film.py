"""One film: decoded, cropped, of right polarity, masked, resized."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.images.contrast import contrast_limits, is_low_contrast, used_bits
from selftaught.data.images.decode import is_dicom, read_grey, stated_bits
from selftaught.data.images.limits import BadImage
from selftaught.data.images.masks import read_mask
from selftaught.data.prepare import carrier, published
from selftaught.data.prepare import mask as masks
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.geometry import Quad, overlap, shrink, upright, whole_frame
from selftaught.data.prepare.polarity import (
    Look,
    invert,
    is_inverted_published,
    kind_of,
    look_at,
)
from selftaught.data.prepare.reference import NO_REFERENCE, Reference, judge_in_set

# A film that covers this much of the picture is the picture: no resampling for nothing.
WHOLE = 0.96
Mask = npt.NDArray[np.bool_]
Polarity = Literal["found", "set", "stated", "unsure", "none"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Film:
    """A prepared film and what was decided about it.

    Attributes:
        image: (h, w) uint8 or uint16.
        mask: (h, w) bool, or None for all of the frame.
        low, high: contrast limits of `image`.
        quad: (4, 2) corners of the carrier in the source, x then y in pixels.
        carrier: cropped, whole (the film fills the picture), or unsure (not found, not cropped).
        score: of the carrier, 0 to 1.
        inverted: the source is a negative; `image` is turned unless the rule is `paper`.
        polarity: who says so: found (the picture), set (only the other films of its set), stated
            (the file, and nothing contradicts), unsure (nothing tells, or not what the file
            states), none (nobody asked).
        mask_from: given, found, or none (no plausible mask).
        low_contrast: the levels span too little of the range.
        source_bits: that the source's levels have; they are brought to those of `image`.
    """

    image: np.ndarray
    mask: Mask | None
    low: int
    high: int
    quad: Quad
    carrier: Literal["cropped", "whole", "unsure"]
    score: float
    inverted: bool
    polarity: Polarity
    mask_from: Literal["given", "found", "none"]
    low_contrast: bool
    source_bits: int


class Found(NamedTuple):
    """Where a film lies on its page; fields as of `Film`."""

    quad: Quad
    carrier: Literal["cropped", "whole", "unsure"]
    score: float


class _Cut(NamedTuple):
    """A file's picture and its bits, and what lies on its film at the prepared size."""

    grey: np.ndarray
    bits: int
    image: np.ndarray
    found: Found
    portrait: bool


def look_at_film(path: Path, body_part: str, config: PrepareConfig) -> tuple[Look, Found]:
    """Which way round a file's film is, and where; arguments and errors as of `prepare_film`."""
    cut = _cut(path, body_part, config)
    return look_at(cut.image), cut.found


def prepare_film(
    path: Path,
    given: Path | None,
    body_part: str,
    config: PrepareConfig,
    reference: Reference = NO_REFERENCE,
    found: Found | None = None,
) -> Film:
    """Prepare one file.

    Args:
        path: the image.
        given: the mask that the manifest names, or None.
        body_part: lower case, "" where unknown.
        config: rules and size.
        reference: films of its set, which its polarity is judged against.
        found: where the film lies, where `look_at_film` has seen that already.

    Raises:
        BadImage: the image or its mask cannot be used.
    """
    grey, bits, image, (quad, state, score), portrait = _cut(path, body_part, config, found)
    low_contrast = is_low_contrast(image, config.low_contrast)
    inverted, polarity = _polarity(path, image, body_part, config, reference)
    positive = invert(image) if inverted else image
    if config.polarity == "default":
        image = positive
    mask: Mask | None = None
    origin: Literal["given", "found", "none"] = "none"
    if given is not None and config.given_mask and config.mask != "none":
        whole = read_mask(given, path, grey.shape)
        mask, origin = _cropped(given, whole, quad, portrait, image), "given"
    elif config.mask != "none" and not low_contrast:
        mask = (published if config.mask == "paper" else masks).find_mask(positive)
        origin = "none" if mask is None else "found"
    low, high = contrast_limits(image, config.cutoff)
    return Film(
        image=image,
        mask=mask,
        low=low,
        high=high,
        quad=quad,
        carrier=state,
        score=score,
        inverted=inverted,
        polarity=polarity,
        mask_from=origin,
        low_contrast=low_contrast,
        source_bits=bits,
    )


def usable_film(
    path: Path,
    given: Path | None,
    body_part: str,
    config: PrepareConfig,
    reference: Reference = NO_REFERENCE,
    found: Found | None = None,
) -> Film:
    """`prepare_film` of a film that is to go on; arguments as there.

    Raises:
        BadImage: it cannot be prepared, whatever the reason, or its low contrast leaves it out.
    """
    try:
        film = prepare_film(path, given, body_part, config, reference, found)
    except MemoryError:
        raise BadImage(path, "needs more memory than there is") from None
    except (cv2.error, ValueError, ArithmeticError) as error:
        if isinstance(error, BadImage):
            raise
        # One strange picture must not end a night's work; the class tells where to look.
        raise BadImage(path, f"cannot be prepared ({type(error).__name__})") from error
    if film.low_contrast and config.drop_low_contrast:
        low, high = film.low, film.high
        raise BadImage(
            path,
            f"low contrast: its grey levels span too little ({low} to {high} of "
            f"{np.iinfo(film.image.dtype).max}); --drop_low_contrast false keeps such films",
        )
    return film


def _bits(path: Path, grey: np.ndarray, config: PrepareConfig) -> int:
    """Bits of a film's levels, in 16 bits or 8; by the published rules, those of the type."""
    if grey.dtype == np.uint8:
        return 8
    stated = stated_bits(path)
    if stated == 16 or "paper" in (config.carrier, config.polarity, config.mask):
        return 16
    return used_bits(grey, stated, config.low_contrast)


def _carrier(grey: np.ndarray, body_part: str, config: PrepareConfig) -> Found:
    frame = whole_frame(grey.shape)
    if config.carrier == "none" or min(grey.shape) < 8:
        return Found(frame, "whole", 0.0)
    if config.carrier == "paper":
        page = published.find_carrier(grey, body_part)
    else:
        page = carrier.find_carrier(grey)
    if page is None:
        return Found(frame, "unsure", 0.0)
    if config.carrier == "default" and overlap(page.quad, frame) >= WHOLE:
        return Found(frame, "whole", page.score)
    return Found(page.quad, "cropped", page.score)


def _cut(path: Path, body_part: str, config: PrepareConfig, found: Found | None = None) -> _Cut:
    grey = read_grey(path)
    bits = _bits(path, grey, config)
    grey = grey << np.uint16(16 - bits) if 8 < bits < 16 else grey
    found = found or _carrier(grey, body_part, config)
    portrait = config.carrier == "paper" and found.carrier == "cropped"
    image = shrink(upright(grey, found.quad, portrait=portrait), config.size)
    if config.bits == "8" and image.dtype == np.uint16:
        image = np.rint(image.astype(np.float32) * np.float32(255 / 65535)).astype(np.uint8)
    return _Cut(grey, bits, image, found, portrait)


def _polarity(
    path: Path, image: np.ndarray, body_part: str, config: PrepareConfig, reference: Reference
) -> tuple[bool, Polarity]:
    """Whether the film is a negative, and who says so; what a file states is never overruled."""
    if config.polarity == "none":
        return False, "none"
    if config.polarity == "paper":
        return is_inverted_published(image), "found"
    verdict, by_set = judge_in_set(look_at(image), kind_of(body_part), reference)
    if is_dicom(path):
        return False, "stated" if verdict == "positive" else "unsure"
    if verdict == "unsure":
        return False, "unsure"
    return verdict == "negative", "set" if by_set else "found"


def _cropped(path: Path, mask: np.ndarray, quad: Quad, portrait: bool, image: np.ndarray) -> Mask:
    """The manifest's mask, read from `path`, through the crop that its image went through."""
    cropped = upright(mask, quad, portrait=portrait)
    size = (image.shape[1], image.shape[0])
    if cropped.shape != image.shape:
        cropped = cv2.resize(cropped, size, interpolation=cv2.INTER_AREA)
    inside = cropped > 127
    if not inside.any():
        raise BadImage(path, "mask lies outside the film that was found; try --carrier none")
    return inside
