"""Pictures to encode in tests of decoding, and the refusal of a file."""

import struct
import zlib
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


def png_file(width: int, height: int, bits: int, rows: bytes) -> bytes:
    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    head = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body
