"""The whole job of `selftaught prepare`: many processes, one shard at a time, resumable."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from selftaught.console import Bar
from selftaught.data.images.pack import FOLDER
from selftaught.data.images.stamps import changes, first_of, read_stamps
from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.manifest.check import show
from selftaught.data.manifest.spelling import cleaned, warn
from selftaught.data.prepare.claim import CLAIM, claimed
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.finish import FACTS, SOURCES, Summary, finish, read_summary
from selftaught.data.prepare.shard_work import (
    Note,
    Places,
    Row,
    read_notes,
    stamps_of,
    work_shard,
)
from selftaught.data.prepare.source import check_apart, pack_names
from selftaught.data.prepare.survey import survey
from selftaught.errors import InputError, MachineError
from selftaught.files import claim_folder, hold, machine_errors
from selftaught.workers import work_side_by_side, worker_count

SHARD_IMAGES = 64


def prepare(source: Path, out: Path, config: PrepareConfig) -> Summary:
    """Prepare all images of a source; what an earlier start has finished is kept.

    The files in `out` depend on the source and the settings, not on the number of workers nor on
    how often the job was killed. `manifest.csv` is written last: a folder that has it is complete.
    An exception may interrupt it anywhere: shards that are not finished are dropped.

    Args:
        source: manifest, MURA tree or folder of images.
        out: folder to create or to go on with.
        config: settings.

    Returns:
        What was done.

    Raises:
        InputError: the source or `out` cannot be used.
        MachineError: the disk is full or cannot be written, the source's folder is gone, or a
            worker was killed.
    """
    manifest = read_manifest(
        source, allow_outside=config.allow_outside, check_files=False, unlabelled=True
    )
    check_apart(source, out)
    taken = [name for name in FACTS if name in manifest.table]
    if taken and len(taken) < len(FACTS):  # A prepared set may be prepared again.
        warn(
            f"{manifest.name}: {', '.join(map(show, taken))}: the set has its own facts under this "
            "name, so that yours are not in its list; allowed: another name"
        )
    with _claimed(out, manifest, config) as complete:
        if complete:
            if changed := changes(manifest.root, read_stamps(out / SOURCES)):
                raise InputError(
                    f"{out}: {first_of(changed)} since this set was prepared; choose another "
                    f"folder, or go on with {out / 'manifest.csv'}, which does not need the source"
                )
            return read_summary(out)
        rows = _rows(manifest)
        chunks = [rows[i : i + SHARD_IMAGES] for i in range(0, len(rows), SHARD_IMAGES)]
        places = Places(manifest.root, out / FOLDER / "shards", out / "work")
        survey(places, rows, config)
        notes = {number: _still_right(places, number) for number in range(len(chunks))}
        todo = [number for number, kept in notes.items() if kept is None]
        done = len(rows) - sum(len(chunks[number]) for number in todo)
        work = work_side_by_side(
            work_shard,
            [(places, number, chunks[number], config) for number in todo],
            workers=worker_count(config.workers),
            folder=places.shards,
            remedy="finished shards are kept: start again, with fewer workers if it happens again",
        )
        with closing(Bar("prepare", len(rows), done)) as bar, closing(work) as finished:
            for position, _ in finished:
                number = todo[position]
                notes[number] = read_notes(places, number, verify=False)
                done += len(chunks[number])
                bar.advance(done)
        ordered: list[list[Note]] = [kept for kept in notes.values() if kept is not None]
        if len(ordered) < len(chunks):
            raise MachineError(f"{places.work}: what was written is no longer there")
        return finish(out, manifest, config, places, ordered)


def _still_right(places: Places, number: int) -> list[Note] | None:
    """The notes of a finished shard, unless one of its source files is no longer the same."""
    notes = read_notes(places, number)
    changed = changes(places.root, stamps_of(notes)) if notes else {}
    if changed:
        warnings.warn(f"{first_of(changed)} since it was prepared: prepared again", stacklevel=3)
    return None if changed else notes


def _rows(manifest: Manifest) -> list[Row]:
    table = manifest.table
    names = pack_names(table["path"].tolist())
    parts = [cleaned(part).lower() for part in table["body_part"]]
    columns = zip(names, table["path"], table["mask"], parts, strict=True)
    return [Row(number, *cells) for number, cells in enumerate(columns)]


@contextmanager
def _claimed(out: Path, manifest: Manifest, config: PrepareConfig) -> Iterator[bool]:
    """Hold the folder while the job runs; gives whether it is complete already.

    Raises:
        InputError: it holds something else, was begun otherwise, or another job is in it.
    """
    facts: dict[str, Any] = {"format": "selftaught prepared", "version": 1}
    facts["settings"] = claimed(config)
    facts["source_sha256"] = manifest.digest
    words = {"source_sha256": "from another list"}
    begun = claim_folder(out, CLAIM, facts, "a prepared set", words)
    if begun and (out / "manifest.csv").is_file() and not (out / "work").exists():
        yield True  # Nothing is written: it may lie on a disk that is read only.
        return
    with machine_errors(out):
        for folder in (out / FOLDER / "shards", out / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        lock = (out / "work" / "lock").open("w")
    with lock:
        hold(lock, out, f"{out}: another prepare is working in it; wait for it")
        for left in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp"), *out.glob("*/*/.*.tmp")):
            left.unlink(missing_ok=True)
        yield (out / "manifest.csv").is_file()
        if (out / "manifest.csv").is_file():
            shutil.rmtree(out / "work", ignore_errors=True)
