"""Which cells name the same person, study or body part, however they are written.

Two images of one patient in train and test make every figure too good, so that cells count as one
name where a reader would say so: the cost of joining two people is one group more of two.
"""

import re
import unicodedata
import warnings
from collections import defaultdict
from collections.abc import Sequence

from selftaught.data.manifest.check import show
from selftaught.environment import global_rank

# Columns that decide groups, leaks and subgroups.
NAMES = ("patient", "study", "body_part", "group")
# What other programs write for an empty cell. "NA" is left out: it is also a name.
EMPTY = frozenset(("nan", "<na>", "nat", "none", "null", "n/a", "#n/a"))
# Letters and marks that look like a blank but are none to `str.isspace`, and those that choose
# between the forms of one ideograph.
FILLERS = frozenset("\u034f\u115f\u1160\u2800\u3164\uffa0") | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)
# Office programs turn - and ' into these, and people type accents; a minus is no dash to Unicode.
ALIKE = str.maketrans({**dict.fromkeys("‐‑‒–—―−", "-"), **dict.fromkeys("‘’‛ʼ′´`", "'")})
WHOLE = re.compile(r"([+-]?\d{1,400})(?:\.0*|,00?)?")
# As float columns are written; without its sign, 12e4 may be part of a hexadecimal name.
FLOAT = re.compile(r"[+-]?\d{1,20}(?:\.\d{0,20})?e\+\d{1,3}")


class ManifestWarning(UserWarning):
    """A list or a folder can be read, but not quite as it stands; the message says what differs."""


def cleaned(text: str) -> str:
    """A cell without what nobody sees: outer and repeated blanks of every kind, format characters.

    Letters are composed (NFC). What programs write for an empty cell becomes "".
    """
    if not text.isascii() or not text.isprintable():
        seen = (c for c in text if c.isspace() or not _unseen(c))
        text = unicodedata.normalize("NFC", "".join(seen))
    text = " ".join(text.split())
    return "" if text.lower() in EMPTY else text


def _unseen(character: str) -> bool:
    return character in FILLERS or unicodedata.category(character) in ("Cc", "Cf")


def identity(text: str) -> str:
    """What two cells share that name the same.

    Case, width (full-width letters and digits), dashes and apostrophes do not count, nor does how
    a whole number is written: 7, 07, +7, 7.0 and 7,0 are one name, as are 1.2e+3 and 1200. Other
    numbers are text, as 1.1 and 1.10 may be two visits.
    """
    folded = cleaned(text).lower().translate(ALIKE)  # NFKC would make a blank of an accent
    if not folded.isascii():
        folded = unicodedata.normalize("NFKC", folded).casefold().translate(ALIKE)
        folded = " ".join(unicodedata.normalize("NFKC", folded).split())
    if whole := WHOLE.fullmatch(folded):
        return str(int(whole[1]))
    if FLOAT.fullmatch(folded):
        from decimal import Decimal

        number = Decimal(folded)
        return str(int(number)) if number == int(number) else folded
    return folded


def one_spelling(cells: Sequence[str], column: str, name: str) -> list[str]:
    """The cells, each name in one spelling.

    A name that is always written alike stays as it is, for its group's draw depends on it. Of
    several spellings the shortest is kept, cleaned, and where they are as long, the first by the
    alphabet: the order of the cells does not count. Names that differ in more than what nobody sees
    are joined with a warning; another names a number that a spreadsheet has rounded.

    Args:
        cells: N cells.
        column: for the warning.
        name: of the list, for the warning.
    """
    alike: dict[str, list[str]] = defaultdict(list)
    for cell in set(cells):
        alike[identity(cell)].append(cell)
    kept: dict[str, str] = {}
    joined: list[list[str]] = []
    for key, written in alike.items():
        tidy = sorted({cleaned(cell) for cell in written}, key=lambda text: (len(text), text))
        kept |= dict.fromkeys(written, tidy[0] if len(written) > 1 or not key else written[0])
        if len(tidy) > 1:
            joined.append(sorted(tidy))
    if joined:
        first, second, *_ = min(joined)
        others = f", and {len(joined) - 1} more names likewise" if len(joined) > 1 else ""
        warn(
            f"{name}: {column} {show(first)} and {show(second)} count as one{others}; allowed: "
            "other names where they are two"
        )
    rounded = sorted(cell for (cell, *more) in alike.values() if not more and _is_float(cell))
    if rounded:
        warn(
            f"{name}: {column} {show(rounded[0])} may stand for several, as its last digits are "
            f"lost; {len(rounded)} such names; allowed: whole numbers or text (in a spreadsheet: "
            "format the column as text, then save again)"
        )
    return [kept[cell] for cell in cells]


def _is_float(cell: str) -> bool:
    return FLOAT.fullmatch(cleaned(cell).lower()) is not None


def warn(text: str) -> None:
    """Warn on the first rank alone; a text that was given before is not repeated."""
    if global_rank() == 0:
        warnings.warn(text, ManifestWarning, stacklevel=2)
