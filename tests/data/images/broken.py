"""Broken image files: the kinds that decoders tell apart, or do not."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    """A changed byte in the middle; a PNG's checksum tells."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


def flip_tables(data: bytes) -> bytes:
    """A changed byte in a JPEG's Huffman table; one in its pixels cannot be told."""
    at = data.index(b"\xff\xc4") + 5
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


# Name: the suffix of a good file, what becomes of its bytes (None: deleted), words of the reason.
KINDS: dict[str, tuple[str, Callable[[bytes], bytes] | None, str]] = {
    "missing": (".png", None, "is missing"),
    "empty": (".png", lambda data: b"", "is empty"),
    "text": (".png", lambda data: b"no image, just words", "is not an image"),
    "cut png": (".png", cut, "truncated PNG"),
    "flipped png": (".png", flip, "PNG"),
    "cut jpeg": (".jpg", cut, "truncated JPEG"),
    "flipped jpeg": (".jpg", flip_tables, "JPEG"),
    "wrong suffix": (".jpg", lambda data: b"\x89PNG\r\n\x1a\n" + data, "holds PNG data"),
}


def break_file(path: Path, kind: str) -> None:
    """Break a good file in one of the ways of `KINDS`; as by another program, in a new file."""
    change = KINDS[kind][1]
    data = path.read_bytes()
    path.unlink()
    if change is not None:
        path.write_bytes(change(data))


def write_good(folder: Path, count: int, kind: str) -> list[Path]:
    """Smooth textured images whose suffix is what `kind` breaks."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        y, x = np.mgrid[:50, :40] / 50
        image = np.sin(9 * x + number) * np.cos(7 * y * (1 + number / 5)) + 0.3 * y
        image = np.rint(255 * (image - image.min()) / (image.max() - image.min()))
        paths.append(folder / f"{number}{KINDS[kind][0]}")
        Image.fromarray(image.astype(np.uint8)).save(paths[-1])
    return paths
