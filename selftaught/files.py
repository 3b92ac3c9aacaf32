"""Files that are either complete or absent: write beside, fsync, rename."""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from selftaught.errors import InputError, MachineError

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# What a file is to hold, or a function that writes it to the path it is given.
Content = bytes | str | Callable[[Path], object]


@contextmanager
def machine_errors(path: Path, size: int = 0) -> Iterator[None]:
    """Turn a full disk or a read-only folder met while writing `path` into a `MachineError`.

    Args:
        path: what is written.
        size: how many bytes that takes, where it is known.
    """
    try:
        yield
    except Exception as error:
        # safetensors raises an error of its own that holds the number only in its text.
        numbered = re.search(r"os error (\d+)", str(error))
        code = error.errno if isinstance(error, OSError) else int(numbered[1]) if numbered else None
        if code in FULL_DISK:
            raise disk_full(path, size) from error
        if code in (errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG):
            raise MachineError(f"{path}: cannot be written: {os.strerror(code)}") from error
        raise


def hold(
    handle: IO[str] | int, path: Path, taken: str, *, shared: bool = False, wait: bool = False
) -> None:
    """Lock an open file for this process; the lock goes with the file or process, however it ends.

    Args:
        handle: the file, or its descriptor.
        path: how messages call what it guards.
        taken: what to say where another process has it.
        shared: others may share it, and none may have it alone.
        wait: for whoever has it, in place of an error.

    Raises:
        InputError: another process has it.
        MachineError: the file system has no locks.
    """
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    try:
        fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise InputError(taken) from error
    except OSError as error:
        raise MachineError(
            f"{path} cannot be locked ({error.strerror}); allowed: a file system with locks"
        ) from error


def disk_full(path: Path, size: int = 0) -> MachineError:
    """The error where `size` bytes (0: unknown) have no room at `path`."""
    free = free_bytes(path)
    figures = [f"{size:,} bytes needed"] * bool(size) + [f"{free:,} bytes free"] * (free >= 0)
    room = f" ({', '.join(figures)})" if figures else ""
    return MachineError(
        f"{path}: disk full{room}; what was there before is intact: free some space and start the "
        "same command again"
    )


def free_bytes(path: Path) -> int:
    """Bytes free for this user on the disk of `path`, which need not exist yet; -1: unknown."""
    try:
        place = next(one for one in (path, *path.absolute().parents) if one.exists())
        return shutil.disk_usage(place).free
    except OSError:
        return -1


def fsync_folder(folder: Path) -> None:
    """Make a rename inside `folder` durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def fsync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, write: Content) -> None:
    """Replace `path` by new content in one step; a kill at any moment leaves old or new.

    Args:
        path: the file to write; its folder must exist.
        write: the content, or a function that writes it to the temporary path it is given.

    Raises:
        InputError: there is no such folder, or the path is one.
        MachineError: the disk is full or the folder cannot be written.
    """
    if not path.parent.is_dir():
        raise InputError(f"{path}: cannot be written: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path}: cannot be written: it is a folder; allowed: a file")
    temporary = path.with_name(f".{path.name}.tmp")
    with machine_errors(path, 0 if callable(write) else len(write)):
        try:
            _put(temporary, write)
            os.replace(temporary, path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def claim_folder(
    folder: Path,
    mark: str,
    facts: Mapping[str, Any],
    what: str,
    words: Mapping[str, str] | None = None,
) -> bool:
    """Make a folder a job's own, or check that it is the folder of the same job.

    Args:
        folder: what the job writes into; made where there is none.
        mark: name of the JSON file that holds the facts.
        facts: what the job's results depend on; the entries of a mapping count one by one.
        what: it becomes, such as "a prepared set".
        words: for a fact, what to say of one that differs in place of both values.

    Returns:
        Whether the job was begun before; then nothing was written.

    Raises:
        InputError: the folder is a file, holds other files, or was begun with other facts.
        MachineError: the disk is full or the folder cannot be written.
    """
    path = folder / mark
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file; allowed: a folder that is new, empty or {what}")
    if path.is_file():
        _compare_facts(path, json.loads(json.dumps(facts)), words or {})
        return True
    with machine_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    names = (one.name for one in folder.iterdir())
    others = any(not (n.startswith(f".{mark}.") and n.endswith(".tmp")) for n in names)
    if others and not path.is_file():  # which others may just have written
        raise InputError(f"{folder}: holds files that are not {what}; choose another folder")
    if _write_first(path, json.dumps(facts, indent=1) + "\n"):
        return False
    _compare_facts(path, json.loads(json.dumps(facts)), words or {})
    return True


def _write_first(path: Path, text: str) -> bool:
    """Write a file unless there is one; of several that do so at once, one does."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with machine_errors(path, len(text)):
        try:
            _put(temporary, text)
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # a file system without links
                os.replace(temporary, path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return True


def _compare_facts(path: Path, facts: dict[str, Any], words: Mapping[str, str]) -> None:
    """Refuse to mix two jobs."""
    try:
        there = _flat(json.loads(path.read_text(encoding="utf-8")))
        differing = [name for name, value in _flat(facts).items() if there[name] != value]
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: is damaged or of another version; delete the folder or choose another"
        ) from error
    if differing:
        name = differing[0]
        begun = words.get(name, f"with {name} {there[name]!r}, now {_flat(facts)[name]!r}")
        raise InputError(
            f"{path.parent}: was begun {begun}; choose another folder or the same settings"
        )


def _flat(facts: dict[str, Any]) -> dict[str, Any]:
    """The same facts with nested mappings taken apart."""
    flat: dict[str, Any] = {}
    for name, value in facts.items():
        flat.update(value if isinstance(value, dict) else {name: value})
    return flat


def write_folder(
    folder: Path,
    contents: Mapping[str, Content],
    *,
    replaces: Collection[str] = (),
    size: int = 0,
) -> Path:
    """Write a folder of files in one step; a kill at any moment leaves the old or the new one.

    They are written beside it and renamed. An earlier folder waits as `.NAME.previous` between
    the two renames: read `standing(folder)`.

    Args:
        folder: what to write; the folder that holds it is made where it is missing.
        contents: of each file by name, written in this order: a function finds those before it
            beside the path it is given.
        replaces: further names that an earlier folder there may hold.
        size: bytes of all, where known, for the line about a full disk.

    Returns:
        `folder`.

    Raises:
        InputError: it is a file, or holds something that this does not replace.
        MachineError: the disk is full or cannot be written; what was there is intact.
    """
    temporary, previous = _beside(folder, "tmp"), _beside(folder, "previous")
    with machine_errors(folder, size):
        if folder.is_file():
            raise InputError(f"{folder}: is a file; allowed: a folder of this kind, or none")
        if folder.exists():
            there = {entry.name for entry in folder.iterdir()}
            if others := sorted(there - set(contents) - set(replaces)):
                raise InputError(
                    f"{folder}: holds {others[0]!r}; allowed: a folder with nothing but "
                    f"{', '.join(contents)}, or none"
                )
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            for name, content in contents.items():
                _put(temporary / name, content)
            fsync_folder(temporary)
            if folder.exists():
                shutil.rmtree(previous, ignore_errors=True)
                os.replace(folder, previous)
            os.replace(temporary, folder)
            fsync_folder(folder.parent)
            shutil.rmtree(previous, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def standing(folder: Path) -> Path:
    """A folder of `write_folder`, or the earlier one where a kill came between the renames."""
    previous = _beside(folder, "previous")
    return previous if previous.exists() and not folder.exists() else folder


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}")


def _put(path: Path, content: Content) -> None:
    """Write a file durably, with the permissions that the umask gives."""
    path.unlink(missing_ok=True)  # a killed process may have left one with others
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    else:
        path.touch()
        wanted = stat.S_IMODE(path.stat().st_mode)
        content(path)
        # safetensors puts a file there that nobody else may read.
        if stat.S_IMODE(path.stat().st_mode) != wanted:
            path.chmod(wanted)
    fsync_file(path)


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML mapping from a file, safely.

    Raises:
        InputError: the file is missing, is not YAML or is no mapping.
    """
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; --config takes a YAML file") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: holds {type(content).__name__}; allowed: a mapping of options")
    return content
