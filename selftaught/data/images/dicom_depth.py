"""How deeply a DICOM file nests its sequences, without reading a value, without recursion.

pydicom reads a sequence within a sequence by recursion, so a hostile file decides how deep it goes.
Element headers are laid out as in PS3.5, 7.1 and 7.5.
"""

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

from selftaught.data.images.limits import BadImage

# Real images nest a handful of levels, structured reports some twenty.
MAX_DEPTH = 64
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
FIRST_PIXELS = 0x7FE00008
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")


class _Open(NamedTuple):
    """A sequence or item that has begun; `end` is its last byte + 1, or -1 up to a delimiter."""

    end: int
    implicit: bool
    kind: str


def check_depth(path: Path, stream: BinaryIO, *, little: bool) -> None:
    """Walk over the element headers up to the pixels.

    Args:
        path: named in the error.
        stream: stands at the first element after the file meta information.
        little: byte order.

    Raises:
        BadImage: sequences are nested more than `MAX_DEPTH` deep.
    """
    # What the header claims is not what counts: pydicom looks at the first element too.
    start = stream.read(6)
    implicit = not (start[4:].isalpha() and start[4:].isupper())
    stream.seek(-len(start), 1)
    opened: list[_Open] = []
    depth = 0
    while len(head := stream.read(8)) == 8:
        group, element, length = struct.unpack("<HHI" if little else ">HHI", head)
        tag = group << 16 | element
        if FIRST_PIXELS <= tag < ITEM and not opened:
            return
        inside = opened[-1] if opened else _Open(-1, implicit, "")
        if tag in (ITEM_END, SEQUENCE_END):
            if opened:
                depth -= opened.pop().kind == "sequence"
        elif tag == ITEM:
            if inside.kind == "fragments":
                stream.seek(length, 1)
            else:
                opened.append(_Open(_end(stream, length), inside.implicit, "item"))
        else:
            kind, implied, length = _value(tag, head, length, stream, inside.implicit, little)
            if kind == "plain":
                stream.seek(length, 1)
            else:
                depth += kind == "sequence"
                opened.append(_Open(_end(stream, length), implied, kind))
        if depth > MAX_DEPTH:
            raise BadImage(path, f"DICOM sequences are nested more than {MAX_DEPTH} levels deep")
        while opened and 0 <= opened[-1].end <= stream.tell():
            depth -= opened.pop().kind == "sequence"


def _value(
    tag: int, head: bytes, length: int, stream: BinaryIO, implicit: bool, little: bool
) -> tuple[str, bool, int]:
    """What follows an element's header: plain, sequence or fragments; how; and how many bytes."""
    if implicit:
        from pydicom.datadict import dictionary_has_tag, dictionary_VR

        known = dictionary_has_tag(tag) and dictionary_VR(tag) == "SQ"
        return ("sequence" if known or length == UNDEFINED else "plain"), True, length
    kind = head[4:6]
    if kind not in LONG:
        return "plain", False, struct.unpack("<H" if little else ">H", head[6:8])[0]
    rest = stream.read(4)
    length = struct.unpack("<I" if little else ">I", rest)[0] if len(rest) == 4 else 0
    if kind == b"SQ":
        return "sequence", False, length
    if length != UNDEFINED:
        return "plain", False, length
    # Of unknown type and length: a sequence without types (PS3.5, 6.2.2).
    return ("sequence", True, length) if kind == b"UN" else ("fragments", False, length)


def _end(stream: BinaryIO, length: int) -> int:
    return -1 if length == UNDEFINED else stream.tell() + length
