"""JPEG: what its header says, and whether every block of its picture was decoded.

Decoders fill what is missing with grey and go on; libjpeg only counts warnings. So a file is read
when its picture has been decoded once without one. Markers are laid out as in ITU-T T.81, B.1.
"""

import re
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.images import raster
from selftaught.data.images.limits import BadImage, check_size, not_read

SOI, EOI, SOS, APP0, APP14 = 0xD8, 0xD9, 0xDA, 0xE0, 0xEE
FRAMES = {
    0xC0: "",  # baseline
    0xC1: "",  # extended sequential
    0xC2: "",  # progressive
    0xC3: "lossless",
    0xC5: "hierarchical",
    0xC6: "hierarchical",
    0xC7: "hierarchical",
    # An arithmetic coder drops zeros at the end: nobody can tell whether such a file was cut.
    0xC9: "arithmetic-coded",
    0xCA: "arithmetic-coded",
    0xCB: "arithmetic-coded lossless",
    0xCD: "hierarchical",
    0xCE: "hierarchical",
    0xCF: "hierarchical",
}
PROGRESSIVE, LOSSLESS, JPEG_LS = 0xC2, 0xC3, 0xF7
TABLES = (0xC4, 0xDB, 0xDD)  # Huffman, quantisation, restart interval
# A marker of a segment: 0 is a stuffed byte, D0 to D7 restart a scan, FF fills.
MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")
LEFT_OVER = re.compile(r"(\d+) extraneous bytes before marker 0xd9")


class Segment(NamedTuple):
    """A marker, and where its content begins and ends; a scan's includes its coded data."""

    marker: int
    start: int
    end: int


def header(path: Path) -> tuple[int, int]:
    """(height, width) of an upright JPEG, from its header.

    Raises:
        BadImage: the header is damaged, the image above 64 Mpx, or of a kind that is not read.
    """
    data = path.read_bytes()
    _check_frame(path, data, list(_segments(path, data)))
    with raster.reasons(path, "JPEG"):
        return raster.header(path, "JPEG", BytesIO(data))


def read(path: Path) -> np.ndarray:
    """Decode a JPEG completely.

    Returns:
        (H, W) uint8.

    Raises:
        BadImage: as `header`; also where a block of the picture is missing or damaged.
    """
    data = path.read_bytes()
    check(path, data)
    with raster.reasons(path, "JPEG"):
        return raster.read(path, "JPEG", BytesIO(data))


def is_plain(path: Path) -> bool:
    """Whether any decoder gives the levels of `read`: upright, and grey or YCbCr.

    Raises:
        BadImage: as `header`.
    """
    data = path.read_bytes()
    segments = list(_segments(path, data))
    frame = _check_frame(path, data, segments)
    if data[frame.start + 5] == 4 or _adobe(data, segments) == 0:
        return False
    names = data[frame.start + 6 : frame.end : 3]
    with raster.reasons(path, "JPEG"):
        upright = raster.turn(path, "JPEG", BytesIO(data)) == 1
    return upright and names != b"RGB"


def check(path: Path, data: bytes, *, inside: bool = False) -> None:
    """Refuse a JPEG of a kind that is not read, and one whose picture is not complete.

    Args:
        path: named in the error.
        data: the whole file or codestream.
        inside: of another format, which states the colours.

    Raises:
        BadImage: one line with the reason.
    """
    segments = list(_segments(path, data))
    frame = _check_frame(path, data, segments, inside=inside)
    if frame.marker == PROGRESSIVE:
        _check_progression(path, data, segments)
    _decode(path, data, segments, frame)


def _segments(path: Path, data: bytes) -> Iterator[Segment]:
    """All segments up to the end marker."""
    short = BadImage(path, f"truncated JPEG: ends after {len(data)} bytes without its end marker")
    position = 2
    while True:
        # As libjpeg does: what is between segments is passed over.
        following = MARKER.search(data, position)
        if following is None:
            raise short
        position = following.end()
        marker = data[position - 1]
        if marker == EOI:
            return
        if marker == JPEG_LS:
            # Its coded data may look like markers.
            raise not_read(path, "a JPEG of the JPEG-LS kind")
        length = int.from_bytes(data[position : position + 2], "big")
        end = position + length
        if end > len(data):
            raise short
        if length < 2:
            raise BadImage(path, f"damaged JPEG: a segment of {length} bytes at byte {position}")
        start = position + 2
        if marker == SOS:
            after = MARKER.search(data, end)
            end = after.start() if after else len(data)
        yield Segment(marker, start, end)
        position = end


def _check_frame(
    path: Path, data: bytes, segments: list[Segment], *, inside: bool = False
) -> Segment:
    """The segment that describes the picture; refuses kinds that are not read."""
    frames = [segment for segment in segments if segment.marker in FRAMES]
    if not frames or frames[0].end - frames[0].start < 6:
        raise BadImage(path, "damaged JPEG: no description of its picture")
    frame = frames[0]
    precision, height, width, components = _described(data, frame)
    kind = FRAMES[frame.marker]
    if len(frames) > 1:
        kind = "hierarchical"
    if kind and frame.marker != LOSSLESS:
        raise not_read(path, f"a JPEG of the {kind} kind")
    if precision != 8:
        raise not_read(path, f"a JPEG of {precision} bits a sample")
    if height == 0:
        raise not_read(path, "a JPEG that states its height only behind the picture")
    check_size(path, height, width)
    if components not in (1, 3, 4) or frame.end - frame.start != 6 + 3 * components:
        raise not_read(path, f"a JPEG of {components} components")
    if frame.marker == LOSSLESS and components > 1:
        raise not_read(path, "a lossless JPEG in colour")
    if not inside:
        _check_color(path, data, segments, components)
    return frame


def _described(data: bytes, frame: Segment) -> tuple[int, int, int, int]:
    """Precision in bits, height, width, number of components."""
    start = frame.start
    height = int.from_bytes(data[start + 1 : start + 3], "big")
    width = int.from_bytes(data[start + 3 : start + 5], "big")
    return data[start], height, width, data[start + 5]


def _check_color(path: Path, data: bytes, segments: list[Segment], components: int) -> None:
    """Refuse components whose colours are not stated, or stated in two ways."""
    transform = _adobe(data, segments)
    allowed = {1: (None, 0, 1, 2), 3: (None, 0, 1), 4: (0, 2)}[components]
    if transform not in allowed:
        stated = "none" if transform is None else transform
        raise not_read(path, f"a JPEG of {components} components with Adobe transform {stated}")
    jfif = any(
        one.marker == APP0 and data[one.start : one.start + 5] == b"JFIF\0" for one in segments
    )
    if components == 3 and jfif and transform == 0:
        raise not_read(path, "a JPEG that is YCbCr by its JFIF and RGB by its Adobe marker")


def _adobe(data: bytes, segments: list[Segment]) -> int | None:
    """The colour transform of Adobe's marker: 0 none, 1 YCbCr, 2 YCCK."""
    for marker, start, end in segments:
        if marker == APP14 and data[start : start + 5] == b"Adobe" and end - start >= 12:
            return data[start + 11]
    return None


def _check_progression(path: Path, data: bytes, segments: list[Segment]) -> None:
    """Refuse a progressive JPEG whose scans stop before the last bit of a coefficient."""
    frame = next(segment for segment in segments if segment.marker == PROGRESSIVE)
    components = data[frame.start + 6 : frame.end : 3]
    left = {(name, k) for name in components for k in range(64)}
    for marker, start, _ in segments:
        if marker != SOS:
            continue
        names = data[start + 1 : start + 1 + 2 * data[start] : 2]
        first, last, bits = data[start + 1 + 2 * data[start] :][:3]
        if bits & 15 == 0:
            left -= {(name, k) for name in names for k in range(first, last + 1)}
    if left:
        raise BadImage(
            path,
            "truncated JPEG: its scans stop before the finest one; "
            "get the whole file, or save it again",
        )


def _decode(path: Path, data: bytes, segments: list[Segment], frame: Segment) -> None:
    """Decode the blocks, small and once; refuse at the first warning about them."""
    import simplejpeg

    # Eight times smaller, which leaves out no coded bit but most of the transform. There is no
    # such thing as a smaller lossless picture: libjpeg-turbo 3.1 writes it beyond its memory.
    least = 0 if frame.marker == LOSSLESS else 1
    clean = _clean(data, segments, frame)
    try:
        simplejpeg.decode_jpeg(clean, "GRAY", fastdct=True, min_height=least, min_width=least)
    except ValueError as error:
        text = str(error)
    else:
        return
    height, width = _described(data, frame)[1:3]
    if "premature end" in text.lower():
        reason = f"truncated JPEG: its data ends before the last block of {width} x {height} pixels"
        raise BadImage(path, reason) from None
    if left := LEFT_OVER.search(text):
        count, end = int(left[1]), segments[-1].end
        if not data[end - count : end].strip(b"\0"):
            return  # Some encoders pad the end.
        raise BadImage(
            path,
            f"damaged JPEG: {count} bytes of the picture are left over after "
            f"{width} x {height} pixels, the size that its header states",
        )
    raise BadImage(path, f"damaged JPEG: {text}")


def _clean(data: bytes, segments: list[Segment], frame: Segment) -> bytes:
    """The file without what says nothing about blocks, which libjpeg would warn about too."""
    pieces = [b"\xff\xd8"]
    for segment in segments:
        marker, start, end = segment
        if marker == SOS or marker in TABLES or segment == frame:
            piece = bytearray(b"\xff" + bytes([marker]) + data[start - 2 : end])
            if marker == SOS and frame.marker in (0xC0, 0xC1):
                # All coefficients in one scan, whatever it states: some encoders leave 0, 0.
                behind = 4 + 1 + 2 * data[start]
                piece[behind : behind + 3] = b"\0\x3f\0"
            pieces.append(bytes(piece))
    return b"".join((*pieces, b"\xff\xd9"))
