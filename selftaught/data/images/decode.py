"""Reads any image file a manifest may name as a grey array, strictly."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from selftaught.data.images import dicom, jpeg, png, tiff
from selftaught.data.images.dicom_elements import begins_elements
from selftaught.data.images.limits import MAX_BYTES, BadImage
from selftaught.data.images.pack import FOLDER, locate
from selftaught.errors import MachineError

__all__ = ["BadImage", "check_header", "read_grey"]

ALLOWED = "8/16-bit PNG, JPEG, TIFF or DICOM"
SUFFIXES = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "TIFF": (".tif", ".tiff"),
}
READERS = {"PNG": png, "JPEG": jpeg, "TIFF": tiff, "DICOM": dicom}
NAMED = {suffix: kind for kind, suffixes in SUFFIXES.items() for suffix in suffixes}
USER_ERRNOS = (
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
    errno.EINVAL,
)


def check_header(path: Path | str) -> tuple[int, int]:
    """Read an image's size from its header; no pixel is decoded.

    Args:
        path: a PNG, JPEG, TIFF or DICOM file, or an image or mask of a pack.

    Returns:
        (height, width) in pixels, upright (after EXIF rotation), as `read_grey` will give it.

    Raises:
        BadImage: missing, empty, of another kind than its suffix says, or above 64 Mpx.
        MachineError: the disk cannot be read.
    """
    path = Path(path)
    packed = _packed(path)
    if packed is not None:
        return packed.shape[0], packed.shape[1]
    with _file_errors(path):
        return READERS[_kind(path)].header(path)


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, which states its polarity: what `read_grey` gives is as stated.

    Raises:
        BadImage: it is missing or empty.
        MachineError: the disk cannot be read.
    """
    if _packed(path) is not None:
        return False
    with _file_errors(path):
        return kind_by_content(_first_bytes(path)) == "DICOM"


def read_grey(path: Path | str) -> np.ndarray:
    """Decode one image file completely, or say why not.

    Colour becomes Rec. 601 luma; transparent pixels become black; EXIF rotation is applied;
    DICOM goes through modality LUT and VOI window, and MONOCHROME1 is inverted once, so that
    brighter always means denser. More than 8 bits stay 16 bits.

    Args:
        path: a PNG, JPEG, TIFF or DICOM file, or an image or mask of a pack.

    Returns:
        (H, W) uint8 or uint16, C-contiguous, writable.

    Raises:
        BadImage: one line naming file and reason: missing, empty, truncated, damaged, of another
            kind than its suffix says, above 64 Mpx, several frames, no pixels.
        MachineError: the disk cannot be read.
    """
    path = Path(path)
    packed = _packed(path)
    if packed is not None:
        return np.array(packed)
    with _file_errors(path):
        grey = READERS[_kind(path)].read(path)
    return np.require(grey, requirements=["C", "W"])


def stated_bits(path: Path) -> int | None:
    """Bits that a file of more than 8 bits states for its levels, which `read_grey` leaves as such.

    Returns:
        9 to 15 for a TIFF of so many bits and a grey PNG whose sBIT chunk says so; 16 where
        levels fill 16 bits, as those of DICOM files and packs; None where nothing is stated.

    Raises:
        BadImage: as `check_header`.
        MachineError: the disk cannot be read.
    """
    path = Path(path)
    if _packed(path) is not None:
        return 16
    with _file_errors(path):
        kind = _kind(path)
        if kind == "DICOM":
            return 16
        if kind == "JPEG":
            return None
        return png.stated_bits(path) if kind == "PNG" else tiff.stated_bits(path)


def _packed(path: Path) -> np.ndarray | None:
    """The image or mask that a path names inside a pack."""
    packed = locate(path) if FOLDER in path.parts else None
    if packed is None:
        return None
    return packed.pack.mask(packed.slot) if packed.is_mask else packed.pack.image(packed.slot)


def _kind(path: Path) -> str:
    """The file's format by its first bytes, checked against its suffix."""
    start = _first_bytes(path)
    kind = kind_by_content(start)
    suffix = path.suffix.lower()
    if kind is None:
        raise BadImage(path, f"is not an image that can be read; allowed: {ALLOWED}")
    if kind == "DICOM":
        if suffix in NAMED:
            raise BadImage(path, f"holds DICOM data but is named {suffix}; rename it to .dcm")
    elif suffix not in SUFFIXES[kind]:
        raise BadImage(
            path,
            f"holds {kind} data but is named {suffix or 'without a suffix'}; "
            f"allowed: {', '.join(SUFFIXES[kind])}",
        )
    return kind


def kind_by_content(start: bytes) -> str | None:
    """PNG, JPEG, TIFF or DICOM, as the first 132 bytes of a file tell; None: nothing of these."""
    # First: a DICOM preamble may itself be the header of a TIFF.
    if start[128:132] == b"DICM":
        return "DICOM"
    if start.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    return "DICOM" if begins_elements(start) else None


def _first_bytes(path: Path) -> bytes:
    """The first 132 bytes of a regular, non-empty file of at most `MAX_BYTES`."""
    try:
        facts = os.stat(path)
    except ValueError:
        raise BadImage(repr(str(path)), "is not a valid file name") from None
    if not stat.S_ISREG(facts.st_mode):
        raise BadImage(path, "is not a regular file")
    if facts.st_size == 0:
        raise BadImage(path, "is empty (0 bytes)")
    if facts.st_size > MAX_BYTES:
        raise BadImage(path, f"has {facts.st_size} bytes; allowed up to {MAX_BYTES}")
    with open(path, "rb") as handle:
        return handle.read(132)


@contextmanager
def _file_errors(path: Path) -> Iterator[None]:
    """What the file system says: the user's mistake, or the machine's failure."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise BadImage(path, "is missing") from None
        if error.errno in USER_ERRNOS:
            raise BadImage(path, f"cannot be opened: {error.strerror}") from None
        raise MachineError(f"{path}: cannot be read: {error.strerror}") from error
