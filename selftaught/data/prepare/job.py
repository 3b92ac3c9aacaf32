"""The whole job of `selftaught prepare`: many processes, one shard at a time, resumable."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

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


class Part(NamedTuple):
    """A part of a job: the shards whose number, divided by `of`, leaves `number` less one."""

    number: int
    of: int


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
    manifest = _source(source, out, config)
    with _claimed(out, manifest, config) as complete:
        if complete:
            if changed := changes(manifest.root, read_stamps(out / SOURCES)):
                raise InputError(
                    f"{out}: {first_of(changed)} since this set was prepared; choose another "
                    f"folder, or go on with {out / 'manifest.csv'}, which does not need the source"
                )
            return read_summary(out)
        chunks, places = _chunks(manifest), _places(manifest, out)
        survey(places, [row for chunk in chunks for row in chunk], config)
        notes = _work(places, chunks, range(len(chunks)), config)
        ordered: list[list[Note]] = [kept for kept in notes.values() if kept is not None]
        if len(ordered) < len(chunks):
            raise MachineError(f"{places.work}: what was written is no longer there")
        return finish(out, manifest, config, places, ordered)


def prepare_part(source: Path, out: Path, config: PrepareConfig, part: Part) -> str:
    """Prepare every N-th shard of a source, beside other parts, on several machines too.

    `prepare` with the same source and settings completes the set, with what no part has finished.

    Args:
        source: as of `prepare`.
        out: folder to create or to go on with, which all parts see.
        config: settings, the same for all.
        part: which.

    Returns:
        What was done, a line.

    Raises:
        InputError, MachineError: as `prepare`; or the same part, or a job on the whole set, is at
            work in the folder.
    """
    manifest = _source(source, out, config)
    with _claimed(out, manifest, config, part) as complete:
        if complete:
            return f"{out} is complete; nothing to do"
        chunks, places = _chunks(manifest), _places(manifest, out)
        mine = range(part.number - 1, len(chunks), part.of)
        with (places.work / "survey").open("w") as lock:
            hold(lock, out, "", wait=True)  # One part looks at the set, the others take its word.
            survey(places, [row for chunk in chunks for row in chunk], config)
        _work(places, chunks, mine, config)
    return (
        f"part {part.number} of {part.of}: {len(mine)} of {len(chunks)} shards prepared; when "
        "every part is, the same command without --part completes the set"
    )


def _source(source: Path, out: Path, config: PrepareConfig) -> Manifest:
    """The list of films, checked against where the set is to lie."""
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
    return manifest


def _places(manifest: Manifest, out: Path) -> Places:
    return Places(manifest.root, out / FOLDER / "shards", out / "work")


def _work(
    places: Places, chunks: list[list[Row]], numbers: range, config: PrepareConfig
) -> dict[int, list[Note] | None]:
    """Prepare the shards of these numbers that are not finished; the notes of all of them."""
    notes = {number: _still_right(places, number) for number in numbers}
    todo = [number for number, kept in notes.items() if kept is None]
    total = sum(len(chunks[number]) for number in numbers)
    done = total - sum(len(chunks[number]) for number in todo)
    work = work_side_by_side(
        work_shard,
        [(places, number, chunks[number], config) for number in todo],
        workers=worker_count(config.workers),
        folder=places.shards,
        remedy="finished shards are kept: start again, with fewer workers if it happens again",
    )
    with closing(Bar("prepare", total, done)) as bar, closing(work) as finished:
        for position, _ in finished:
            number = todo[position]
            notes[number] = read_notes(places, number, verify=False)
            done += len(chunks[number])
            bar.advance(done)
    return notes


def _still_right(places: Places, number: int) -> list[Note] | None:
    """The notes of a finished shard, unless one of its source files is no longer the same."""
    notes = read_notes(places, number)
    changed = changes(places.root, stamps_of(notes)) if notes else {}
    if changed:
        warnings.warn(f"{first_of(changed)} since it was prepared: prepared again", stacklevel=3)
    return None if changed else notes


def _chunks(manifest: Manifest) -> list[list[Row]]:
    """The films of each shard."""
    table = manifest.table
    names = pack_names(table["path"].tolist())
    parts = [cleaned(part).lower() for part in table["body_part"]]
    columns = zip(names, table["path"], table["mask"], parts, strict=True)
    rows = [Row(number, *cells) for number, cells in enumerate(columns)]
    return [rows[i : i + SHARD_IMAGES] for i in range(0, len(rows), SHARD_IMAGES)]


@contextmanager
def _claimed(
    out: Path, manifest: Manifest, config: PrepareConfig, part: Part | None = None
) -> Iterator[bool]:
    """Hold the folder while the job runs; gives whether it is complete already.

    Parts share the folder, and each holds a lock of its own.

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
        hold(
            lock,
            out,
            f"{out}: another prepare is working in it; wait for it",
            shared=part is not None,
        )
        if part is not None:
            with (out / "work" / f"part-{part.number}-{part.of}").open("w") as own:
                hold(own, out, f"{out}: part {part.number} of {part.of} is at work; wait for it")
                yield (out / "manifest.csv").is_file()
            return
        for left in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp"), *out.glob("*/*/.*.tmp")):
            left.unlink(missing_ok=True)
        yield (out / "manifest.csv").is_file()
        if (out / "manifest.csv").is_file():
            shutil.rmtree(out / "work", ignore_errors=True)
