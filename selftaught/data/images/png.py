"""Strict PNG: every chunk's checksum and the end marker are verified before decoding.

Pillow alone accepts a PNG that lost its last 20 bytes, and cuts 16-bit colour to 8 bits.
"""

import struct
import zlib
from pathlib import Path

import numpy as np

from selftaught.data.images import raster
from selftaught.data.images.limits import BadImage, check_size

SIGNATURE = 8
GREY = 0
# Chunks that OpenCV and Pillow treat differently: transparency, rotation, animation.
SPECIAL = frozenset((b"tRNS", b"eXIf", b"acTL"))


def read(path: Path) -> np.ndarray:
    """Decode a PNG of any colour type and depth.

    Returns:
        (H, W) uint8 (up to 8 bits a sample) or uint16.

    Raises:
        BadImage: truncated, damaged, animated or too large.
    """
    import cv2

    header(path)
    data = path.read_bytes()
    chunks = _check_chunks(path, data)
    depth, color = data[24], data[25]
    plain = not SPECIAL & chunks
    if plain and color == GREY and depth in (8, 16):
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if image is None or image.ndim != 2:
            raise BadImage(path, "damaged PNG: the pixels cannot be decompressed")
        return image
    return raster.read(path, "PNG", deep_color=depth == 16 and color != GREY)


def header(path: Path) -> tuple[int, int]:
    """(height, width) of an upright PNG; the size is checked before anything else is read.

    Raises:
        BadImage: no IHDR chunk, or above 64 Mpx.
    """
    with path.open("rb") as handle:
        start = handle.read(24)
    if len(start) < 24 or start[12:16] != b"IHDR":
        raise BadImage(path, "truncated or damaged PNG: no IHDR chunk")
    width, height = struct.unpack(">II", start[16:24])
    check_size(path, height, width)
    return raster.header(path, "PNG")


def _check_chunks(path: Path, data: bytes) -> set[bytes]:
    """Walk all chunks up to IEND; the set of their names."""
    view = memoryview(data)
    names: set[bytes] = set()
    position = SIGNATURE
    while b"IEND" not in names:
        if position + 12 > len(data):
            raise BadImage(path, f"truncated PNG: ends after {len(data)} bytes without IEND")
        (length,) = struct.unpack_from(">I", data, position)
        name = bytes(view[position + 4 : position + 8])
        end = position + 8 + length
        if end + 4 > len(data):
            raise BadImage(path, f"truncated PNG: ends after {len(data)} bytes without IEND")
        (stored,) = struct.unpack_from(">I", data, end)
        if zlib.crc32(view[position + 4 : end]) != stored:
            raise BadImage(path, f"damaged PNG: wrong checksum in the chunk at byte {position}")
        names.add(name)
        position = end + 4
    return names
