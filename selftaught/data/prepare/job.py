"""The whole job of `selftaught prepare`: many processes, one shard at a time, resumable."""

import fcntl
import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from multiprocessing import active_children, get_context, resource_tracker
from pathlib import Path
from typing import Any

from selftaught.console import Bar
from selftaught.data.images.pack import FOLDER
from selftaught.data.manifest import Manifest
from selftaught.data.prepare.claim import CLAIM, claimed, read_claim
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.finish import SOURCES, Summary, finish, read_summary
from selftaught.data.prepare.shard_work import (
    Note,
    Places,
    Row,
    read_notes,
    stamps_of,
    start_worker,
    work_shard,
)
from selftaught.data.prepare.source import check_apart, pack_names, read_source
from selftaught.data.sources import changes, first_of, read_stamps
from selftaught.errors import InputError, MachineError
from selftaught.files import machine_errors, write_atomic

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
    manifest = read_source(source, allow_outside=config.allow_outside)
    check_apart(source, out)
    with _claimed(out, manifest, config) as complete:
        if complete:
            if told := changes(manifest.root, read_stamps(out / SOURCES)):
                raise InputError(
                    f"{out}: {first_of(told)} since this set was prepared; choose another folder, "
                    f"or go on with {out / 'manifest.csv'}, which does not need the source"
                )
            return read_summary(out)
        rows = _rows(manifest)
        chunks = [rows[i : i + SHARD_IMAGES] for i in range(0, len(rows), SHARD_IMAGES)]
        places = Places(manifest.root, out / FOLDER / "shards", out / "work")
        notes = {number: _still_right(places, number) for number in range(len(chunks))}
        todo = [number for number, found in notes.items() if found is None]
        done = len(rows) - sum(len(chunks[number]) for number in todo)
        with (
            closing(Bar("prepare", len(rows), done)) as bar,
            closing(_finished(places, chunks, todo, config)) as finished,
        ):
            for number in finished:
                notes[number] = read_notes(places, number, verify=False)
                done += len(chunks[number])
                bar.advance(done)
        ordered: list[list[Note]] = [found for found in notes.values() if found is not None]
        if len(ordered) < len(chunks):
            raise MachineError(f"{places.work}: what was written is no longer there")
        return finish(out, manifest, config, places, ordered)


def _still_right(places: Places, number: int) -> list[Note] | None:
    """The notes of a finished shard, unless one of its source files is no longer the same."""
    notes = read_notes(places, number)
    told = changes(places.root, stamps_of(notes)) if notes else {}
    if told:
        warnings.warn(f"{first_of(told)} since it was prepared: prepared again", stacklevel=3)
    return None if told else notes


def _rows(manifest: Manifest) -> list[Row]:
    table = manifest.table
    names = pack_names(table["path"].tolist())
    columns = zip(names, table["path"], table["mask"], table["body_part"].str.lower(), strict=True)
    return [Row(number, *cells) for number, cells in enumerate(columns)]


@contextmanager
def _claimed(out: Path, manifest: Manifest, config: PrepareConfig) -> Iterator[bool]:
    """Hold the folder while the job runs; gives whether it is complete already.

    Raises:
        InputError: it holds something else, was begun otherwise, or another job is in it.
    """
    wanted: dict[str, Any] = {"format": "selftaught prepared", "version": 1}
    wanted["settings"] = claimed(config)
    wanted["source_sha256"] = manifest.digest
    claim = out / CLAIM
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; allowed: a folder that is new, empty or prepared")
    if out.is_dir() and any(out.iterdir()) and not claim.is_file():
        raise InputError(f"{out}: holds files that are not a prepared set; choose another --out")
    if claim.is_file():
        _compare(claim, wanted)
        if (out / "manifest.csv").is_file() and not (out / "work").exists():
            yield True  # Nothing is written: it may lie on a disk that is read only.
            return
    with machine_errors(out):
        for folder in (out / FOLDER / "shards", out / "work"):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(claim, json.dumps(wanted, indent=1) + "\n")
        lock = (out / "work" / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{out}: another prepare is working in it; wait for it") from None
        for left in (*out.glob(".*.tmp"), *out.glob("*/.*.tmp"), *out.glob("*/*/.*.tmp")):
            left.unlink(missing_ok=True)
        complete = (out / "manifest.csv").is_file()
        yield complete
        if (out / "manifest.csv").is_file():
            shutil.rmtree(out / "work", ignore_errors=True)


def _compare(claim: Path, wanted: dict[str, Any]) -> None:
    """Refuse to mix two jobs."""
    found = read_claim(claim)
    settings = found["settings"]
    for name, value in wanted["settings"].items():
        if settings.get(name) != value:
            raise InputError(
                f"{claim.parent}: was begun with {name} {settings.get(name)!r}, now {value!r}; "
                "choose another --out or the same settings"
            )
    if found.get("source_sha256") != wanted["source_sha256"]:
        raise InputError(f"{claim.parent}: was begun from another list; choose another --out")


def _finished(
    places: Places,
    chunks: list[list[Row]],
    todo: list[int],
    config: PrepareConfig,
) -> Generator[int, None, None]:
    """Work on shards, here or in processes, and give the number of each finished one."""
    workers = config.workers
    if workers == "auto":
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        workers = len(cores) if cores else os.cpu_count() or 1
    if workers == 1 or len(todo) < 2:
        for number in todo:
            work_shard(places, number, chunks[number], config)
            yield number
        return
    others = set(active_children())
    start_tracker()
    pool = ProcessPoolExecutor(
        min(workers, len(todo)), mp_context=get_context("spawn"), initializer=start_worker
    )
    try:
        waiting: dict[Future[None], int] = {
            pool.submit(work_shard, places, number, chunks[number], config): number
            for number in todo
        }
        while waiting:
            finished, _ = wait(waiting, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in finished:
                future.result()
                yield waiting.pop(future)
    except BrokenProcessPool as error:
        raise MachineError(
            f"{places.shards}: a worker was killed (out of memory?); finished shards are kept: "
            "start again, with fewer workers if it happens again"
        ) from error
    except BaseException:
        # Nobody waits for their shards: what is not finished is done again.
        for worker in set(active_children()) - others:
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def start_tracker() -> None:
    """Start what watches over workers' resources deaf to USR1, as Python makes it to TERM and INT.

    A signal to the whole process group would end it, and it would say so at length.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGUSR1"):
        return
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        resource_tracker.ensure_running()
    finally:
        signal.signal(signal.SIGUSR1, before)
