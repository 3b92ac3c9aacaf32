"""Which way round a film is, judged against the other films of its set."""

import base64
import binascii
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.prepare.pattern import SIDE, Pattern, likeness
from selftaught.data.prepare.polarity import CHEST, SUSPECT, WORDS, Kind, Look, Verdict, alone
from selftaught.errors import InputError

NAME = "polarity.json"  # in a prepared set: its reference, and the films that it is made of

LEAST = 8  # films that a set needs to say anything
VOTERS, NEAREST = 7, 3
# Nearest films must be this like a film that clearly leans the same way, or does not; and by so
# much more than they are like its negative.
LIKE, LIKE_ALONE, APART = 0.5, 0.6, 0.3
CLEAR_STRUCTURE = 0.05
CERTAIN = 0.5  # share of the votes, -1 to 1, that a film of the reference needs
USUAL = 1 / 3  # of a set may be negatives without further evidence
AGREEING, CONTRADICTING = 0.85, 0.4  # share of films that lean as the set says


class Reference(NamedTuple):
    """Films of a set, all turned to positives, that others are compared with.

    Attributes:
        patterns: (N, 144) int8; none where the set does not tell.
        unsettled: the set's films contradict each other too much to tell.
    """

    patterns: Pattern
    unsettled: bool = False

    def judge(self, look: Look) -> Verdict:
        """Whether a film is like these films, or its negative is; unsure where neither clearly is.

        A film is a negative only where what it shows itself does not lean the other way.
        """
        if not len(self.patterns):
            return "unsure"
        alike = np.sort(likeness(self.patterns, look.pattern))
        upright, turned = float(alike[-NEAREST:].mean()), float(-alike[:NEAREST].mean())
        way, clear = _lean(look)
        for verdict, like, other, own in ((1, upright, turned, way), (-1, turned, upright, -way)):
            least = LIKE if clear and own > 0 else LIKE_ALONE
            if like >= least and like - other >= APART and (verdict > 0 or own >= 0):
                return WORDS[verdict]
        return "unsure"

    def text(self) -> str:
        """What `from_text` reads."""
        return base64.b64encode(self.patterns.tobytes()).decode()

    @classmethod
    def from_text(cls, text: str) -> "Reference":
        """Read what a prepared set or a model stores.

        Raises:
            TypeError: not a text.
            ValueError: not the text of a reference.
        """
        try:
            content = base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise ValueError(f"reference: {error}") from error
        if len(content) % SIDE**2:
            raise ValueError(f"reference: {len(content)} bytes, must be a multiple of {SIDE**2}")
        return cls(np.frombuffer(content, np.int8).reshape(-1, SIDE**2))


NO_REFERENCE = Reference(np.zeros((0, SIDE**2), np.int8))


def joined(references: Sequence[Reference]) -> Reference:
    """One reference for films that may be of any of some sets."""
    return Reference(np.concatenate([NO_REFERENCE.patterns, *(r.patterns for r in references)]))


def judge_in_set(look: Look, kind: Kind, reference: Reference) -> tuple[Verdict, bool]:
    """The verdict on a film, and whether it is the set's alone.

    A clear background and a set that contradict each other leave a film unsure.

    Args:
        look: of the film.
        kind: of its body part.
        reference: of its set.
    """
    own, others = alone(look, kind), reference.judge(look)
    if kind == "other" or others in ("unsure", own):
        return own, False
    # The dark shoulders and belly of a chest's negative pass for a background too.
    dark = look.background > 0 and look.chest > -SUSPECT
    against = own == "negative" or (own == "positive" and dark)
    return ("unsure", False) if against else (others, True)


def settle(looks: Sequence[Look], stated: Sequence[bool]) -> Reference:
    """Turn films of a set to positives, and keep those of which their neighbours leave no doubt.

    Patterns of two like films have a likeness near 1 where both are of one polarity and near -1
    where they are not. Films begin as they came, or as their negative where they clearly look like
    one; then the films that are most like each outvote it, until nothing changes. Where more than
    a third would be negatives, they must look like it themselves too, or the set is unsettled.

    Args:
        looks: of N films, as they came.
        stated: for each whether its file states its polarity: it is never taken for a negative.
    """
    if len(looks) < LEAST:
        return NO_REFERENCE
    patterns = np.stack([look.pattern for look in looks])
    alike = np.stack([likeness(patterns, pattern) for pattern in patterns])
    np.fill_diagonal(alike, 0)
    nearest = np.argsort(-np.abs(alike), axis=1, kind="stable")[:, :VOTERS]
    weight = np.take_along_axis(alike, nearest, axis=1)
    total = np.maximum(np.abs(weight).sum(axis=1), 1e-9)
    leans = [(1, True) if stated[n] else _lean(look) for n, look in enumerate(looks)]
    way = np.array([lean for lean, _ in leans])
    sign = np.array([-1 if clear and lean < 0 else 1 for lean, clear in leans])
    backgrounds = np.array([look.background for look in looks])
    sign = np.where((backgrounds < 0) & (way <= 0), -1, sign)
    for _ in range(10):
        votes = (weight * sign[nearest]).sum(axis=1) / total
        changed = np.where(np.abs(votes) < 0.2, sign, np.where(votes > 0, 1, -1))
        if (changed == sign).all():
            break
        sign = changed
    comparable = np.abs(weight[:, :NEAREST]).mean(axis=1) >= LIKE
    sure = comparable & (votes * sign >= CERTAIN)
    if sure.sum() < LEAST:
        return NO_REFERENCE._replace(unsettled=bool(comparable.sum() >= LEAST))
    telling = sure & (way != 0)
    agreeing = (way == sign)[telling].sum()
    many = (sign[sure] < 0).sum() > USUAL * sure.sum()
    enough = agreeing >= AGREEING * telling.sum() and telling.sum() >= sure.sum() / 2
    if agreeing < CONTRADICTING * telling.sum() or (many and not enough):
        return NO_REFERENCE._replace(unsettled=True)
    return Reference(patterns[sure] * sign[sure, None].astype(np.int8))


def read_reference(folder: Path) -> Reference:
    """The reference of a prepared set; none where its films were not compared.

    Raises:
        InputError: the file is damaged.
    """
    try:
        content = json.loads((folder / NAME).read_text(encoding="utf-8"))
        reference = Reference.from_text(content["reference"])
        return reference._replace(unsettled=bool(content["unsettled"]))
    except FileNotFoundError:
        return NO_REFERENCE
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"{folder / NAME}: is damaged; prepare the films again") from error


def _lean(look: Look) -> tuple[int, bool]:
    """Which way a film leans, -1, 0 or 1, and whether clearly: as a chest, else by its details."""
    if abs(look.chest) >= CHEST:
        return (1 if look.chest > 0 else -1), True
    return int(np.sign(look.structure)), abs(look.structure) >= CLEAR_STRUCTURE
