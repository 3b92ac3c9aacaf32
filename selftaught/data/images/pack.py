"""Reads a pack: the prepared images of a set as raw pixels that are mapped, not decoded.

`selftaught prepare` writes it (`selftaught.data.images.pack_writer`). A pack is a folder `pack/`:

- `pack.json`: `format` "selftaught pack", `version` 1, `size` (longest side of an image in
  pixels), `cutoff` (per cent that the stored contrast limits cut at each end), `images` (how
  many), `index_sha256`, and `shards`: a list of {`file`, `bytes`, `sha256`}.
- `index.csv`: one line per image after a header, columns `name` and those of `RECORD`. The line's
  position, from 0, is the image's slot.
- `shards/00000.bin`, ...: blocks that start at multiples of 64 bytes, zeros between them. An
  image is height * width samples, row by row, uint8 (`bits` 8) or little-endian uint16 (`bits`
  16), at `offset`. Its mask, if `mask_offset` is not -1, is ceil(height * width / 8) bytes, the
  first pixel in the highest bit of the first byte, 1 = body part, rows not padded. `crc` is
  zlib.crc32 of the image's bytes followed by the mask's.

`low` and `high` are the limits of `selftaught.data.images.contrast.contrast_limits` at `cutoff`.

A manifest names an image as `pack/images/NAME` and its mask as `pack/masks/NAME`; no such files
exist. `locate` turns such a path into the pack and a slot.
"""

import csv
import hashlib
import io
import json
import mmap
import zlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selftaught.data.images.limits import BadImage
from selftaught.errors import InputError
from selftaught.files import sha256

FORMAT, VERSION = "selftaught pack", 1
FOLDER, IMAGES, MASKS = "pack", "images", "masks"
ALIGNMENT = 64
LONGEST = 2**16
RECORD = np.dtype(
    [
        ("shard", "i4"),
        ("offset", "i8"),
        ("mask_offset", "i8"),
        ("height", "i4"),
        ("width", "i4"),
        ("bits", "i4"),
        ("low", "i4"),
        ("high", "i4"),
        ("crc", "u4"),
    ]
)


class Pack:
    """An open pack; safe to use from many threads, and cheap to open again in each process.

    Attributes:
        folder: the folder that holds `pack.json`.
        size: longest side of an image, in pixels.
        cutoff: per cent of the pixels that the stored limits cut at each end.
        names: (N) names of the images, by slot.
        records: (N,) of `RECORD`, by slot.
        slots: slot by name.
    """

    def __init__(self, folder: Path) -> None:
        """Open a pack and check its index against its files.

        Raises:
            InputError: the pack is incomplete, damaged or of another version.
        """
        self.folder = folder
        try:
            facts = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
            index = (folder / "index.csv").read_bytes()
            self.size, self.cutoff = int(facts["size"]), float(facts["cutoff"])
            self._shards: list[dict[str, Any]] = list(facts["shards"])
            if (facts["format"], facts["version"]) != (FORMAT, VERSION):
                raise _damaged(folder, f"has version {facts['version']!r}; allowed: {VERSION}")
            if hashlib.sha256(index).hexdigest() != facts["index_sha256"]:
                raise _damaged(folder, "has an index.csv that is not what pack.json describes")
            self.names, self.records = _read_index(index.decode("utf-8"))
            sizes = [_shard_size(folder, shard) for shard in self._shards]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise _damaged(folder, f"cannot be read ({reason})") from error
        if len(self.names) != facts["images"] or not _fits(self.records, np.array(sizes, "i8")):
            raise _damaged(folder, "has records that do not fit its shards")
        self.slots = {name: slot for slot, name in enumerate(self.names)}
        self._maps: dict[int, mmap.mmap] = {}
        self._checked = np.zeros(len(self.names), bool)

    def __len__(self) -> int:
        return len(self.names)

    def image(self, slot: int) -> np.ndarray:
        """The pixels of one image, mapped; the first access checks its checksum.

        Returns:
            (H, W) uint8 or uint16, read-only.

        Raises:
            BadImage: the stored bytes have changed.
        """
        record = self.records[slot]
        self._check(slot)
        pixels = self._block(record, "offset")
        dtype = np.uint8 if record["bits"] == 8 else np.dtype("<u2")
        return pixels.view(dtype).reshape(record["height"], record["width"])

    def mask(self, slot: int) -> np.ndarray | None:
        """The body-part mask of one image.

        Returns:
            (H, W) uint8, 0 or 255, a copy; None where no mask is stored.

        Raises:
            BadImage: the stored bytes have changed.
        """
        record = self.records[slot]
        if record["mask_offset"] < 0:
            return None
        self._check(slot)
        shape = int(record["height"]), int(record["width"])
        bits = np.unpackbits(self._block(record, "mask_offset"), count=shape[0] * shape[1])
        return (bits * np.uint8(255)).reshape(shape)

    def limits(self, slot: int) -> tuple[int, int]:
        """Lowest and highest grey level after the cut, stored for `cutoff`."""
        return int(self.records[slot]["low"]), int(self.records[slot]["high"])

    def verify(self) -> None:
        """Compare every shard with its SHA-256.

        Raises:
            InputError: names the first shard that changed.
        """
        for shard in self._shards:
            if sha256(self.folder / shard["file"]) != shard["sha256"]:
                raise _damaged(self.folder, f"has a changed shard {shard['file']}")

    def _block(self, record: np.ndarray, start: str) -> np.ndarray:
        """The (bytes,) of an image or mask."""
        first, number = int(record[start]), int(record["shard"])
        mapped = self._map(number)
        # Reading beyond the end of a mapped file that was cut kills the process.
        if mapped.size() < len(mapped):
            raise BadImage(
                self.folder / self._shards[number]["file"],
                "was cut while it was read; run `selftaught prepare` again",
            )
        return np.frombuffer(mapped, np.uint8, _length(record, start), first)

    def _map(self, shard: int) -> mmap.mmap:
        mapped = self._maps.get(shard)
        if mapped is None:
            with (self.folder / self._shards[shard]["file"]).open("rb") as handle:
                new = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
            mapped = self._maps.setdefault(shard, new)
        return mapped

    def _check(self, slot: int) -> None:
        if self._checked[slot]:
            return
        record = self.records[slot]
        crc = zlib.crc32(self._block(record, "offset").data)
        if record["mask_offset"] >= 0:
            crc = zlib.crc32(self._block(record, "mask_offset").data, crc)
        if crc != record["crc"]:
            raise BadImage(
                self.folder / IMAGES / self.names[slot],
                f"slot {slot} of the pack has a wrong checksum; run `selftaught prepare` again",
            )
        self._checked[slot] = True


class Packed(NamedTuple):
    """Where a path leads: a slot of a pack, its image or its mask."""

    pack: Pack
    slot: int
    is_mask: bool


def locate(path: Path) -> Packed | None:
    """The pack and slot that a path `.../pack/images/NAME` or `.../pack/masks/NAME` names.

    Args:
        path: any path.

    Returns:
        None for a path that is not in a pack; then it is an ordinary file, or missing.

    Raises:
        InputError: there is a pack, but it is damaged.
    """
    parts = path.parts
    for at in range(len(parts) - 3, -1, -1):
        if parts[at] == FOLDER and parts[at + 1] in (IMAGES, MASKS):
            folder = Path(*parts[: at + 1])
            try:
                facts = (folder / "pack.json").stat()
            except OSError:
                continue
            pack = _opened(str(folder.absolute()), facts.st_mtime_ns, facts.st_size)
            slot = pack.slots.get("/".join(parts[at + 2 :]))
            is_mask = parts[at + 1] == MASKS
            if slot is None or (is_mask and pack.records[slot]["mask_offset"] < 0):
                return None
            return Packed(pack, slot, is_mask)
    return None


def stored_in(path: Path) -> Path:
    """The file that an image changes with: its own, or the `pack.json` that tells its checksum."""
    packed = locate(path)
    return path if packed is None else packed.pack.folder / "pack.json"


@lru_cache(maxsize=16)
def _opened(folder: str, changed: int, size: int) -> Pack:
    """One pack per process and version of its pack.json."""
    return Pack(Path(folder))


def _read_index(text: str) -> tuple[list[str], np.ndarray]:
    header, *lines = csv.reader(io.StringIO(text, newline=""), strict=True)
    if header != ["name", *(RECORD.names or ())]:
        raise ValueError("header")
    records = np.array([tuple(map(int, line[1:])) for line in lines], RECORD)
    return [line[0] for line in lines], records


def _length(records: np.ndarray, start: str) -> Any:
    """Bytes of the images (`offset`) or masks (`mask_offset`)."""
    pixels = records["height"].astype(np.int64) * records["width"]
    return pixels * records["bits"] // 8 if start == "offset" else (pixels + 7) // 8


def _fits(records: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether every record describes an image and blocks inside its shard."""
    if not len(records):
        return True
    shape = np.stack([records["height"], records["width"]])
    if not (np.isin(records["bits"], (8, 16)).all() and shape.min() > 0 and shape.max() < LONGEST):
        return False
    if records["shard"].min() < 0 or records["shard"].max() >= len(sizes):
        return False
    ends = sizes[records["shard"]]
    masked = records["mask_offset"] >= 0
    image_ends = records["offset"] + _length(records, "offset")
    mask_ends = records["mask_offset"] + _length(records, "mask_offset")
    aligned = (records["offset"] % ALIGNMENT == 0).all() and records["offset"].min() >= 0
    return bool(aligned and (image_ends <= ends).all() and (mask_ends <= ends)[masked].all())


def _shard_size(folder: Path, shard: dict[str, Any]) -> int:
    name, size = str(shard["file"]), int(shard["bytes"])
    path = folder / name
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise _damaged(folder, f"names the shard {name!r}; allowed: files inside the pack")
    if not path.is_file() or path.stat().st_size != size:
        raise _damaged(folder, f"lacks {size} bytes in {name}")
    return size


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f"{folder}: the pack {what}; run `selftaught prepare` again")
