"""Whether a lossless JPEG holds all its samples (ITU-T T.81, annex H).

Decoders fill what is missing, and say so on the terminal only. So the last line that holds anything
is coded again: a complete picture's data end with these very bits.
"""

import re
from collections.abc import Iterator

import numpy as np

TABLES, SCAN, RESTART, END = 0xC4, 0xDA, 0xDD, 0xD9
FRAMES = (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7)
ALONE = (0x01, *range(0xD0, 0xD9))
# Lines that are looked at together.
BLOCK = 64
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
    """Whether the coded data go up to the last sample.

    Args:
        data: the codestream.
        samples: (H, W) or (H, W, C) decoded from it, every bit as it came.
    """
    tables: dict[int, dict[int, str]] = {}
    interval, scans = 0, []
    for marker, content in segments(data):
        if marker == TABLES:
            tables |= _codes(content)
        elif marker == RESTART:
            interval = int.from_bytes(content[:2], "big")
        elif marker == SCAN:
            scans.append(content)
    words = np.ascontiguousarray(samples).view(f"u{samples.dtype.itemsize}")
    pixels = words.reshape(*samples.shape[:2], -1)
    if sum(scan[0] for scan in scans) != pixels.shape[2]:
        return False
    scan, components = scans[-1], scans[-1][0]
    header = 1 + 2 * components + 3
    predictor, shift = scan[header - 3], scan[header - 1] & 15
    pieces = RESTARTS.split(scan[header:].rstrip(b"\xff"))
    # Restarts come at whole lines; the last one begins what is looked at.
    first = min((len(pieces) - 1) * interval // pixels.shape[1], len(pixels) - 1)
    start = 2 ** (frame_header(data)[0] - shift - 1)
    lines, same = _last_change(pixels[first:, :, -components:] >> shift, predictor, start)
    codes = [tables.get(scan[2 + 2 * one] >> 4, {}) for one in range(components)]
    return _ends_with(pieces[-1].replace(b"\xff\0", b"\xff"), lines, same, codes)


def _last_change(pixels: np.ndarray, predictor: int, start: int) -> tuple[np.ndarray, int]:
    """Differences of the last lines of which one is not as predicted, and how many lines follow."""
    stop, same = len(pixels), 0
    while True:
        begin = max(stop - BLOCK, 0)
        # The line above a block is needed to predict it.
        block = pixels[max(begin - 1, 0) : stop].astype(np.int64)
        differences = block - _predicted(block, predictor, start)
        differences = (differences[min(begin, 1) :] + 2**15 - 1) % 2**16 - (2**15 - 1)
        if begin == 0 or differences.any():
            return differences, same
        stop, same = begin, same + len(differences)


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


def _codes(content: bytes) -> dict[int, dict[int, str]]:
    """By table: the bits of each category's code."""
    tables: dict[int, dict[int, str]] = {}
    while len(content) > 17:
        code, position = 0, 17
        table = tables.setdefault(content[0] & 15, {})
        for length in range(1, 17):
            for symbol in content[position : position + content[length]]:
                table[symbol] = f"{code:0{length}b}"
                code += 1
            position += content[length]
            code <<= 1
        content = content[position:]
    return tables


def _ends_with(
    coded: bytes, differences: np.ndarray, same: int, codes: list[dict[int, str]]
) -> bool:
    """Whether data end with the codes of the last line that is not as predicted, and all after.

    Args:
        coded: without stuffed bytes; up to 7 bits of padding may follow.
        differences: (H, W, C) from the prediction.
        same: lines after these that are as predicted.
        codes: of each component.
    """
    flat, count = differences.reshape(-1), len(codes)
    changed = np.flatnonzero(flat)
    end = int(changed[-1]) + 1 if len(changed) else 0
    # In a film without two like neighbours nothing is as predicted, so that it needs no code.
    if end < flat.size + same * differences[0].size and any(0 not in table for table in codes):
        return False
    line = differences[0].size
    begin = max(end - 1, 0) // line * line
    written = []
    for place, difference in enumerate(flat[begin:end].tolist()):
        category = abs(difference).bit_length()
        written.append(codes[place % count].get(category, ""))
        if 0 < category < 16:
            extra = difference if difference > 0 else difference + 2**category - 1
            written.append(f"{extra:0{category}b}")
    pixel = [table.get(0, "") for table in codes]
    written += pixel[end % count :] if end % count else []
    bits = np.frombuffer("".join(written).encode(), np.uint8) - ord("0")
    zeros = np.frombuffer("".join(pixel).encode(), np.uint8) - ord("0")
    wanted = np.concatenate((bits, np.tile(zeros, (flat.size + same * line - end) // count)))
    last = np.unpackbits(np.frombuffer(coded[-(len(wanted) // 8 + 2) :], np.uint8))
    return any(
        len(last) >= len(wanted) + padding
        and np.array_equal(last[len(last) - padding - len(wanted) : len(last) - padding], wanted)
        for padding in range(8)
    )
