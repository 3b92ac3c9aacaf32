"""A ZIP as a folder of films: unpacked beside it once, within bounds, or refused in one line."""

import hashlib
import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path

from selftaught.data.images.limits import MAX_BYTES
from selftaught.data.manifest.check import CONTROL, DRIVE, show
from selftaught.data.manifest.films import is_system
from selftaught.data.manifest.spelling import warn
from selftaught.errors import InputError, MachineError
from selftaught.files import disk_full, free_bytes, machine_errors

# Deflate makes a thousandth of zeros; films are seldom less than a twentieth of their samples.
RATIO, SMALL = 200, 2**26
MEMBERS = 2**20
PIECE = 2**20
ALLOWED = "allowed: unpack it, and give the folder"


def unpacked(path: Path) -> Path:
    """The folder with an archive's files, made where it is not there yet; of one folder, that.

    It lies beside the archive and carries a digest of its list of files, so that it is made once,
    by whichever process is first, and an archive that has changed gets another.

    Args:
        path: the ZIP.

    Raises:
        InputError: no sound ZIP; a name that leads out of it, a link, a name that stands twice; a
            file that is encrypted, above 1 GiB, or that its packing does not allow to read; more
            than 2^20 files, or than 200 times the archive's size; a folder that cannot be written.
        MachineError: the disk is full.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = [one for one in archive.infolist() if not one.is_dir()]
            _check(path, members)
            folder = path.with_name(f"{path.name}.unpacked-{_digest(members)}")
            if not folder.is_dir():
                _unpack(path, archive, members, folder)
                warn(f"{path.name}: unpacked to {folder.name} beside it, which is kept")
            names = [name for name in os.listdir(folder) if not is_system(name)]
            inner = folder / names[0] if len(names) == 1 else folder
            return inner if inner.is_dir() else folder
    except (zipfile.BadZipFile, zlib.error, EOFError, UnicodeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: damaged ZIP: {type(error).__name__}; get it again") from error
    except (NotImplementedError, RuntimeError) as error:
        if isinstance(error, MachineError):
            raise
        raise InputError(f"{path}: a ZIP packed in a way that is not read; {ALLOWED}") from error
    except OSError as error:
        reason = f"cannot be unpacked beside it: {error.strerror}"
        raise InputError(f"{path}: {reason}; {ALLOWED}") from error


def _digest(members: list[zipfile.ZipInfo]) -> str:
    facts = sorted((one.filename, one.file_size, one.CRC) for one in members)
    return hashlib.sha256(repr(facts).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _check(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Refuse an archive by its list of files, before any of them is unpacked."""
    if len(members) > MEMBERS:
        raise InputError(f"{path}: {len(members)} files; allowed up to {MEMBERS}; {ALLOWED}")
    total, most = sum(one.file_size for one in members), RATIO * path.stat().st_size + SMALL
    if total > most:
        raise InputError(
            f"{path}: its files take {total:,} bytes, more than {RATIO} times its own size: it "
            f"would fill the disk; {ALLOWED}"
        )
    seen: set[str] = set()
    for one in members:
        name = one.filename
        fault = _fault(one)
        if not fault and name in seen:
            fault = "stands in it twice"
        if fault:
            raise InputError(f"{path}: {show(name)} {fault}; {ALLOWED}")
        seen.add(name)


def _fault(one: zipfile.ZipInfo) -> str:
    name = one.filename
    steps = name.split("/")
    # zipfile ends a name at a NUL, and makes the system's own separators slashes.
    written = one.orig_filename
    if "" in steps or "." in steps or ".." in steps or "\\" in written or DRIVE.match(name):
        return "leads out of the archive or is no plain path"
    if CONTROL.search(written):
        return "holds control characters"
    if stat.S_ISLNK(one.external_attr >> 16):
        return "is a link"
    if one.flag_bits & 1:
        return "is encrypted"
    if one.file_size > MAX_BYTES:
        return f"has {one.file_size} bytes, more than {MAX_BYTES}"
    return ""


def _unpack(
    path: Path, archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path
) -> None:
    """Write the files into a folder that gets its name when it is complete."""
    total = sum(one.file_size for one in members)
    if 0 <= free_bytes(folder) < total:
        raise disk_full(folder, total)
    part = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    try:
        with machine_errors(folder, total):
            for one in members:
                target = part / one.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                # Reading ends at the size that was checked, whatever more the data would give.
                with archive.open(one) as source, target.open("xb") as written:
                    shutil.copyfileobj(source, written, PIECE)
            part.chmod(0o755)
            try:
                os.rename(part, folder)
            except OSError:
                if not folder.is_dir():  # of another rank, which was first
                    raise
    except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
        raise InputError(
            f"{path}: two of its names cannot both stand on this disk; {ALLOWED}"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
