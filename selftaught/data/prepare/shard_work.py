"""The work of one process: prepare the films of one shard, write it, and note what happened."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from selftaught.data.images.decode import is_dicom
from selftaught.data.images.limits import BadImage
from selftaught.data.images.pack_writer import Packable, shard_bytes
from selftaught.data.images.stamps import Stamp, stamp
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import Film, Found, look_at_film, usable_film
from selftaught.data.prepare.polarity import Look
from selftaught.data.prepare.reference import NO_REFERENCE, Reference, read_reference
from selftaught.errors import MachineError
from selftaught.files import sha256, write_atomic

Note = dict[str, Any]


class Row(NamedTuple):
    """One image of the source: row number, name in the pack, paths relative to the root."""

    row: int
    name: str
    path: str
    mask: str
    body_part: str


class Seen(NamedTuple):
    """What a film shows of its polarity; no look where it cannot be read.

    Attributes:
        files: as they were before it was read.
        stated: the file states its polarity.
        found: where it lies on its page.
    """

    files: dict[str, Stamp]
    look: Look | None
    stated: bool
    found: Found | None = None


class Places(NamedTuple):
    """Where a job reads and writes."""

    root: Path
    shards: Path
    work: Path

    @property
    def out(self) -> Path:
        """The folder of the set."""
        return self.work.parent

    def shard(self, number: int) -> Path:
        """The pixels of a shard."""
        return self.shards / f"{number:05d}.bin"

    @property
    def carriers(self) -> Path:
        """Where the films lie that were looked at before any was prepared."""
        return self.work / "carriers.json"

    def notes(self, number: int) -> Path:
        """What happened to the rows of a shard; written last."""
        return self.work / f"{number:05d}.json"


def work_shard(places: Places, number: int, rows: list[Row], config: PrepareConfig) -> None:
    """Prepare some rows. The notes are written last: a shard without them is done again.

    Args:
        places: folders.
        number: of the shard.
        rows: in order.
        config: settings.

    Raises:
        MachineError: the disk is full or cannot be read, or the source's folder is gone.
    """
    notes: list[Note] = []
    packed: list[Packable] = []
    reference = read_reference(places.out) if config.polarity == "default" else NO_REFERENCE
    carriers = read_carriers(places)
    for row in rows:
        files = _files(places.root, row, config)
        found = carriers.get((row.path, files.get(row.path)))
        try:
            film = _film(places.root, row, config, reference, found)
        except BadImage as error:
            notes.append({"row": row.row, "files": files, "reason": _reason(error, row)})
            continue
        packed.append(Packable(row.name, film.image, film.mask, film.low, film.high))
        named = {"row": row.row, "files": files, "name": row.name, "path": row.path}
        notes.append({**named, "sha256": files[row.path].sha256, **_facts(film)})
    if len(packed) < len(rows):
        _check_source(places.root)
    content, records = shard_bytes(packed)
    kept = iter(records)
    for note in notes:
        if "reason" not in note:
            note["record"] = next(kept)
    if packed:
        write_atomic(places.shard(number), content)
    text = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "rows": notes})
    write_atomic(places.notes(number), text)


def see_films(root: Path, rows: list[Row], config: PrepareConfig) -> list[Seen]:
    """Look which way round some films are; arguments and errors as of `work_shard`."""
    seen = []
    for row in (row._replace(mask="") for row in rows):
        files, path = _files(root, row, config), root / row.path
        try:
            _check_inside(root, row, config)
            look, found = look_at_film(path, row.body_part, config)
            seen.append(Seen(files, look, is_dicom(path), found))
        except (BadImage, cv2.error, ValueError, ArithmeticError, MemoryError):
            seen.append(Seen(files, None, False))  # It is refused, and named, when it is prepared.
    if any(one.look is None for one in seen):
        _check_source(root)
    return seen


def write_carriers(places: Places, seen: list[Seen]) -> None:
    """Keep where films lie, for `work_shard` not to look again."""
    kept = [
        (name, stamp, one.found.quad.tolist(), *one.found[1:])
        for one in seen
        if one.found is not None
        for name, stamp in one.files.items()
    ]
    write_atomic(places.carriers, json.dumps(kept))


def read_carriers(places: Places) -> dict[tuple[str, Stamp | None], Found]:
    """What `write_carriers` kept, by path and stamp; nothing where it did not or it is damaged."""
    try:
        kept = json.loads(places.carriers.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return {
        (name, Stamp(*was)): Found(np.array(quad), carrier, score)
        for name, was, quad, carrier, score in kept
    }


def _check_source(root: Path) -> None:
    """Refuse a folder that is gone as a whole, as when a disk was unmounted; files may be missing.

    Raises:
        MachineError: there is no such folder any more, or it is empty.
    """
    try:
        entry = next(root.iterdir(), None)
    except OSError:
        entry = None
    if entry is None:
        raise MachineError(
            f"{root}: the images' folder is gone or empty; finished shards are kept: start the "
            "same command again once it is back"
        )


def read_notes(places: Places, number: int, *, verify: bool = True) -> list[Note] | None:
    """The notes of a finished shard, or None where it has to be done (again).

    Args:
        places: folders.
        number: of the shard.
        verify: compare the shard with its checksum.
    """
    try:
        notes = json.loads(places.notes(number).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    kept = any("reason" not in note for note in notes["rows"])
    shard = places.shard(number)
    if verify and kept and (not shard.is_file() or sha256(shard) != notes["sha256"]):
        return None
    return list(notes["rows"])


def stamps_of(notes: list[Note]) -> dict[str, Stamp]:
    """The files that notes are about, as they were."""
    return {name: Stamp(*was) for note in notes for name, was in note["files"].items()}


def _files(root: Path, row: Row, config: PrepareConfig) -> dict[str, Stamp]:
    """Stamps of a row's image and mask before they are read; none where a link leads outside."""
    names = [row.path, row.mask if config.given_mask else ""]
    return {
        name: stamp(root / name)
        for name in names
        if name and (config.allow_outside or not _leads_out(root / name, root))
    }


def _film(
    root: Path, row: Row, config: PrepareConfig, reference: Reference, found: Found | None
) -> Film:
    _check_inside(root, row, config)
    given = root / row.mask if row.mask else None
    return usable_film(root / row.path, given, row.body_part, config, reference, found)


def _check_inside(root: Path, row: Row, config: PrepareConfig) -> None:
    for name in (row.path, row.mask):
        if name and not config.allow_outside and _leads_out(root / name, root):
            raise BadImage(root / name, "leads out of the manifest's folder; see --allow_outside")


def _leads_out(path: Path, root: Path) -> bool:
    """Whether a symbolic link leads a path out of its manifest's folder."""
    real, real_root = os.path.realpath(path), os.path.realpath(root)
    return not (real == real_root or real.startswith(real_root.rstrip("/") + "/"))


def _reason(error: BadImage, row: Row) -> str:
    """Why a row was refused, saying so when it is its mask."""
    is_mask = bool(row.mask) and str(error.path).endswith(row.mask) and row.mask != row.path
    return f"mask: {error.reason}" if is_mask else error.reason


def _facts(film: Film) -> Note:
    return {
        "quad": [[round(float(value), 2) for value in corner] for corner in film.quad],
        "carrier": film.carrier,
        "carrier_score": round(film.score, 3),
        "inverted": int(film.inverted),
        "polarity": film.polarity,
        "mask_from": film.mask_from,
        "low_contrast": int(film.low_contrast),
        "source_bits": film.source_bits,
    }
