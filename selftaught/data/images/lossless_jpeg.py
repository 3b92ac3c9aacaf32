"""Whether a lossless JPEG holds all its samples (ITU-T T.81, annex H).

Decoders go on with differences of zero where the data ends, and say so on the terminal only. So a
picture is complete when its last sample differs from its prediction, or when the codes of its last
zero differences stand at the end of the data.
"""

import re
from collections.abc import Iterator

import numpy as np

TABLES, SCAN, RESTART, END = 0xC4, 0xDA, 0xDD, 0xD9
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
ALONE = (0x01, *range(0xD0, 0xD9))
# Ends a scan: 0 is a stuffed byte, D0 to D7 restart it, FF fills.
SCAN_END = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
RESTARTS = re.compile(rb"\xff[\xd0-\xd7]")


def segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG; that of a scan includes its coded data."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF and data[position + 1] != END:
        marker = data[position + 1]
        if marker == 0xFF or marker in ALONE:
            position += 1 if marker == 0xFF else 2
            continue
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        if marker == SCAN:
            after = SCAN_END.search(data, end)
            end = after.start() if after else len(data)
        yield marker, data[position + 4 : end]
        position = end


def frame_header(data: bytes) -> tuple[int, int, int]:
    """Bits of a sample, height and width of a JPEG or JPEG-LS; zeros where there is no header."""
    for marker, content in segments(data):
        if marker in FRAMES and len(content) > 5:
            height, width = int.from_bytes(content[1:3], "big"), int.from_bytes(content[3:5], "big")
            return content[0], height, width
    return 0, 0, 0


def is_complete(data: bytes, samples: np.ndarray) -> bool:
    """Whether the coded data goes up to the last sample.

    Args:
        data: the codestream.
        samples: (H, W) or (H, W, C) decoded from it, every bit as it came.
    """
    zero: dict[int, np.ndarray] = {}
    interval, scans = 0, []
    for marker, content in segments(data):
        if marker == TABLES:
            zero |= _zero_codes(content)
        elif marker == RESTART:
            interval = int.from_bytes(content[:2], "big")
        elif marker == SCAN:
            scans.append(content)
    words = np.ascontiguousarray(samples).view(f"u{samples.dtype.itemsize}")
    pixels = words.reshape(*samples.shape[:2], -1).astype(np.int64)
    if sum(scan[0] for scan in scans) != pixels.shape[2]:
        return False
    scan, components = scans[-1], scans[-1][0]
    tables = [scan[2 + 2 * one] >> 4 for one in range(components)]
    header = 1 + 2 * components + 3
    predictor, shift = scan[header - 3], scan[header - 1] & 15
    pieces = RESTARTS.split(scan[header:].rstrip(b"\xff"))
    first = 0
    if interval:
        # Restarts come at whole lines; the last one begins what is looked at.
        if len(pieces) != -(-pixels[..., 0].size // interval):
            return False
        first = (len(pieces) - 1) * interval // pixels.shape[1]
    pixels = pixels[first:, :, -components:] >> shift
    start = 2 ** (frame_header(data)[0] - shift - 1)
    changed = np.flatnonzero((pixels - _predicted(pixels, predictor, start)) % 2**16)
    zeros = pixels.size - (changed[-1] + 1 if len(changed) else 0)
    codes = [zero.get(table) for table in tables]
    return zeros == 0 or _ends_with(pieces[-1].replace(b"\xff\0", b"\xff"), zeros, codes)


def _predicted(pixels: np.ndarray, predictor: int, start: int) -> np.ndarray:
    """What annex H.1.2.1 expects of each of (H, W, C) samples."""
    above = np.roll(pixels, 1, axis=0)
    left = np.roll(pixels, 1, axis=1)
    corner = np.roll(above, 1, axis=1)
    predicted = {
        1: lambda: left,
        2: lambda: above,
        3: lambda: corner,
        4: lambda: left + above - corner,
        5: lambda: left + ((above - corner) >> 1),
        6: lambda: above + ((left - corner) >> 1),
        7: lambda: (left + above) >> 1,
    }.get(predictor, lambda: left)()
    predicted[:, 0] = above[:, 0]
    predicted[0] = left[0]
    predicted[0, 0] = start
    return predicted


def _zero_codes(content: bytes) -> dict[int, np.ndarray]:
    """By table: the bits of the code for a difference of zero."""
    codes = {}
    while len(content) > 17:
        code, position = 0, 17
        for length in range(1, 17):
            for _ in range(content[length]):
                if position < len(content) and content[position] == 0:
                    bits = [code >> bit & 1 for bit in reversed(range(length))]
                    codes[content[0] & 15] = np.array(bits, np.uint8)
                code, position = code + 1, position + 1
            code <<= 1
        content = content[position:]
    return codes


def _ends_with(coded: bytes, zeros: int, codes: list[np.ndarray | None]) -> bool:
    """Whether data ends with the codes of so many zero differences, and up to 7 bits of padding."""
    if any(code is None for code in codes):
        return False
    pixel = [code for code in codes if code is not None]
    whole, rest = divmod(zeros, len(pixel))
    wanted = np.concatenate([*pixel[len(pixel) - rest :], np.tile(np.concatenate(pixel), whole)])
    last = np.frombuffer(coded[-(len(wanted) // 8 + 2) :], np.uint8)
    bits = np.unpackbits(last)
    return any(
        len(bits) >= len(wanted) + padding
        and np.array_equal(bits[len(bits) - padding - len(wanted) : len(bits) - padding], wanted)
        for padding in range(8)
    )
