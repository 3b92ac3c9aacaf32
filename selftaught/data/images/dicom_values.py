"""Numbers and words of DICOM elements: each is read whole, or the file is refused by name.

Nothing that looks like text is quoted: where lengths are damaged, it may be a patient's.
"""

import math
import re
import struct
from pathlib import Path

import numpy as np

from selftaught.data.images.dicom_elements import Element, Elements
from selftaught.data.images.limits import BadImage

BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
WORDS = ("US or SS", "US or OW", "US or SS or OW", "OW")
NUMBER = re.compile(rb"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")
QUOTABLE = re.compile(rb"[0-9+\-.,eE]{1,16}|[+-]?(nan|inf|infinity)", re.IGNORECASE)
WORD = re.compile(r"[A-Z0-9_ ]{1,16}")
BLANK = b" \0\t\r\n"


def numbers(
    path: Path, elements: Elements, name: str, *, signed: bool = False
) -> list[float | None]:
    """All values of an element, whatever its value representation.

    Args:
        path: named in errors.
        elements: of the file.
        name: keyword.
        signed: how 16 bits are read whose representation depends on the pixels'.

    Returns:
        One number for each value, None for an empty one; nothing where the element is absent or
        empty.

    Raises:
        BadImage: something is no number, or not finite.
    """
    element = elements.get(name)
    if element is None:
        return []
    kind = ("SS" if signed else "US") if element.kind in WORDS else element.kind
    if kind not in BINARY:
        if not element.value.strip(BLANK):
            return []
        return [_from_text(path, name, part) for part in element.value.split(b"\\")]
    size = struct.calcsize(BINARY[kind])
    count, left = divmod(len(element.value), size)
    if left:
        raise BadImage(
            path, f"{name} of {len(element.value)} bytes; allowed: {size} for each value"
        )
    values = struct.unpack(f"{'<' if element.little else '>'}{count}{BINARY[kind]}", element.value)
    for value in values:
        if not math.isfinite(value):
            raise BadImage(path, f"{name} {value:g}; allowed: a finite number")
    return list(values)


def number(path: Path, elements: Elements, name: str, *, signed: bool = False) -> float | None:
    """The one number of an element, None where it is absent or empty.

    Raises:
        BadImage: it is no finite number, or not one.
    """
    values = numbers(path, elements, name, signed=signed)
    if len(values) > 1:
        raise BadImage(path, f"{name} has {len(values)} values; allowed: one")
    return values[0] if values else None


def integer(
    path: Path, elements: Elements, name: str, least: int, most: int, *, signed: bool = False
) -> int | None:
    """The one whole number of an element, None where it is absent or empty.

    Raises:
        BadImage: it is no whole number from `least` to `most`, or not one.
    """
    value = number(path, elements, name, signed=signed)
    if value is None:
        return None
    if value != int(value) or not least <= value <= most:
        raise BadImage(path, f"{name} {value:g}; allowed: whole numbers from {least} to {most}")
    return int(value)


def word(path: Path, elements: Elements, name: str, allowed: tuple[str, ...]) -> str:
    """The one code word of an element, "" where it is absent or empty.

    Raises:
        BadImage: it is none of those allowed.
    """
    element = elements.get(name)
    text = element.value.strip(BLANK).decode("latin-1").upper() if element is not None else ""
    if text and text not in allowed:
        shown = f" {text!r}" if WORD.fullmatch(text) else " of unknown value"
        raise BadImage(path, f"{name}{shown}; allowed: {', '.join(allowed)}")
    return text


def words_of_16_bits(element: Element) -> np.ndarray:
    """The bytes of a table as (N,) uint16 words, in this machine's byte order."""
    data = element.value[: len(element.value) // 2 * 2]
    # A string of bytes has no words to be turned.
    little = element.little or element.kind in ("OB", "UN")
    return np.frombuffer(data, "<u2" if little else ">u2").astype(np.uint16)


def _from_text(path: Path, name: str, part: bytes) -> float | None:
    part = part.strip(BLANK)
    if not part:
        return None
    if NUMBER.fullmatch(part) and math.isfinite(value := float(part)):
        return value
    shown = f" {part.decode('ascii')!r}" if QUOTABLE.fullmatch(part) else ""
    raise BadImage(path, f"{name}{shown} is no finite decimal number, such as 1 or -0.5")


def group(elements: Elements, macro: str, names: tuple[str, ...]) -> Elements:
    """Where the only frame's values are: in the functional group of an enhanced image, or outside.

    Args:
        elements: of the file.
        macro: keyword of the group's sequence.
        names: one of these must have a value for the group to count.
    """
    for groups in ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"):
        for item in items(elements, groups)[:1]:
            for inner in items(item, macro)[:1]:
                if any(name in inner and _has_value(inner[name]) for name in names):
                    return inner
    return elements


def items(elements: Elements, name: str) -> list[Elements]:
    """The items of a sequence that hold a value; none where it is absent."""
    element = elements.get(name)
    return [one for one in element.items if any(map(_has_value, one.values()))] if element else []


def _has_value(element: Element) -> bool:
    return bool(element.value or element.items)
