"""Samples of a TIFF as they are stored, in any compression that tifffile or Pillow knows.

tifffile alone does not decompress LZW, and Pillow cuts 16-bit colour to 8 bits, but reads grey
exactly. So Pillow gets what is compressed as if it were grey: interleaved samples as a wider
picture, separate planes one by one.
"""

import struct
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from selftaught.data.images import raster, tiff_tags
from selftaught.data.images.limits import BadImage, not_read

if TYPE_CHECKING:
    from tifffile import TiffPage

DIFFERENCES = 2  # the predictor by which each sample is stored less the one to its left
# None, PackBits, Deflate and LZMA: what tifffile decompresses whatever else is installed.
BY_TIFFFILE = (1, 8, 32773, 32946, 34925)
UNPREDICTED = (1, 32773)  # where a predictor says nothing, to libtiff and Pillow
SHORT, LONG = 3, 4
FAX_OPTIONS = (292, 293)


def samples(path: Path, page: "TiffPage") -> np.ndarray:
    """(H, W, S) samples of an image.

    Raises:
        BadImage: compressed in a way that is not read.
        Exception: whatever the decoders raise; `raster.reasons` translates it.
    """
    height, width, count = page.imagelength, page.imagewidth, page.samplesperpixel
    if page.compression in UNPREDICTED:
        page.predictor = 1
    if page.compression in BY_TIFFFILE:
        stored = page.asarray(squeeze=False, maxworkers=1)[:, 0]
        return np.moveaxis(stored, 0, 2).reshape(height, width, count)
    if page.bitspersample not in (8, 16):
        name = getattr(page.compression, "name", page.compression)
        raise not_read(path, f"a TIFF of {page.bitspersample} bits compressed by {name}")
    planes = 1 if page.planarconfig == 1 else count
    parts = [raster.undisturbed(partial(_as_grey, page, i, planes)) for i in range(planes)]
    stored = np.concatenate(parts, axis=2)
    return stored.view(f"i{stored.itemsize}") if tiff_tags.signed(page) else stored


def check_fax(path: Path, page: "TiffPage") -> None:
    """Refuse a fax-coded image that ends early: its pixels depend on what is put behind its data.

    Raises:
        BadImage: truncated.
    """
    one, other = (
        raster.undisturbed(partial(_opened, _grey_file(page, 0, 1, 1, behind)))
        for behind in (b"\x55" * 64, b"\xaa" * 64)
    )
    if not np.array_equal(one, other):
        raise BadImage(path, "truncated TIFF: its fax-coded data ends before the last row")


def _opened(data: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(BytesIO(data), formats=("TIFF",)) as image:
        return np.array(image)


def _as_grey(page: "TiffPage", plane: int, planes: int) -> np.ndarray:
    """(H, W, S) of one plane of several, or of all samples in one."""
    from PIL import Image

    together = page.samplesperpixel // planes
    with Image.open(BytesIO(_grey_file(page, plane, planes, together)), formats=("TIFF",)) as image:
        stored = np.asarray(image).astype(np.uint8 if page.bitspersample == 8 else np.uint16)
    stored = stored.reshape(page.imagelength, page.imagewidth, together)
    if together > 1 and page.predictor == DIFFERENCES:
        step = page.tilewidth if page.is_tiled else page.imagewidth
        for left in range(0, page.imagewidth, step):
            part = stored[:, left : left + step]
            np.cumsum(part, axis=1, dtype=stored.dtype, out=part)
    return stored


def _grey_file(
    page: "TiffPage", plane: int, planes: int, together: int, behind: bytes = b""
) -> bytes:
    """A TIFF of plain grey with the compressed data of a plane, each part with bytes behind it."""
    count = len(page.dataoffsets) // planes
    parts, file = [], page.parent.filehandle
    for i in range(plane * count, (plane + 1) * count):
        file.seek(page.dataoffsets[i])
        parts.append(file.read(page.databytecounts[i]) + behind)
    starts = np.cumsum([8] + [len(part) for part in parts])[:-1].tolist()
    lengths = [len(part) for part in parts]
    tags: list[tuple[int, int, list[int]]] = [
        (256, LONG, [page.imagewidth * together]),
        (257, LONG, [page.imagelength]),
        (258, SHORT, [page.bitspersample]),
        (259, SHORT, [int(page.compression)]),
        (262, SHORT, [1]),
        (266, SHORT, [int(page.fillorder)]),
        (277, SHORT, [1]),
        (317, SHORT, [1 if together > 1 else int(page.predictor or 1)]),
    ]
    tags += [(code, LONG, [page.tags[code].value]) for code in FAX_OPTIONS if code in page.tags]
    if page.is_tiled:
        tags += [(322, LONG, [page.tilewidth * together]), (323, LONG, [page.tilelength])]
        tags += [(324, LONG, starts), (325, LONG, lengths)]
    else:
        tags += [(273, LONG, starts), (278, LONG, [page.rowsperstrip]), (279, LONG, lengths)]
    return _file(page.parent.byteorder, b"".join(parts), sorted(tags))


def _file(order: str, data: bytes, tags: list[tuple[int, int, list[int]]]) -> bytes:
    """A TIFF: its first bytes, the data, and a directory of tags with their values behind it."""
    data += bytes(len(data) % 2)
    begin = 8 + len(data)
    behind, values = begin + 6 + 12 * len(tags), b""
    directory = struct.pack(order + "H", len(tags))
    for code, kind, numbers in tags:
        packed = struct.pack(f"{order}{len(numbers)}{'H' if kind == SHORT else 'I'}", *numbers)
        directory += struct.pack(order + "HHI", code, kind, len(numbers))
        if len(packed) > 4:
            directory += struct.pack(order + "I", behind + len(values))
            values += packed
        else:
            directory += packed.ljust(4, b"\0")
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", begin)
    return start + data + directory + bytes(4) + values
