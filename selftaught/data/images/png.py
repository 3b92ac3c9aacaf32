"""PNG: every chunk is verified, and all of the picture is there, before anything is decoded.

Decoders get only the chunks that say how to read samples. Levels are taken as they are stored: what
says how to show, print or measure them (gAMA, cHRM, sRGB, iCCP, mDCV, cLLI, bKGD, hIST, sPLT, pHYs,
sCAL, pCAL, oFFs, sTER, sBIT) is left out. Laid out as in the PNG specification, third edition.
"""

import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.images import raster
from selftaught.data.images.limits import BadImage, check_size, not_read
from selftaught.errors import MachineError

SIGNATURE = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
SAMPLES = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGB_ALPHA: 4}
DEPTHS = {
    GREY: (1, 2, 4, 8, 16),
    RGB: (8, 16),
    PALETTE: (1, 2, 4, 8),
    GREY_ALPHA: (8, 16),
    RGB_ALPHA: (8, 16),
}
# First column and row, and steps, of the seven pictures of an interlaced one.
ADAM7 = (
    *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
    *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
)
CRITICAL = frozenset((b"IHDR", b"PLTE", b"IDAT", b"IEND"))
ONCE = frozenset((b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"sBIT", b"cICP"))
ANIMATION = (b"acTL", b"fcTL")
# Transfer functions of cICP that are not those of an ordinary screen: linear light, PQ, HLG.
OTHER_LIGHT = (8, 16, 18)
PIECE = 2**20

Content = bytes | memoryview
Chunks = dict[bytes, list[Content]]


class _Header(NamedTuple):
    width: int
    height: int
    depth: int
    color: int
    compression: int
    filtering: int
    interlaced: int


def header(path: Path) -> tuple[int, int]:
    """(height, width) of an upright PNG; the size is checked before anything else is read.

    Raises:
        BadImage: no IHDR chunk, above 64 Mpx, or of a kind that is not read.
    """
    head = _header(path)
    chunks = _by_name(path, _chunks(path, path.read_bytes(), strict=False))
    _check_kind(path, head, chunks)
    with raster.reasons(path, "PNG"):
        return raster.header(path, "PNG", BytesIO(_clean(head, {**chunks, b"IDAT": [b""]})))


def read(path: Path) -> np.ndarray:
    """Decode a PNG of any colour type and depth.

    Returns:
        (H, W) uint8 (up to 8 bits a sample) or uint16.

    Raises:
        BadImage: truncated, damaged, animated, too large, or of a kind that is not read.
    """
    head = _header(path)
    chunks = _by_name(path, _chunks(path, path.read_bytes()))
    _check_kind(path, head, chunks)
    _check_pixels(path, head, chunks.get(b"IDAT", []))
    clean = _clean(head, chunks)
    deep = head.depth == 16 and head.color != GREY
    with raster.reasons(path, "PNG"):
        if not deep and not (_plain(head, chunks) and head.depth >= 8):
            colors = len(chunks[b"PLTE"][0]) // 3 if head.color == PALETTE else None
            return raster.read(path, "PNG", BytesIO(clean), colors=colors)
        image = _opencv(path, clean, deep=deep)
        return raster.upright(image, raster.turn(path, "PNG", BytesIO(clean)))


def is_plain(path: Path) -> bool:
    """Whether any decoder gives the levels of `read`: grey, 8 or 16 bits, nothing to be applied.

    Raises:
        BadImage: it is no PNG.
    """
    head = _header(path)
    chunks = _by_name(path, _chunks(path, path.read_bytes(), strict=False))
    return _plain(head, chunks) and head.depth >= 8 and b"eXIf" not in chunks


def stated_bits(path: Path) -> int | None:
    """The depth that samples had before they were written, where a grey PNG states it (sBIT)."""
    head = _header(path)
    stated = _by_name(path, _chunks(path, path.read_bytes(), strict=False)).get(b"sBIT", [b""])[0]
    return stated[0] if head.color == GREY and stated else None


def _header(path: Path) -> _Header:
    with path.open("rb") as handle:
        start = handle.read(33)
    if start[12:16] == b"CgBI":
        raise not_read(path, "a PNG as Apple's tools rewrite them (CgBI)")
    if len(start) < 33 or start[8:16] != b"\0\0\0\x0dIHDR":
        raise BadImage(path, "truncated or damaged PNG: no IHDR chunk")
    head = _Header(*struct.unpack(">IIBBBBB", start[16:29]))
    check_size(path, head.height, head.width)
    if head.depth not in DEPTHS.get(head.color, ()):
        raise BadImage(
            path, f"damaged PNG: colour type {head.color} of {head.depth} bits does not exist"
        )
    if head.filtering == 64:
        raise not_read(path, "a PNG with the filters of MNG")
    if head.compression or head.filtering or head.interlaced > 1:
        raise BadImage(
            path,
            f"damaged PNG: compression {head.compression}, filter {head.filtering}, interlace "
            f"{head.interlaced}; allowed: 0, 0, and 0 or 1",
        )
    return head


def _chunks(path: Path, data: bytes, *, strict: bool = True) -> Iterator[tuple[bytes, Content]]:
    """Name and content of all chunks up to IEND; not strict = without checksums, up to any end."""
    view, position = memoryview(data), len(SIGNATURE)
    while True:
        (length,) = struct.unpack_from(">I", data, position) if position + 4 <= len(data) else (0,)
        end = position + 8 + length
        if end + 4 > len(data):
            if not strict:
                return
            raise BadImage(path, f"truncated PNG: ends after {len(data)} bytes without IEND")
        (stored,) = struct.unpack_from(">I", data, end)
        if strict and zlib.crc32(view[position + 4 : end]) != stored:
            raise BadImage(path, f"damaged PNG: wrong checksum in the chunk at byte {position}")
        name = data[position + 4 : position + 8]
        if name == b"IEND":
            return
        content = view[position + 8 : end]
        yield name, content if name == b"IDAT" else bytes(content)
        position = end + 4


def _by_name(path: Path, chunks: Iterator[tuple[bytes, Content]]) -> Chunks:
    """Contents by name. What is about an animation counts only before the first IDAT."""
    contents: Chunks = {}
    for name, content in chunks:
        if name in ANIMATION and b"IDAT" in contents:
            continue
        contents.setdefault(name, []).append(content)
    for name in sorted(ONCE & contents.keys()):
        if len(contents[name]) > 1:
            raise BadImage(path, f"damaged PNG: {len(contents[name])} chunks {name.decode()}")
    return contents


def _check_kind(path: Path, head: _Header, chunks: Chunks) -> None:
    """Refuse what is sound but not read, and tables that do not fit the header."""
    for name in chunks:
        if name[:1].isupper() and name not in CRITICAL:
            raise not_read(path, f"a PNG with the unknown critical chunk {name!r}")
    stated = [int.from_bytes(content[:4], "big") for content in chunks.get(b"acTL", [])]
    # An animation that states no sensible number is a still picture to everyone.
    if len(stated) == 1 and 0 < stated[0] < 2**31:
        frames = stated[0] + (b"fcTL" not in chunks)
        if frames > 1:
            raise BadImage(path, f"holds {frames} frames; allowed: one image per file")
    light = chunks.get(b"cICP", [b""])[0]
    if light and (len(light) != 4 or light[1] in OTHER_LIGHT or light[2] or light[3] != 1):
        raise not_read(path, f"a PNG of other light or range than a screen's (cICP {light.hex()})")
    colors = len(chunks.get(b"PLTE", [b""])[0])
    if head.color == PALETTE and not (0 < colors <= 3 << head.depth and colors % 3 == 0):
        raise BadImage(path, f"damaged PNG: a palette of {colors} bytes for {head.depth} bits")
    key = len(chunks.get(b"tRNS", [b""])[0])
    fits = {GREY: key == 2, RGB: key == 6, PALETTE: 0 < key <= colors // 3}.get(head.color, True)
    if b"tRNS" in chunks and not fits:
        raise BadImage(path, f"damaged PNG: transparency (tRNS) of {key} bytes")


def _check_pixels(path: Path, head: _Header, parts: list[Content]) -> None:
    """Refuse a picture with fewer or more rows than the header says, and damaged compression."""
    needed, row = _bytes(head)
    inflater, count = zlib.decompressobj(), 0
    try:
        for part in parts:
            while part and not inflater.eof and count < needed + row:
                count += len(inflater.decompress(part, PIECE))
                part = inflater.unconsumed_tail
        if count < needed:
            count += len(inflater.flush())
    except zlib.error as error:
        raise BadImage(path, f"damaged PNG: the pixels cannot be decompressed: {error}") from None
    if count < needed:
        raise BadImage(path, f"truncated PNG: holds {count} of the {needed} bytes of its picture")
    if count >= needed + row:
        raise BadImage(
            path,
            f"damaged PNG: holds more rows than {head.width} x {head.height} pixels, the size that "
            "its header states",
        )


def _bytes(head: _Header) -> tuple[int, int]:
    """Bytes of the picture, each row with its filter; and of its longest row."""
    bits = SAMPLES[head.color] * head.depth
    total = longest = 0
    for x, y, right, down in ADAM7 if head.interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(head.width - x) // right), -(-(head.height - y) // down)
        if columns > 0 and rows > 0:
            row = 1 + -(-columns * bits // 8)
            total, longest = total + rows * row, max(longest, row)
    return total, longest


def _plain(head: _Header, chunks: Chunks) -> bool:
    return head.color == GREY and b"tRNS" not in chunks


def _clean(head: _Header, chunks: Chunks) -> bytes:
    """The file with no other chunks than those that say how to read samples."""
    kept: list[tuple[bytes, Content]] = [(b"IHDR", struct.pack(">IIBBBBB", *head))]
    for name in (b"PLTE", b"tRNS", b"eXIf"):
        content = chunks.get(name, [b""])[0]
        if name == b"tRNS" and head.color in (GREY, RGB) and content:
            # Only the lowest bits count; Pillow compares with few bits spread over 0 to 255.
            top = 2**head.depth - 1
            spread = 255 // top if 1 < head.depth < 8 else 1
            key = np.frombuffer(content, ">u2") & top
            content = (key * spread).astype(">u2").tobytes()
        if content and (name != b"tRNS" or head.color in (GREY, RGB, PALETTE)):
            kept.append((name, content))
    kept += [(b"IDAT", content) for content in chunks.get(b"IDAT", [])] + [(b"IEND", b"")]
    pieces: list[Content] = [SIGNATURE]
    for name, content in kept:
        pieces += [struct.pack(">I", len(content)), name, content]
        pieces.append(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
    return b"".join(pieces)


def _opencv(path: Path, data: bytes, *, deep: bool) -> np.ndarray:
    """Grey of 8 or 16 bits, or colour of 16, which Pillow cuts to 8 bits."""
    import cv2

    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is not None and image.ndim == 2 + deep:
        return raster.deep_luma(image) if deep else image
    # Pillow says what is wrong with the pixels. If nothing is, OpenCV was told to refuse its size.
    levels = raster.read(path, "PNG", BytesIO(data))
    if deep:
        raise MachineError(
            f"{path}: OpenCV does not read it; unset the environment variables "
            "OPENCV_IO_MAX_IMAGE_PIXELS, _WIDTH and _HEIGHT"
        )
    return levels
