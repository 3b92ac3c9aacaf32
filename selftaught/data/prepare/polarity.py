"""Whether a film is a negative, by what it shows alone; against its set: `reference.py`."""

import re
from typing import Literal, NamedTuple

import cv2
import numpy as np

from selftaught.data.prepare.geometry import levels, working_picture
from selftaught.data.prepare.pattern import MEAN_CHEST, Pattern, likeness, pattern_of

Verdict = Literal["positive", "negative", "unsure"]
Kind = Literal["limb", "chest", "unknown", "other"]

WORDS: tuple[Verdict, Verdict, Verdict] = ("unsure", "positive", "negative")  # for 0, 1 and -1
LIMBS = frozenset(
    "ankle arm calcaneus carpus clavicle elbow extremity femur fibula finger foot forearm hand heel"
    " hip humerus knee leg limb patella radius scapula shoulder thumb tibia toe ulna wrist".split()
)
CHESTS = frozenset(("chest", "cxr", "lung", "thorax"))

WORKING_SIZE = 256
BRIGHT_MEAN = 125.0
RIM = 0.08  # of a side, which frames and collimation may take
# Of the range: real negatives of limbs have 0.09 to 0.9, bright positives of chests up to 0.11.
CLEAR_CONTRAST = 0.15
# Real limbs have 0.1 to 0.9, knees -0.1 to 0.2, chests about 0: fewer are confirmed than could be.
CLEAR_STRUCTURE, LEAST_STRUCTURE = 0.2, 0.02
FINE_SIZE = 128  # pixels; smaller pictures show no fine structure
# Likeness to a mean chest, -1 to 1: 998 of 1,000 chests have more than SUSPECT, and no negative
# limb but two bright knees; 99 of 100 have more than CHEST, and nearly no negative of a limb.
SUSPECT, CHEST = 0.35, 0.5
SMOOTH = 0.75  # negatives of limbs have 0.7 at most; two bright knees with a dark gap 0.8 and more


def is_inverted_published(grey: np.ndarray) -> bool:
    """The published rule: a mean above 125 of 255. Films that the body fills are caught too.

    Args:
        grey: (H, W) uint8 or uint16.
    """
    return bool(levels(grey).mean() > BRIGHT_MEAN)


class Look(NamedTuple):
    """What a film shows that changes sides when it is inverted.

    Attributes:
        pattern: (144,) int8, as `pattern_of` gives it.
        chest: likeness to a mean chest, -1 to 1.
        structure: from -1, all fine details are darker than what is around them, to 1.
        background: -1 = clearly a bright one, 1 = clearly a dark one, 0 = not clear.
        verdict: by background and fine structure, as made for limbs.
    """

    pattern: Pattern
    chest: float
    structure: float
    background: int
    verdict: Verdict


def look_at(grey: np.ndarray) -> Look:
    """See which way round a cropped film is.

    Two marks are looked for. A background is bright in a negative and dark in a positive. What is
    fine in a radiograph (trabeculae, cortex, metal, letters) is denser than what is around it.
    A background decides where it is clearly apart from the middle of the film and the fine
    structure does not contradict, or where that agrees; fine structure alone confirms that a film
    is a positive, and never turns it.

    Args:
        grey: (H, W) uint8 or uint16.
    """
    picture = working_picture(grey, WORKING_SIZE)
    low, high = np.percentile(picture, (1, 99))
    shown = np.clip((picture - low) / max(high - low, 1.0), 0, 1).astype(np.float32)
    mean, structure = float(picture.mean()), _fine_structure(shown)
    contrast = _background(shown, mean)
    negative = _clear(contrast, structure)
    positive = _clear(_background(1 - shown, 255 - mean), -structure)
    background = int(positive) - int(negative)
    verdict = WORDS[background]
    if not background and contrast is None and structure > LEAST_STRUCTURE:
        verdict = "positive"
    pattern = pattern_of(picture)
    chest = float(likeness(pattern[None], MEAN_CHEST)[0])
    return Look(pattern, chest, structure, background, verdict)


def kind_of(body_part: str) -> Kind:
    """What a manifest's body part means for the rules: tested for limbs and chests only.

    Args:
        body_part: in any spelling; "" where unknown.
    """
    words = set(re.findall("[a-z]+", body_part.lower()))
    words |= {word.removesuffix("s") for word in words}
    if words <= {"na", "unknown"}:
        return "unknown"
    return "chest" if words & CHESTS else "limb" if words & LIMBS else "other"


def alone(look: Look, kind: Kind) -> Verdict:
    """Which way round a film is without its set, or that this cannot be told.

    Shoulders and belly of a chest look like a negative's background: what is like a chest is left,
    and what is known to be one is judged by that likeness only.
    """
    if kind == "other":
        return "unsure"
    if kind == "chest":
        return WORDS[int(look.chest >= SUSPECT) - int(look.chest <= -SUSPECT)]
    like_chest = look.chest >= SUSPECT if look.verdict == "negative" else look.chest <= -CHEST
    return "unsure" if like_chest else look.verdict


def judge(grey: np.ndarray) -> Verdict:
    """`alone` of a film whose body part is not known.

    Args:
        grey: (H, W) uint8 or uint16.
    """
    return alone(look_at(grey), "unknown")


def _background(shown: np.ndarray, mean: float) -> float | None:
    """By how much a bright background is brighter than the middle; None where there is none.

    Asks for a bright mean, for corners (inside a rim) that are bright and hardly darker than the
    middle, for more white than black, and for white that is smooth, as bone is not.

    Args:
        shown: (h, w) float32 in [0, 1].
        mean: of the levels, 0 to 255.
    """
    if mean <= BRIGHT_MEAN:
        return None
    rows, columns = (_ends(side) for side in shown.shape)
    corners = np.sort([np.median(shown[r, c]) for r in rows for c in columns])
    middle = float(np.median(shown[_middle(shown.shape[0]), _middle(shown.shape[1])]))
    if corners[2] < max(0.65, middle - 0.06):
        return None
    rim = [int(RIM * side) for side in shown.shape]
    core = shown[rim[0] : shown.shape[0] - rim[0], rim[1] : shown.shape[1] - rim[1]]
    if (core > 0.9).mean() <= (core < 0.1).mean():
        return None
    steepness = cv2.magnitude(cv2.Sobel(core, cv2.CV_32F, 1, 0), cv2.Sobel(core, cv2.CV_32F, 0, 1))
    white = steepness[core > 0.8]
    smooth = white.size > 0 and white.mean() < SMOOTH * steepness.mean()
    return float(corners[2]) - middle if smooth else None


def _clear(contrast: float | None, structure: float) -> bool:
    """Whether a bright background makes a film a negative beyond doubt.

    White that collimation left beside a positive looks like one; the fine structure contradicts.
    """
    if contrast is None or structure >= CLEAR_STRUCTURE:
        return False
    return contrast >= CLEAR_CONTRAST or structure <= -CLEAR_STRUCTURE


def _fine_structure(shown: np.ndarray) -> float:
    """From -1, all fine details are darker than what is around them, to 1, all are brighter."""
    if max(shown.shape) < FINE_SIZE:
        return 0.0
    smooth = cv2.GaussianBlur(shown, (0, 0), 0.7)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (3, 3))
    bright = float(cv2.morphologyEx(smooth, cv2.MORPH_TOPHAT, kernel).mean())
    dark = float(cv2.morphologyEx(smooth, cv2.MORPH_BLACKHAT, kernel).mean())
    return (bright - dark) / max(bright + dark, 1e-9)


def invert(grey: np.ndarray) -> np.ndarray:
    """The negative of a picture, over the full range of its type."""
    return np.iinfo(grey.dtype).max - grey


def _ends(side: int) -> tuple[slice, slice]:
    """From 8 to 20 per cent at either end."""
    near, far = int(RIM * side), int(0.2 * side) + 1
    return slice(near, far), slice(side - far, side - near)


def _middle(side: int) -> slice:
    return slice(int(0.3 * side), int(0.7 * side) + 1)
