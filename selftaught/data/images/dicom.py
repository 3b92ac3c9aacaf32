"""DICOM to grey: one frame, modality LUT, VOI window, MONOCHROME1 inverted exactly once.

Only the elements that describe pixels are read, so identifiers never enter the process. What each
of them does is a table in docs/data.md, "What is read".
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np

from selftaught.data.images import dicom_display, dicom_pixels
from selftaught.data.images.dicom_elements import (
    ACQUISITION,
    DOSE,
    IMAGE,
    Elements,
    Header,
    read_elements,
)
from selftaught.data.images.dicom_pixels import BIG, DEFLATED, EXPLICIT, GREY, Description, describe
from selftaught.data.images.dicom_values import BLANK, WORD, integer, number
from selftaught.data.images.limits import BadImage
from selftaught.errors import MachineError

PREAMBLE = 132
# How much is inflated at a time.
PIECE = 2**20
DOSES = (("KVP", "KVP", 1.0), ("Exposure", "Exposure", 1.0), ("ExposureInuAs", "Exposure", 1e-3))


def header(path: Path) -> tuple[int, int]:
    """(height, width) from the pixel description; the pixels are not read.

    Raises:
        BadImage: no image in the file, several frames, unusual samples, or above 64 Mpx.
    """
    with _reasons(path), path.open("rb") as handle:
        return describe(path, _opened(path, handle)[1].elements).size


def read(path: Path) -> np.ndarray:
    """Decode a single-frame DICOM image for display.

    Returns:
        (H, W) uint8 where at most 8 bits are stored, else uint16; the window, or the whole range
        of stored values, is spread over all of the output range.

    Raises:
        BadImage: as `header`; also pixels that are truncated or cannot be decompressed, and
            numbers with which nothing can be shown.
    """
    with _reasons(path), path.open("rb") as handle:
        syntax, head, stream = _opened(path, handle)
        pixels = describe(path, head.elements)
        samples = dicom_pixels.read_samples(path, syntax, head, stream, pixels)
        show = dicom_display.grey if pixels.photometric in GREY else dicom_display.luma
        return show(path, head.elements, pixels, samples)


def acquisition(path: Path) -> dict[str, str | float]:
    """How a film was taken, as far as its header says: words, kV and mAs.

    Returns:
        Of Modality, BodyPartExamined, ViewPosition, BitsStored (text) and KVP, Exposure (mAs) those
        that have a value; words that are none of DICOM's code strings are left out.

    Raises:
        BadImage: as `header`.
    """
    with _reasons(path), path.open("rb") as handle:
        elements = _opened(path, handle, ACQUISITION + DOSE)[1].elements
        facts: dict[str, str | float] = {}
        for name in ACQUISITION[:-1]:
            element = elements.get(name)
            text = "" if element is None else element.value.strip(BLANK).decode("latin-1").upper()
            if WORD.fullmatch(text):
                facts[name] = text
        if (bits := integer(path, elements, "BitsStored", 1, 64)) is not None:
            facts["BitsStored"] = str(bits)
        for name, target, scale in DOSES:
            with suppress(BadImage):  # a dose that is no number is none
                if (value := number(path, elements, name)) is not None:
                    facts.setdefault(target, value * scale)
        return facts


def _opened(
    path: Path, handle: BinaryIO, names: tuple[str, ...] = IMAGE
) -> tuple[str, Header, BinaryIO]:
    """UID of the transfer syntax, elements, and a stream that stands at the pixels."""
    if handle.read(PREAMBLE)[-4:] != b"DICM":
        handle.seek(0)
    meta = read_elements(path, handle, little=True, meta=True).elements
    syntax = _uid(meta, "TransferSyntaxUID")
    if syntax == DEFLATED:
        stream: BinaryIO = BytesIO(_inflated(path, handle))
    else:
        stream = handle
    if not syntax:
        # Groups of low numbers come first: read in the wrong order they are high.
        first = handle.read(2)
        handle.seek(-len(first), 1)
        syntax = BIG if int.from_bytes(first, "little") >= 0x400 else EXPLICIT
    head = read_elements(path, stream, little=syntax != BIG, names=names)
    head.elements.update(meta)
    return syntax, head, stream


def _inflated(path: Path, handle: BinaryIO) -> bytes:
    """Inflate no more than the described image can need, however much the file holds."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = bytearray()
    described: Description | None = None
    while not inflater.eof:
        compressed = inflater.unconsumed_tail or handle.read(PIECE)
        if not compressed:
            raise BadImage(path, "truncated DICOM: the deflated data ends too early")
        data += inflater.decompress(compressed, PIECE)
        if described is None and (len(data) >= PIECE or inflater.eof):
            head = read_elements(path, BytesIO(data), little=True, whole=False)
            # What is long may come before the description.
            if head.pixels or inflater.eof or "PixelRepresentation" in head.elements:
                described = describe(path, head.elements)
        allowed = 2 * PIECE + (described.length if described else 0)
        if len(data) > allowed:
            raise BadImage(path, f"inflates to more than the {allowed} bytes its image needs")
    return bytes(data)


def _uid(elements: Elements, name: str) -> str:
    element = elements.get(name)
    return element.value.strip(b" \0").decode("latin-1") if element is not None else ""


@contextmanager
def _reasons(path: Path) -> Iterator[None]:
    """What went wrong, in one line.

    Messages of others may quote elements, hence identifiers, so only their class is passed on.
    """
    try:
        yield
    except (BadImage, MachineError, MemoryError, ImportError):
        raise
    except Exception as error:
        if getattr(error, "errno", None) is not None:
            raise
        reason = f"damaged DICOM: cannot be read ({type(error).__name__})"
        raise BadImage(path, reason) from error
