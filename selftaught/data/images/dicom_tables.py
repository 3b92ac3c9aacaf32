"""Lookup tables of DICOM (PS3.3 C.7.6.3.1.5, C.7.9, C.11.1 and C.11.2)."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.images.dicom_elements import Element, Elements
from selftaught.data.images.dicom_values import WORDS, numbers, words_of_16_bits
from selftaught.data.images.limits import BadImage

DISCRETE, LINEAR, INDIRECT = 0, 1, 2


class Table(NamedTuple):
    """A lookup table.

    Attributes:
        first: the value that the first entry stands for.
        entries: (N,) float64.
        bits: that the largest entry takes. What the descriptor says is often the room for an entry
            instead: 16 bits for entries up to 4095.
    """

    first: int
    entries: np.ndarray
    bits: int

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Entries for values; those outside get the first or last entry."""
        index = np.clip(values - self.first, 0, len(self.entries) - 1)
        return self.entries[index.astype(np.int64)]


def table(
    path: Path, elements: Elements, descriptor: str, data: str, lowest: float, highest: float
) -> Table:
    """Read one table.

    Args:
        path: named in errors.
        elements: that hold it.
        descriptor: keyword.
        data: keyword.
        lowest: of the values that are to go through it, which tell the sign of its first.
        highest: of these.

    Raises:
        BadImage: numbers are missing or not allowed, or descriptor and data do not agree.
    """
    count, first, bits = _descriptor(path, elements, descriptor)
    # Either sign is written in either representation.
    if first >= 2**15 and (lowest < 0 or first > highest):
        first -= 2**16
    element = elements.get(data)
    if element is None or not element.value:
        raise BadImage(path, f"{descriptor} without {data}")
    entries = _entries(path, element, data, count, bits)
    return Table(first, entries, max(1, int(entries.max())).bit_length())


def segmented(
    path: Path, elements: Elements, descriptor: str, data: str, lowest: float, highest: float
) -> Table:
    """Read one table whose data are segments (PS3.3 C.7.9.2); other arguments as `table`."""
    count, first, bits = _descriptor(path, elements, descriptor)
    if first >= 2**15 and (lowest < 0 or first > highest):
        first -= 2**16
    words = words_of_16_bits(elements[data])
    size = 1 if bits <= 8 else 2
    codes = words.astype("<u2").view(np.uint8) if size == 1 else words
    entries: list[int] = []
    _expand(path, data, codes.tolist(), size, entries, count)
    if len(entries) != count:
        raise BadImage(path, f"{data} of {len(entries)} entries; {descriptor} says {count}")
    return Table(first, np.array(entries, np.float64), max(1, max(entries)).bit_length())


def _descriptor(path: Path, elements: Elements, name: str) -> tuple[int, int, int]:
    """Number of entries, first value mapped (unsigned where binary), bits of an entry."""
    element = elements.get(name)
    if element is not None and element.kind in ("SS", *WORDS):
        element = element._replace(kind="US")
    values = numbers(path, {name: element}, name) if element is not None else []
    whole = [int(value) for value in values if value is not None and value == int(value)]
    if len(values) != 3 or len(whole) != 3:
        raise BadImage(path, f"{name} of {len(values)} values; allowed: three whole numbers")
    count, first, bits = whole
    if not (0 <= count <= 2**16 and -(2**15) <= first < 2**16 and 1 <= bits <= 16):
        raise BadImage(
            path, f"{name} {count}, {first}, {bits}; allowed: up to 65536 entries of 1 to 16 bits"
        )
    return count or 2**16, first, bits


def _entries(path: Path, element: Element, name: str, count: int, bits: int) -> np.ndarray:
    length = len(element.value)
    words = words_of_16_bits(element)
    if length == 2 * count:
        return words.astype(np.int16 if element.kind == "SS" else np.uint16).astype(np.float64)
    if bits <= 8 and length in (count, count + count % 2):
        # Two entries in a word, the first in its low byte.
        if element.kind in ("OB", "UN") or length % 2:
            return np.frombuffer(element.value, np.uint8)[:count].astype(np.float64)
        return words.astype("<u2").view(np.uint8)[:count].astype(np.float64)
    raise BadImage(
        path, f"{name} of {length} bytes; its descriptor says {count} entries of {bits} bits"
    )


def _expand(
    path: Path, name: str, codes: list[int], size: int, entries: list[int], count: int
) -> None:
    """Append what segments stand for; `count` entries at most."""
    damaged = BadImage(path, f"{name}: a segment is cut or of unknown kind")
    # Position, and how many segments are left from there; -1 up to the end.
    todo = [(0, -1)]
    while todo:
        position, left = todo.pop()
        while left and position + 1 < len(codes) and len(entries) < count:
            kind, length = codes[position : position + 2]
            position, left = position + 2, left - 1
            if kind == DISCRETE and position + length <= len(codes):
                entries += codes[position : position + length]
                position += length
            elif kind == LINEAR and position < len(codes) and entries and length:
                steps = np.linspace(entries[-1], codes[position], length + 1)[1:]
                entries += np.rint(steps).astype(int).tolist()
                position += 1
            elif kind == INDIRECT and position + 4 // size <= len(codes) and len(todo) < 2:
                place = codes[position : position + 4 // size]
                offset = sum(one << 8 * size * i for i, one in enumerate(place))
                todo += [(position + 4 // size, left), (offset // size, length)]
                break
            else:
                raise damaged
        if len(entries) > count:
            raise damaged
