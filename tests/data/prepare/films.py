"""A small folder of films, good and broken, for the tests of `prepare`."""

import functools
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest

from selftaught.data.prepare import job
from selftaught.phantoms import write_set


def write_films(folder: Path, images: int, *, seed: int = 5, size: int = 160) -> Path:
    """A cluttered synthetic set; returns its manifest."""
    return write_set(folder, images, seed=seed, size=size, formats=("png8", "png16"), workers=1)


def chest(seed: int, size: int = 144) -> np.ndarray:
    """(size, size) uint8: bright shoulders, heart and belly, dark lungs; no two alike."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    middle, apex = 0.5 + random.normal(0, 0.02), 0.42 + random.normal(0, 0.03)
    grey = 150 + 60 * y
    for side, width in ((-1, random.uniform(0.09, 0.13)), (1, random.uniform(0.08, 0.12))):
        off = (x - middle - side * 0.23) / width
        grey -= random.uniform(70, 110) * np.exp(-(off**2) - ((y - apex) / 0.23) ** 2)
    grey += 30 * np.exp(-(((x - middle) / 0.08) ** 2))
    grey += 25 * np.exp(-(((x - middle - 0.06) / 0.12) ** 2) - ((y - 0.62) / 0.13) ** 2)
    for corner in (0, 1):  # air above the shoulders
        grey -= 140 * np.exp(-(((x - corner) / 0.22) ** 2) - (y / 0.2) ** 2)
    soft = cv2.GaussianBlur(random.normal(0, 30, grey.shape), (0, 0), 3)
    return np.clip(grey + soft + random.normal(0, 1.5, grey.shape), 0, 255).astype(np.uint8)


def stop_after(monkeypatch: pytest.MonkeyPatch, shards: int) -> None:
    """Interrupt the next job of one worker when it has finished some shards."""
    real, left = job.work_shard, shards

    def work(*arguments: object) -> None:
        nonlocal left
        if left == 0:
            monkeypatch.setattr(job, "work_shard", real)
            raise KeyboardInterrupt
        left -= 1
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(job, "work_shard", work)


def png_chunk(name: bytes, data: bytes) -> bytes:
    crc = zlib.crc32(name + data)
    return len(data).to_bytes(4, "big") + name + data + crc.to_bytes(4, "big")


@functools.cache
def bomb_png(side: int) -> bytes:
    """A valid PNG of side x side black pixels in a few kilobytes."""
    head = side.to_bytes(4, "big") * 2 + bytes([8, 0, 0, 0, 0])
    squeeze = zlib.compressobj(9)
    row = bytes(side + 1)
    data = b"".join(squeeze.compress(row) for _ in range(side)) + squeeze.flush()
    signature = b"\x89PNG\r\n\x1a\n"
    parts = png_chunk(b"IHDR", head) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    return signature + parts


def write_broken(folder: Path) -> dict[str, str]:
    """Seven broken kinds and more; returns what the reason must hold, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (60, 50)).astype(np.uint8)
    png = bytes(cv2.imencode(".png", noise)[1])
    jpeg = bytes(cv2.imencode(".jpg", noise)[1])
    flipped = bytearray(png)
    flipped[len(png) // 2] ^= 255
    content = {
        "empty.png": (b"", "empty"),
        "text.png": (b"no image, just words", "not an image"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "flipped.png": (bytes(flipped), "checksum"),
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "renamed.png": (jpeg, "JPEG data"),
        "bomb.png": (bomb_png(13_000), "64 Mpx"),
        "archive.png": (b"PK\x03\x04" + bytes(400), "not an image"),
        "blank.png": (bytes(cv2.imencode(".png", np.full((40, 40), 9, np.uint8))[1]), "contrast"),
    }
    for name, (data, _) in content.items():
        (folder / name).write_bytes(data)
    return {name: reason for name, (_, reason) in content.items()}
