"""Which files of a folder are films, and what is left out of it, counted by kind and named.

A film is named as one (.png, .jpg, .tif, ...), or holds DICOM data, as on a CD whose files have no
suffix. What an operating system or a program keeps for itself is passed over in silence.
"""

import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

from selftaught.data.images.decode import SUFFIXES, kind_by_content
from selftaught.data.manifest.check import show
from selftaught.data.manifest.spelling import identity, warn
from selftaught.errors import InputError, MachineError

RASTER = tuple(suffix for suffixes in SUFFIXES.values() for suffix in suffixes)
DICOM = (".dcm", ".dicom")
IMAGE_SUFFIXES = (*RASTER, *DICOM)
# Second copies of a file that another program made: the film itself is beside them.
COPIES = ("~", ".bak", ".orig", ".old", ".part", ".partial", ".crdownload", ".tmp", ".swp")
# By `str.casefold`. Recycle bins, indices, snapshots and thumbnails of Windows, macOS, Linux and of
# network disks; what begins with a dot and is not here is counted as hidden.
SYSTEM = frozenset(
    ("$recycle.bin", "recycler", "recycled", "system volume information", "thumbs.db")
    + ("ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "found.000", "pagefile.sys")
    + ("__macosx", ".ds_store", ".appledouble", ".appledb", ".appledesktop", "icon\r", ".localized")
    + (".fseventsd", ".spotlight-v100", ".temporaryitems", ".trashes", ".volumeicon.icns", ".trash")
    + (".documentrevisions-v100", "network trash folder", "temporary items", ".apdisk")
    + (".thumbnails", ".thumbs", ".cache", ".directory", "lost+found", ".xvpics", ".comments")
    + ("@eadir", "#recycle", "#snapshot", ".snapshot", ".snapshots", "~snapshot", ".zfs")
    + ("@recycle", "@recently-snapshot", "@tmp", "@__thumb", ".@__thumb", ".picasa.ini")
    + (".picasaoriginals", ".git", ".gitignore", ".gitattributes", ".gitkeep", ".keep", ".svn")
    + (".hg", ".dvc", ".dvcignore", ".datalad", "__pycache__", ".ipynb_checkpoints")
    + (".idea", ".vscode", ".venv")
)
SYSTEM_STARTS = ("._", ".trash-", ".nfs", ".fuse_hidden", ".~lock.", "~$", ".smbdelete")
# Not "thumbs": that is a body part.
THUMBNAILS = "thumbnails"
NAMED_EACH, KINDS_NAMED = 3, 6
PREAMBLE, HEAD = 132, 2**14
SOP_CLASS = 0x00080016


class Films(NamedTuple):
    """A folder's films and the rest.

    Attributes:
        paths: sorted posix paths of the films, relative to the root that was given.
        left_out: paths of what is no film, by kind.
    """

    paths: list[str]
    left_out: dict[str, list[str]]

    def warn(self, name: str) -> None:
        """Name what is left out in one line, where there is any.

        Args:
            name: of the folder.
        """
        if not self.left_out:
            return
        kinds = sorted(self.left_out.items(), key=lambda one: (-len(one[1]), one[0]))
        parts = []
        for kind, paths in kinds[:KINDS_NAMED]:
            names = ", ".join(show(path) for path in sorted(paths)[:NAMED_EACH])
            parts.append(f"{len(paths)} {kind} ({names}{', ...' * (len(paths) > NAMED_EACH)})")
        if others := kinds[KINDS_NAMED:]:
            parts.append(f"{sum(len(paths) for _, paths in others)} of {len(others)} more kinds")
        warn(f"{name}: left out, being no film: {'; '.join(parts)}")


def list_films(root: Path, under: str = ".") -> Films:
    """All films below a folder; linked folders are not entered.

    Args:
        root: absolute folder that the paths start from.
        under: the folder to search, relative to it.

    Raises:
        InputError: a folder in it cannot be listed.
        MachineError: the disk cannot be read.
    """
    paths: list[str] = []
    left_out: dict[str, list[str]] = defaultdict(list)
    links: list[str] = []
    for path, entry in _entries(root, "" if under == "." else under):
        kind = _kind(entry)
        if kind:
            left_out[kind].append(path)
        else:
            (links if entry.is_symlink() else paths).append(path)
    if links:
        own = {os.path.realpath(root / path) for path in paths}
        for path in links:
            second = os.path.realpath(root / path) in own
            (left_out["links to films beside them"] if second else paths).append(path)
    return Films(sorted(paths), dict(left_out))


def is_system(name: str) -> bool:
    """Whether a file or folder of this name belongs to an operating system or another program."""
    return name.casefold() in SYSTEM or name.casefold().startswith(SYSTEM_STARTS)


def is_directory(path: Path) -> bool:
    """Whether a path is that of a CD's list of its files, by its name."""
    return identity(path.name) in ("dicomdir", "dicomdir.") and path.is_file()


def _entries(root: Path, under: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Everything below a folder that is not a folder to enter, and not a system's."""
    folders = [under]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                there = list(entries)
        except PermissionError as error:
            raise InputError(
                f"{root / folder}: cannot be listed: {error.strerror}; allowed: a folder whose "
                "files may all be seen"
            ) from error
        except OSError as error:
            raise MachineError(f"{root / folder}: cannot be listed: {error.strerror}") from error
        for entry in there:
            path = f"{folder}/{entry.name}".lstrip("/")
            if is_system(entry.name):
                continue
            entered = not entry.name.startswith(".") and entry.name.casefold() != THUMBNAILS
            if entered and entry.is_dir(follow_symlinks=False):
                folders.append(path)
            else:
                yield path, entry


def _kind(entry: os.DirEntry[str]) -> str:
    """What a file is that is no film; "" for a film."""
    name = entry.name
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith("."):
        return "hidden"
    if os.path.isdir(entry.path):  # DirEntry.is_dir raises where links lead in a circle
        return THUMBNAILS if name.casefold() == THUMBNAILS else "linked folders"
    if suffix in RASTER:
        return ""
    try:
        regular = stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        regular = False
    if not regular:
        return "" if suffix in DICOM else "links to nothing, pipes or devices"
    if name.lower().endswith(COPIES):
        return "copies of other programs"
    if is_directory(Path(entry.path)):
        return "DICOMDIR"
    return _kind_by_content(entry.path, suffix)


def _kind_by_content(path: str, suffix: str) -> str:
    """The same, for a file that is named as DICOM or as nothing that is read."""
    plain = "" if suffix in DICOM else suffix or "without a suffix"
    try:
        with open(path, "rb") as handle:
            start = handle.read(PREAMBLE)
    except OSError as error:
        return f"that cannot be read: {error.strerror}"
    image = kind_by_content(start)
    if image == "DICOM":
        return _dicom_kind(path)
    if suffix in DICOM:
        return ""
    return f"{image} without its suffix" if image else plain


def _dicom_kind(path: str) -> str:
    """The kind of a DICOM object that the standard knows as one without an image; else ""."""
    from pydicom.filereader import read_partial
    from pydicom.uid import UID_dictionary

    try:
        with open(path, "rb") as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # No more than the head is read, or inflated; elements stand in the order of their tags.
            elements = read_partial(
                BytesIO(handle.read(HEAD)),
                stop_when=lambda tag, vr, length: tag > SOP_CLASS,
                force=True,
                specific_tags=[SOP_CLASS],
            )
        uid = elements.file_meta.get("MediaStorageSOPClassUID") or elements.get("SOPClassUID")
        name, kind = UID_dictionary[str(uid)][:2]
    except Exception:  # damaged, or of another standard: whoever decodes it says what is wrong
        return ""
    if kind != "SOP Class" or "Image" in name:
        return ""
    return "DICOMDIR" if "Directory" in name else f"DICOM {name.removesuffix(' Storage')}"
