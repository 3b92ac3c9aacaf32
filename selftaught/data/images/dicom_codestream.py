"""Compressed pixels of a DICOM file: which decoder undoes them, and whether they are complete.

Decoders are chosen by name, so that what else is installed changes nothing. Some of them fill what
is missing with grey, or do so when a switch of the host tells them to; so it is looked at here.
"""

import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selftaught.data.images import jpeg, lossless_jpeg
from selftaught.data.images.limits import BadImage
from selftaught.errors import MachineError

J2K_BEGIN = b"\xff\x4f\xff\x51"
APP14 = 0xEE
ADOBE_RGB = b"\xff\xee\0\x0eAdobe\0\x64" + bytes(5)
START_OF_TILE, END_OF_CODESTREAM = 0xFF90, 0xFFD9

# (codestream, plugin of pydicom) -> samples and their PhotometricInterpretation.
Undo = Callable[[bytes, str], tuple[np.ndarray, str]]


class Codec(NamedTuple):
    """How one compression is undone.

    Attributes:
        name: for messages.
        plugins: of pydicom, in the order in which they are tried.
        packages: what to install for the first of them, "" where nothing is missing.
        lossless: JPEG of ITU-T T.81, process 14.
    """

    name: str
    plugins: tuple[str, ...]
    packages: str = ""
    lossless: bool = False


LOSSLESS = Codec("JPEG Lossless", ("gdcm",), "python-gdcm", lossless=True)
JPEG_LS = Codec("JPEG-LS", ("gdcm", "pyjpegls"), "python-gdcm")
J2K = Codec("JPEG 2000", ("pillow", "gdcm", "pylibjpeg"))
HTJ2K = Codec("High-Throughput JPEG 2000", ("pylibjpeg",), "pylibjpeg pylibjpeg-openjpeg")
BASELINE, EXTENDED = Codec("JPEG Baseline", ("pillow",)), Codec("JPEG Extended", ("pillow",))
RLE = Codec("RLE", ("pydicom",))
CODECS = {
    "1.2.840.10008.1.2.4.50": BASELINE,
    "1.2.840.10008.1.2.4.51": EXTENDED,
    "1.2.840.10008.1.2.4.57": LOSSLESS,
    "1.2.840.10008.1.2.4.70": LOSSLESS,
    "1.2.840.10008.1.2.4.80": JPEG_LS,
    "1.2.840.10008.1.2.4.81": JPEG_LS,
    "1.2.840.10008.1.2.4.90": J2K,
    "1.2.840.10008.1.2.4.91": J2K,
    "1.2.840.10008.1.2.4.201": HTJ2K,
    "1.2.840.10008.1.2.4.202": HTJ2K,
    "1.2.840.10008.1.2.4.203": HTJ2K,
    "1.2.840.10008.1.2.5": RLE,
}
# Their codestreams say the sign and depth of samples; pydicom brings these to the header's.
SIGN_CODED = tuple(uid for uid, one in CODECS.items() if one in (JPEG_LS, J2K, HTJ2K))
EXPORT = "export the file uncompressed, for instance with gdcmconv --raw of the package python-gdcm"


def codec(path: Path, syntax: str) -> Codec:
    """The codec of a transfer syntax.

    Raises:
        BadImage: it is none that is read.
    """
    if syntax in CODECS:
        return CODECS[syntax]
    from pydicom.uid import UID_dictionary

    name = UID_dictionary[syntax][0] if syntax in UID_dictionary else "unknown"
    raise BadImage(path, f"compression {name} is not read; {EXPORT}")


def decode(
    path: Path,
    codec: Codec,
    frame: bytes,
    size: tuple[int, int],
    undo: Undo,
    plugins: tuple[str, ...],
) -> tuple[np.ndarray, str]:
    """Undo the compression by the first decoder that can, completely or not at all.

    Args:
        path: named in errors.
        codec: of the transfer syntax.
        frame: the codestream.
        size: (height, width) by the header.
        undo: raises what the plugin raises.
        plugins: those installed.

    Returns:
        What `undo` gives.

    Raises:
        BadImage: no decoder is installed, or the codestream is damaged, incomplete, of another
            size than the header, or of a kind that is not read.
    """
    usable = [plugin for plugin in codec.plugins if plugin in plugins]
    if not usable and not codec.packages:
        reason = f"{codec.name} compression is not in this build of Pillow: pip install -U pillow"
        raise BadImage(path, reason)
    if not usable:
        raise BadImage(
            path,
            f"{codec.name} compression needs packages that are not installed: "
            f"pip install {codec.packages}",
        )
    if codec != RLE:
        _check_size(path, frame, size)
    if codec == EXTENDED and (bits := lossless_jpeg.frame_header(frame)[0]) > 8:
        raise BadImage(path, f"JPEG Extended of {bits} bits is not read; {EXPORT}")
    if codec in (BASELINE, EXTENDED):
        jpeg.check(path, frame, inside=True)
        frame = _with_colors(frame)
    result = samples, _ = first(path, codec, frame, usable, undo)
    if codec.lossless and not lossless_jpeg.is_complete(frame, samples):
        raise BadImage(path, f"truncated {codec.name}: its data ends before the last pixel")
    parts = lossless_jpeg.segments(frame) if codec in (BASELINE, EXTENDED) else ()
    if any(marker == APP14 and part[:5] == b"Adobe" for marker, part in parts):
        result = samples, "RGB"  # It says which colours are coded; Pillow has made them RGB.
    return result


def _with_colors(frame: bytes) -> bytes:
    """A JPEG whose components are named R, G, B, with the segment without which Pillow fails."""
    for marker, part in lossless_jpeg.segments(frame):
        if part.startswith((b"JFIF", b"Adobe")):
            break
        if marker in lossless_jpeg.FRAMES and part[6::3] == b"RGB":
            return frame[:2] + ADOBE_RGB + frame[2:]
    return frame


def first(
    path: Path, codec: Codec, frame: bytes, plugins: list[str], undo: Undo
) -> tuple[np.ndarray, str]:
    """What the first decoder gives that raises nothing; arguments and errors as for `decode`."""
    for plugin in plugins:
        try:
            return undo(frame, plugin)
        except (MemoryError, MachineError):
            raise
        except Exception as error:
            last = error
    reason = f"truncated or damaged: its {codec.name} data cannot be decoded"
    if codec == J2K and "gdcm" not in plugins:
        reason = (
            f"its {codec.name} data cannot be decoded by Pillow; pip install python-gdcm can more"
        )
    raise BadImage(path, reason) from last


def _check_size(path: Path, frame: bytes, size: tuple[int, int]) -> None:
    """Refuse a codestream that claims another size than the header, before it is decoded.

    Of JPEG 2000 also one whose tile-parts go on behind its end (ITU-T T.800, annex A): Pillow's
    decoder notices that too, unless `ImageFile.LOAD_TRUNCATED_IMAGES` is set.
    """
    begin = frame.find(J2K_BEGIN)
    if begin < 0:
        _, *coded = lossless_jpeg.frame_header(frame)
        whole = True
    else:
        coded, whole = _tiles(frame[begin:])
    if tuple(coded) != size:
        raise BadImage(path, f"compressed image of {tuple(coded)} pixels; the header says {size}")
    if not whole:
        raise BadImage(path, "truncated JPEG 2000: its data ends before the last tile")


def _tiles(data: bytes) -> tuple[list[int], bool]:
    """(height, width) of a JPEG 2000 codestream, and whether all its tiles are there."""
    if len(data) < 40:
        return [0, 0], False
    right, bottom, left, top, *tile = struct.unpack_from(">8I", data, 8)
    size = [bottom - top, right - left]
    if not tile[0] or not tile[1]:
        return size, False
    expected = -(-(right - tile[2]) // tile[0]) * -(-(bottom - tile[3]) // tile[1])
    position, tiles = 2, set()
    while position + 12 <= len(data) and data[position] == 0xFF:
        marker, length = struct.unpack_from(">HH", data, position)
        if marker == START_OF_TILE:
            index, part = struct.unpack_from(">HI", data, position + 4)
            tiles.add(index)
            position = position + part if part else len(data)
        elif marker == END_OF_CODESTREAM:
            break
        else:
            position += 2 + length
    return size, position <= len(data) and len(tiles) >= expected
