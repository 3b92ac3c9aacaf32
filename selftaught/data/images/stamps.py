"""What files were when they were read, to notice and name those that are no longer the same."""

import csv
import io
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from selftaught.data.images.limits import MAX_BYTES
from selftaught.data.images.pack import stored_in
from selftaught.errors import InputError
from selftaught.files import sha256, write_atomic

NAME = "sources.csv"
HEADER = ["path", "bytes", "mtime_ns", "sha256"]


class Stamp(NamedTuple):
    """A file as it was.

    Attributes:
        bytes: its size; -1 where there was no file.
        mtime_ns: when it was last written, in ns.
        sha256: of its bytes; "" where there was no file, or one above `MAX_BYTES`.
    """

    bytes: int
    mtime_ns: int
    sha256: str


NO_FILE = Stamp(-1, 0, "")


def stamp(path: Path) -> Stamp:
    """The file as it is now."""
    size, time = _facts(path)
    try:
        return Stamp(size, time, sha256(path) if 0 <= size <= MAX_BYTES else "")
    except OSError:
        return Stamp(size, time, "")


def stamp_name(path: Path, root: Path) -> str:
    """How a list of stamps names an image or mask: the file it is stored in, from `root` on."""
    return os.path.relpath(stored_in(path), root)


def changes(root: Path, then: Mapping[str, Stamp]) -> dict[str, str]:
    """What is no longer as it was, by name: "has changed", "is gone" or "has appeared".

    A file of the same size and time counts as unchanged. If only its time differs it is read, and
    its checksum decides: a copy counts as unchanged.

    Args:
        root: folder that the names start from.
        then: what the files were.
    """
    changed: dict[str, str] = {}
    for name, was in then.items():
        size, time = _facts(root / name)
        if (size, time) == was[:2]:
            continue
        if size < 0 or was.bytes < 0:
            changed[name] = "is gone" if size < 0 else "has appeared"
        elif size != was.bytes or not was.sha256 or stamp(root / name).sha256 != was.sha256:
            changed[name] = "has changed"
    return changed


def first_of(changed: Mapping[str, str]) -> str:
    """Changes as part of one line."""
    name, what = next(iter(changed.items()))
    return f"{name} {what}" + (f" (and {len(changed) - 1} more files)" if len(changed) > 1 else "")


def write_stamps(path: Path, then: Mapping[str, Stamp]) -> None:
    """Write a list of files as CSV.

    Raises:
        MachineError: the disk is full or the folder cannot be written.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(HEADER)
    writer.writerows([name, *one] for name, one in then.items())
    write_atomic(path, text.getvalue().encode())


def read_stamps(path: Path) -> dict[str, Stamp]:
    """What `write_stamps` wrote; nothing where there is no such file.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8") as handle:
            header, *lines = csv.reader(handle, strict=True)
        if header != HEADER:
            raise ValueError("header")
        return {name: Stamp(int(size), int(time), digest) for name, size, time, digest in lines}
    except FileNotFoundError:
        return {}
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: is damaged; allowed: the file as it was written") from error


def _facts(path: Path) -> tuple[int, int]:
    """Size and time of a file; (-1, 0) where there is none, or a pipe, which has no end."""
    try:
        facts = os.stat(path)
    except (OSError, ValueError):
        return NO_FILE[:2]
    if not stat.S_ISREG(facts.st_mode):
        return NO_FILE[:2]
    return facts.st_size, facts.st_mtime_ns
