"""Writes a pack, shard by shard; the format is in `selftaught.data.images.pack`."""

import csv
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.images.pack import ALIGNMENT, FORMAT, RECORD, VERSION
from selftaught.files import sha256, write_atomic


class Packable(NamedTuple):
    """One image to store.

    Attributes:
        name: posix path that the manifest will name it by, unique in the pack.
        image: (H, W) uint8 or uint16.
        mask: (H, W) bool, or None.
        low, high: contrast limits.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray | None
    low: int
    high: int


Record = dict[str, int]


def shard_bytes(images: Iterable[Packable]) -> tuple[bytes, list[Record]]:
    """Lay out the blocks of one shard.

    Args:
        images: in the order of their slots.

    Returns:
        The shard's bytes, and for each image the columns of `RECORD` except `shard`.
    """
    content = bytearray()
    records: list[Record] = []
    for item in images:
        pixels = np.ascontiguousarray(
            item.image, "<u2" if item.image.dtype == np.uint16 else np.uint8
        ).tobytes()
        offset = _append(content, pixels)
        crc, mask_offset = zlib.crc32(pixels), -1
        if item.mask is not None:
            bits = np.packbits(item.mask.reshape(-1)).tobytes()
            mask_offset = _append(content, bits)
            crc = zlib.crc32(bits, crc)
        height, width = item.image.shape
        records.append(
            {
                "offset": offset,
                "mask_offset": mask_offset,
                "height": height,
                "width": width,
                "bits": 8 * item.image.dtype.itemsize,
                "low": item.low,
                "high": item.high,
                "crc": crc,
            }
        )
    return bytes(content), records


def _append(content: bytearray, block: bytes) -> int:
    content.extend(bytes(-len(content) % ALIGNMENT))
    offset = len(content)
    content.extend(block)
    return offset


def write_index(
    folder: Path,
    *,
    size: int,
    cutoff: float,
    shards: Sequence[str],
    names: Sequence[str],
    records: Sequence[Record],
) -> None:
    """Write `index.csv`, then `pack.json`; a folder that has the latter is a complete pack.

    Args:
        folder: the pack.
        size: longest side in pixels.
        cutoff: per cent that the contrast limits cut at each end.
        shards: files below `folder`, already written.
        names: (N) of the images by slot.
        records: (N) with every column of `RECORD`.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    columns = RECORD.names or ()
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", *columns])
    for name, record in zip(names, records, strict=True):
        writer.writerow([name, *(record[column] for column in columns)])
    index = text.getvalue().encode()
    described = [
        {"file": name, "bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in shards
    ]
    facts = {
        "format": FORMAT,
        "version": VERSION,
        "size": size,
        "cutoff": cutoff,
        "images": len(names),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "shards": described,
    }
    write_atomic(folder / "index.csv", index)
    write_atomic(folder / "pack.json", json.dumps(facts, indent=1) + "\n")


def write_pack(folder: Path, images: Sequence[Packable], *, size: int, cutoff: float = 1.0) -> None:
    """Write a pack of one shard.

    Args:
        folder: `.../pack`, created if absent.
        images: in the order of their slots.
        size: longest side in pixels.
        cutoff: per cent that the contrast limits cut at each end.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    (folder / "shards").mkdir(parents=True, exist_ok=True)
    content, records = shard_bytes(images)
    write_atomic(folder / "shards/00000.bin", content)
    write_index(
        folder,
        size=size,
        cutoff=cutoff,
        shards=["shards/00000.bin"],
        names=[item.name for item in images],
        records=[{"shard": 0, **record} for record in records],
    )
