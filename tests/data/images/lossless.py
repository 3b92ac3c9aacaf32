"""A small encoder of lossless JPEG (ITU-T T.81, annex H), for tests of what decodes it."""

import numpy as np

LENGTH = 5


def encode(samples: np.ndarray, bits: int, predictor: int = 1, rows: int = 0) -> bytes:
    """One scan; every category has a code of 5 bits.

    Args:
        samples: (H, W) unsigned.
        bits: precision.
        predictor: 1 to 7.
        rows: of a restart interval; 0 = none.
    """
    height, width = samples.shape
    frame = bytes([bits, *divmod(height, 256), *divmod(width, 256), 1, 1, 0x11, 0])
    table = bytes([0, *(17 if n == LENGTH else 0 for n in range(1, 17)), *range(17)])
    parts = [b"\xff\xd8", _segment(0xC3, frame), _segment(0xC4, table)]
    if rows:
        parts.append(_segment(0xDD, bytes(divmod(rows * width, 256))))
    parts.append(_segment(0xDA, bytes([1, 1, 0, predictor, 0, 0])))
    values = samples.astype(np.int64)
    for number, first in enumerate(range(0, height, rows or height)):
        if number:
            parts.append(bytes([0xFF, 0xD0 + (number - 1) % 8]))
        parts.append(_coded(values[first : first + (rows or height)], bits, predictor))
    return b"".join((*parts, b"\xff\xd9"))


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def _coded(values: np.ndarray, bits: int, predictor: int) -> bytes:
    written = []
    for y, x in np.ndindex(*values.shape):
        a, b, c = (
            int(values[y, x - 1]),
            int(values[y - 1, x]),
            int(values[y - 1, x - 1]),
        )
        rule = [a, b, c, a + b - c, a + ((b - c) >> 1), b + ((a - c) >> 1), (a + b) >> 1]
        expected = rule[predictor - 1] if y and x else a if x else b if y else 2 ** (bits - 1)
        difference = (int(values[y, x]) - expected + 2**15) % 2**16 - 2**15
        category = abs(difference).bit_length()
        written.append(f"{category:0{LENGTH}b}")
        if 0 < category < 16:
            extra = difference if difference > 0 else difference + 2**category - 1
            written.append(f"{extra:0{category}b}")
    text = "".join(written)
    text += "1" * (-len(text) % 8)
    data = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    return data.replace(b"\xff", b"\xff\0")
