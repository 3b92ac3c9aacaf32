"""The elements of a DICOM file that describe pixels, as their bytes stand in the file.

Read here and not by pydicom, whose settings (`pydicom.config`) belong to the host program: they
change how it reads values. Nothing else is read, so that identifiers never enter the process.
Sequences are walked without recursion: a hostile file decides how deep they go. Element headers are
laid out as in PS3.5, 7.1 and 7.5.
"""

import functools
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

from selftaught.data.images.limits import BadImage

# Real images nest a handful of levels, structured reports some twenty.
MAX_DEPTH = 64
# No table is longer than 65,536 words.
MAX_VALUE = 2**20
UNDEFINED = 0xFFFFFFFF
ITEM, ITEM_END, SEQUENCE_END = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD
PIXELS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
SHORT = tuple(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
LONG = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
# What old writers state of elements that they do not know, instead of UN.
UNKNOWN = (b"??", b"  ")
META = ("MediaStorageSOPClassUID", "TransferSyntaxUID")
IMAGE = (
    *("SOPClassUID", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("NumberOfFrames", "Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit"),
    *("PixelRepresentation", "PixelPresentation", "PixelDataProviderURL"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence"),
    *("WindowCenter", "WindowWidth", "VOILUTFunction", "VOILUTSequence"),
    *("LUTDescriptor", "LUTData", "PresentationLUTShape", "PresentationLUTSequence"),
    *(
        f"{part}{color}PaletteColorLookupTable{piece}"
        for color in ("Red", "Green", "Blue", "Alpha")
        for part, piece in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
    ),
    *("ShutterShape", "ShutterPresentationValue"),
    *("ShutterLeftVerticalEdge", "ShutterRightVerticalEdge"),
    *("ShutterUpperHorizontalEdge", "ShutterLowerHorizontalEdge"),
    *("CenterOfCircularShutter", "RadiusOfCircularShutter", "VerticesOfThePolygonalShutter"),
    # Where enhanced images of one frame keep the same elements.
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    *("PixelMeasuresSequence", "PixelValueTransformationSequence", "FrameVOILUTSequence"),
    "FrameDisplayShutterSequence",
)
# How a film was taken; no identifier among them.
ACQUISITION = ("Modality", "BodyPartExamined", "ViewPosition", "BitsStored")
DOSE = ("KVP", "Exposure", "ExposureInuAs")


class Element(NamedTuple):
    """One element.

    Attributes:
        kind: its value representation by the file, or by the standard where the file states none.
        value: its bytes; none of a sequence.
        little: their byte order.
        items: of a sequence.
    """

    kind: str
    value: bytes
    little: bool
    items: "list[Elements]"


Elements = dict[str, Element]


@dataclass
class Header:
    """What precedes the pixels.

    Attributes:
        elements: by keyword.
        pixels: keyword of the pixel element that follows, "" for none.
        kind: its value representation, "" where the file states none.
        length: its bytes, or `UNDEFINED` for fragments.
    """

    elements: Elements = field(default_factory=dict)
    pixels: str = ""
    kind: str = ""
    length: int = 0


def read_elements(
    path: Path,
    stream: BinaryIO,
    *,
    little: bool,
    meta: bool = False,
    whole: bool = True,
    names: tuple[str, ...] = IMAGE,
) -> Header:
    """Read the elements up to the pixels, whose first byte is the stream's next one afterwards.

    Args:
        path: named in errors.
        stream: stands at the first element.
        little: byte order.
        meta: the file meta information instead, up to the first element of another group.
        whole: the stream goes up to the file's end; else elements may be cut.
        names: keywords of the elements to keep.

    Raises:
        BadImage: sequences are nested more than `MAX_DEPTH` deep; an element stands twice, is
            longer than any of its kind, or ends behind the file.
    """
    walk = _Walk(path, stream, little, _wanted(META if meta else names), whole)
    for tag, head, length in walk:
        if meta and tag >> 16 != 2:
            stream.seek(-8, os.SEEK_CUR)
            break
        if tag in PIXELS and walk.at_top:
            kind, _, walk.header.length = walk.value(tag, head, length)
            walk.header.pixels, walk.header.kind = PIXELS[tag], kind
            if whole:
                _read_behind(walk)
            break
        walk.step(tag, head, length)
    return walk.header


def _read_behind(walk: "_Walk") -> None:
    """Go over what follows the pixels: some programs append elements, whatever their tags."""
    place = walk.stream.tell()
    try:
        walk.pass_over(walk.header.length)
        for tag, head, length in walk:
            if not tag >> 16:
                break
            walk.step(tag, head, length)
    except _Twice:
        raise
    except BadImage:  # No elements: files may be padded.
        pass
    walk.stream.seek(place)


def begins_elements(start: bytes) -> bool:
    """Whether a file begins with elements: DICOM without preamble, which old archives hold.

    Args:
        start: the file's first 132 bytes, or all it has.
    """
    for order in "<>":
        if len(start) < 12:
            return False
        group, element, length = struct.unpack(f"{order}HHI", start[:8])
        if group not in (2, 8) or element > 0x3000:
            continue
        if _states_kind(start):
            return start[4:6] in SHORT or (start[4:6] in LONG and start[6:8] == b"\0\0")
        # Where kinds are not stated, which is in little endian only, the next tag must fit too.
        following = start[8 + length : 12 + length]
        if order == "<" and group == 8 and len(following) == 4:
            next_group, next_element = struct.unpack("<HH", following)
            return next_group == 8 and next_element > element
    return False


class _Twice(BadImage):
    """An element has two values."""


class _Open(NamedTuple):
    """A sequence, item or run of fragments that has begun.

    `end` is its last byte + 1, or -1 up to a delimiter. What is not wanted has neither elements
    nor items to keep.
    """

    end: int
    implicit: bool
    form: str
    elements: Elements | None = None
    items: list[Elements] | None = None


class _Walk:
    """The state of one walk over elements."""

    def __init__(
        self, path: Path, stream: BinaryIO, little: bool, wanted: dict[int, str], whole: bool
    ) -> None:
        self.path, self.stream, self.little, self.wanted = path, stream, little, wanted
        self.header = Header()
        start = stream.tell()
        self.size = stream.seek(0, os.SEEK_END) if whole else None
        stream.seek(start)
        # Not what the transfer syntax claims counts, but how the first element looks.
        self.opened = [_Open(-1, not self._kinds_follow(), "item", self.header.elements)]
        self.depth = 0

    def __iter__(self) -> Iterator[tuple[int, bytes, int]]:
        """Tag, head and what may be the length of each element that is stepped over meanwhile."""
        while len(head := self.stream.read(8)) == 8:
            group, element, length = struct.unpack("<HHI" if self.little else ">HHI", head)
            yield group << 16 | element, head, length

    def pass_over(self, length: int) -> None:
        """Go over pixels, or into their fragments."""
        if length == UNDEFINED:
            self._begin("fragments", length, implicit=False)
        else:
            self.stream.seek(length, os.SEEK_CUR)

    @property
    def at_top(self) -> bool:
        return len(self.opened) == 1

    def step(self, tag: int, head: bytes, length: int) -> None:
        """Go over one element, or the beginning or end of what holds elements."""
        inside = self.opened[-1]
        if tag in (ITEM_END, SEQUENCE_END):
            # Some writers also end what states its length, and has ended before.
            if not self.at_top and (tag == ITEM_END) == (inside.form == "item"):
                self._close()
        elif tag != ITEM:
            self._element(tag, head, length)
        elif inside.form == "fragments":
            self.stream.seek(length, os.SEEK_CUR)
        else:
            elements: Elements | None = None
            if inside.items is not None:
                elements = {}
                inside.items.append(elements)
            # They are not always rewritten when their sequence becomes one of unknown kind.
            implicit = inside.implicit and (self.opened[0].implicit or not self._kinds_follow())
            self._begin("item", length, implicit, elements=elements)
        while not self.at_top and 0 <= self.opened[-1].end <= self.stream.tell():
            self._close()

    def _kinds_follow(self) -> bool:
        """Whether the next element states its kind."""
        head = self.stream.read(8)
        self.stream.seek(-len(head), os.SEEK_CUR)
        return _states_kind(head)

    def value(self, tag: int, head: bytes, length: int) -> tuple[str, str, int]:
        """The kind that an element states, "" for none; its form; how many bytes follow."""
        unknown = head[4:6] in UNKNOWN
        if self.opened[-1].implicit or not (unknown or _states_kind(head)):
            known = _standard_kind(tag) == "SQ"
            return "", "sequence" if known or length == UNDEFINED else "plain", length
        kind = b"UN" if unknown else head[4:6]
        if kind not in LONG:
            order = "<H" if self.little else ">H"
            return kind.decode(), "plain", struct.unpack(order, head[6:8])[0]
        rest = self.stream.read(4)
        length = struct.unpack("<I" if self.little else ">I", rest)[0] if len(rest) == 4 else 0
        if kind == b"SQ" or (kind == b"UN" and length == UNDEFINED):
            return kind.decode(), "sequence", length
        return kind.decode(), "fragments" if length == UNDEFINED else "plain", length

    def _element(self, tag: int, head: bytes, length: int) -> None:
        inside = self.opened[-1]
        kind, form, length = self.value(tag, head, length)
        name = self.wanted.get(tag) if inside.elements is not None else None
        if name and kind == "UN" and _standard_kind(tag) == "SQ":
            form = "sequence"
        # Of unknown kind: a sequence whose elements should state none (PS3.5, 6.2.2).
        implicit = inside.implicit or kind in ("", "UN")
        if form == "fragments":
            self._begin(form, length, implicit)
        elif form == "sequence":
            items: list[Elements] | None = None
            if name:
                items = []
                self._keep(name, Element("SQ", b"", self.little, items))
            self._begin(form, length, implicit, items=items)
        elif name:
            stated = kind if kind not in ("", "UN") else _standard_kind(tag)
            self._keep(name, Element(stated, self._bytes(name, length), self.little, []))
        else:
            self._check_end(length)
            self.stream.seek(length, os.SEEK_CUR)

    def _keep(self, name: str, element: Element) -> None:
        elements = self.opened[-1].elements
        assert elements is not None
        if name in elements and elements[name] != element:
            raise _Twice(self.path, f"{name} stands twice, with different values")
        elements[name] = element

    def _bytes(self, name: str, length: int) -> bytes:
        if length > MAX_VALUE:
            raise BadImage(self.path, f"{name} of {length} bytes; allowed: up to {MAX_VALUE}")
        self._check_end(length)
        return self.stream.read(length)

    def _check_end(self, length: int) -> None:
        if self.size is not None and self.stream.tell() + length > self.size:
            raise BadImage(self.path, "truncated DICOM: the file ends within its elements")

    def _begin(
        self,
        form: str,
        length: int,
        implicit: bool,
        elements: Elements | None = None,
        items: list[Elements] | None = None,
    ) -> None:
        end = -1 if length == UNDEFINED else self.stream.tell() + length
        self.opened.append(_Open(end, implicit, form, elements, items))
        self.depth += form == "sequence"
        if self.depth > MAX_DEPTH:
            reason = f"DICOM sequences are nested more than {MAX_DEPTH} levels deep"
            raise BadImage(self.path, reason)

    def _close(self) -> None:
        self.depth -= self.opened.pop().form == "sequence"


def _states_kind(head: bytes) -> bool:
    return head[4:6].isalpha() and head[4:6].isupper()


@functools.cache
def _wanted(names: tuple[str, ...]) -> dict[int, str]:
    from pydicom.datadict import tag_for_keyword

    tags = {tag_for_keyword(name): name for name in names}
    return {tag: name for tag, name in tags.items() if tag is not None}


@functools.cache
def _standard_kind(tag: int) -> str:
    """The value representation by the standard's dictionary, such as "US or SS"; "" if unknown."""
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    return dictionary_VR(tag) if dictionary_has_tag(tag) else ""
