"""Pictures to encode in tests of decoding, and the refusal of a file."""

import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import BadImage, read_grey


def scene(height: int = 37, width: int = 52) -> np.ndarray:
    """Smooth enough for JPEG, without symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.clip(40 + 3.1 * x + 1.3 * y + 20 * np.sin(x / 5), 0, 255).astype(np.uint8)


def color(height: int = 37, width: int = 52) -> np.ndarray:
    grey = scene(height, width)
    return np.stack([grey, grey[::-1], 255 - grey], -1)


def luma(rgb: np.ndarray) -> np.ndarray:
    return rgb[..., :3].astype(np.float64) @ [0.299, 0.587, 0.114]


def refused(path: Path | str, *words: str) -> BadImage:
    with pytest.raises(BadImage) as caught:
        read_grey(path)
    text = str(caught.value)
    assert "\n" not in text and Path(path).name.replace("\0", "\\x00") in text
    assert all(word in text for word in words), text
    return caught.value


def tiff_file(
    data: bytes,
    width: int,
    height: int,
    tags: Mapping[int, int | tuple[int, ...] | None] | None = None,
    *,
    order: str = "<",
    pages: int = 1,
) -> bytes:
    """A TIFF of 8-bit grey in one strip, or of what other `tags` say; None takes a tag out.

    Args:
        data: from byte 8 on; a strip starts there.
        width: in pixels.
        height: in pixels.
        tags: by number, as whole numbers.
        order: "<" or ">".
        pages: how many times the directory is linked.
    """
    own: dict[int, int | tuple[int, ...] | None] = {
        **{256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height},
        **{279: len(data), **(tags or {})},
    }
    kept = {code: value for code, value in sorted(own.items()) if value is not None}
    data += bytes(len(data) % 2)
    body = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + len(data)) + data
    for page in range(pages):
        behind, values = len(body) + 6 + 12 * len(kept), b""
        body += struct.pack(order + "H", len(kept))
        for code, value in kept.items():
            numbers = value if isinstance(value, tuple) else (value,)
            packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
            body += struct.pack(order + "HHI", code, 4, len(numbers))
            body += packed if len(packed) == 4 else struct.pack(order + "I", behind + len(values))
            values += packed if len(packed) > 4 else b""
        following = behind + len(values) if page + 1 < pages else 0
        body += struct.pack(order + "I", following) + values
    return body


def png_file(width: int, height: int, bits: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
