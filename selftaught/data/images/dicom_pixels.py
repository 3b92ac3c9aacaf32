"""Samples of a DICOM image: their description, and their bytes made numbers (PS3.3 C.7.6.3)."""

import re
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from selftaught.data.images import decoder_process, dicom_codestream
from selftaught.data.images.dicom_elements import ITEM, SEQUENCE_END, UNDEFINED, Elements, Header
from selftaught.data.images.dicom_values import BLANK, group, integer, numbers, word
from selftaught.data.images.limits import BadImage, check_size

GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
SUBSAMPLED = "YBR_FULL_422"
COLOR = (PALETTE, "RGB", "YBR_FULL", SUBSAMPLED, "YBR_ICT", "YBR_RCT")
IMPLICIT, EXPLICIT = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"
BIG, DEFLATED = "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.1.99"
IN_FRAGMENTS = "1.2.840.10008.1.2.1.98"
NATIVE = (IMPLICIT, EXPLICIT, BIG, DEFLATED, IN_FRAGMENTS)
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio")
# Sides of a pixel that differ by less are rounding.
SQUARE = 0.01
PIECE = 2**20
FRAGMENT = b"\xfe\xff\x00\xe0"
COMPRESSED = "compressed pixel data, though the header says uncompressed"


@dataclass(frozen=True, kw_only=True)
class Description:
    """How samples lie in the pixel data.

    Attributes:
        photometric: PhotometricInterpretation.
        samples: 1 or 3 a pixel.
        planar: PlanarConfiguration, None where it is not stated.
        allocated, stored, high: bits of a sample, those used, and the highest of these.
        signed: whether samples are two's complement.
    """

    rows: int
    columns: int
    photometric: str
    samples: int
    planar: int | None
    allocated: int
    stored: int
    high: int
    signed: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return self.rows, self.columns

    @property
    def length(self) -> int:
        """Bytes of the pixels, uncompressed."""
        bits = self.rows * self.columns * self.samples * self.allocated
        return ((bits * 2 // 3 if self.photometric == SUBSAMPLED else bits) + 7) // 8


def describe(path: Path, elements: Elements) -> Description:
    """Read the description; refuse what is not one ordinary image.

    Raises:
        BadImage: no image, several frames, unusual samples, above 64 Mpx, pixels that are not
            square, or a number that is missing or not allowed.
    """
    if "Rows" not in elements or "Columns" not in elements:
        raise BadImage(path, f"holds no image (no Rows and Columns){_class(elements)}")
    rows, columns = _whole(path, elements, "Rows"), _whole(path, elements, "Columns")
    check_size(path, rows, columns)
    frames = integer(path, elements, "NumberOfFrames", 0, 2**31 - 1) or 1
    if frames != 1:
        raise BadImage(path, f"holds {frames} frames; allowed: one image per file")
    kind = word(path, elements, "PhotometricInterpretation", GREY + COLOR)
    if not kind:
        raise BadImage(path, "PhotometricInterpretation is missing: it says how samples are shown")
    wanted = 1 if kind in (*GREY, PALETTE) else 3
    samples = _whole(path, elements, "SamplesPerPixel")
    if samples != wanted:
        raise BadImage(path, f"SamplesPerPixel {samples}; {kind} has {wanted}")
    allocated = _whole(path, elements, "BitsAllocated")
    stored = _whole(path, elements, "BitsStored")
    if allocated not in (1, 8, 16) or not 1 <= stored <= allocated:
        raise BadImage(path, f"{stored} bits stored in {allocated}; allowed: up to 16 in 1, 8, 16")
    high = integer(path, elements, "HighBit", stored - 1, allocated - 1)
    description = Description(
        rows=rows,
        columns=columns,
        photometric=kind,
        samples=samples,
        planar=integer(path, elements, "PlanarConfiguration", 0, 1) if samples > 1 else 0,
        allocated=allocated,
        stored=stored,
        high=stored - 1 if high is None else high,
        signed=_whole(path, elements, "PixelRepresentation", 1) == 1,
    )
    _check_color(path, elements, description)
    _check_square(path, elements)
    return description


def read_samples(
    path: Path, syntax: str, header: Header, stream: BinaryIO, pixels: Description
) -> np.ndarray:
    """Read and decompress the pixel data; colours become RGB.

    Args:
        path: named in errors.
        syntax: UID of the transfer syntax.
        header: what precedes the pixels.
        stream: stands at the first byte of the pixel data.
        pixels: their description.

    Returns:
        (H, W) or (H, W, 3) integers: the stored values.

    Raises:
        BadImage: pixels that are missing, cut, damaged, of another size, or of a compression that
            is not read.
    """
    if header.pixels != "PixelData" or not header.length:
        if "PixelDataProviderURL" in header.elements:
            raise BadImage(path, "holds no pixel data but an address of them; fetch the whole file")
        what = header.pixels if header.length else "no pixel data"
        raise BadImage(path, f"holds no image ({what}); allowed: PixelData of 8 or 16-bit integers")
    if syntax in NATIVE and header.length != UNDEFINED:
        data = _native(path, stream, header.length, pixels)
    elif header.length != UNDEFINED:
        name = dicom_codestream.codec(path, syntax).name
        raise BadImage(path, f"pixel data that are not compressed, though the header says {name}")
    elif syntax in NATIVE and syntax != IN_FRAGMENTS:
        raise BadImage(path, COMPRESSED)
    else:
        data = _fragments(path, stream, 2 * pixels.length + PIECE)
    if syntax == IN_FRAGMENTS:
        data = _native(path, BytesIO(data), len(data), pixels)
    if syntax in NATIVE:
        if pixels.planar is None:
            raise BadImage(path, "PlanarConfiguration is missing: it says how colours lie")
        uid = BIG if syntax == BIG else EXPLICIT
        values, photometric = _undo(uid, data, "", header.kind, pixels)
    else:
        codec = dicom_codestream.codec(path, syntax)
        if pixels.high != pixels.stored - 1 and codec != dicom_codestream.RLE:
            reason = f"HighBit {pixels.high} of compressed pixels; allowed: {pixels.stored - 1}"
            raise BadImage(path, reason)
        values, photometric = dicom_codestream.decode(
            path,
            codec,
            data,
            pixels.size,
            lambda frame, plugin: _undo(syntax, frame, plugin, header.kind, pixels),
            installed(syntax),
        )
    if photometric.startswith("YBR_FULL"):
        from pydicom.pixels import convert_color_space

        return convert_color_space(values, "YBR_FULL", "RGB")
    return values if syntax in dicom_codestream.SIGN_CODED else _fields(values, pixels)


def _fields(values: np.ndarray, pixels: Description) -> np.ndarray:
    """The stored bits of samples that have all the bits allocated, with their sign.

    What else is in a word, such as an overlay, is no part of a sample (PS3.5, 8.1.1).
    """
    if pixels.stored == pixels.allocated:
        return values
    left = 31 - pixels.high
    words = values.astype(np.int32) << left
    down = 32 - pixels.stored
    return words >> down if pixels.signed else (words.view(np.uint32) >> down).astype(np.int32)


def _whole(path: Path, elements: Elements, name: str, most: int = 65535) -> int:
    value = integer(path, elements, name, 0, most)
    if value is None:
        raise BadImage(path, f"{name} is missing or empty; allowed: a whole number")
    return value


def _class(elements: Elements) -> str:
    """What a file without image is, by the standard's name of its class."""
    from pydicom.uid import UID_dictionary

    for name in ("SOPClassUID", "MediaStorageSOPClassUID"):
        uid = elements[name].value.strip(b" \0").decode("latin-1") if name in elements else ""
        if uid in UID_dictionary:
            return f": it is {UID_dictionary[uid][0]}"
    return ""


def _check_color(path: Path, elements: Elements, pixels: Description) -> None:
    """Refuse samples whose colours nothing here computes."""
    kind = pixels.photometric
    if elements.get("PixelPresentation") and kind in GREY:
        word(path, elements, "PixelPresentation", ("MONOCHROME", "TRUE_COLOR"))
    if "AlphaPaletteColorLookupTableData" in elements:
        raise BadImage(path, "AlphaPaletteColorLookupTableData: transparent colours are not read")
    if kind in GREY:
        return
    if pixels.signed and kind != PALETTE:
        raise BadImage(path, f"PixelRepresentation 1 (signed) of {kind}; allowed: 0")
    if kind.startswith("YBR_FULL") and (pixels.allocated, pixels.stored) != (8, 8):
        raise BadImage(
            path, f"{kind} of {pixels.stored} bits in {pixels.allocated}; allowed: 8 in 8"
        )
    if pixels.allocated == 1:
        raise BadImage(path, f"{kind} of 1 bit; allowed: 8 or 16")


def _check_square(path: Path, elements: Elements) -> None:
    """Refuse pixels that are not square: the film would be squeezed."""
    source = group(elements, "PixelMeasuresSequence", SPACINGS)
    for name in SPACINGS:
        words = source[name].value.split(b"\\") if name in source else []
        down, across = words if len(words) == 2 else (b"", b"")
        if down.strip(BLANK) == across.strip(BLANK):
            if re.search(rb"[1-9]", down):
                return
            continue  # Zeros and blanks say nothing.
        sides = numbers(path, source, name)
        lengths = [side for side in sides if side is not None and side > 0]
        if len(lengths) != 2:
            raise BadImage(path, f"{name} is not two positive numbers")
        if max(lengths) - min(lengths) > SQUARE * max(lengths):
            raise BadImage(
                path,
                f"{name} {lengths[0]:g} x {lengths[1]:g}: pixels are not square; "
                "resample the image to square pixels first",
            )
        return


def _native(path: Path, stream: BinaryIO, length: int, pixels: Description) -> bytes:
    """The bytes of uncompressed pixels, without what is padded."""
    wanted = pixels.length
    # With the byte that makes the length even: in big endian words it changes places.
    data = stream.read(min(length, wanted + wanted % 2))
    if length > wanted and data.startswith(FRAGMENT):
        raise BadImage(path, COMPRESSED)
    if len(data) < wanted:
        raise BadImage(path, f"truncated DICOM: {len(data)} of {wanted} bytes of pixel data")
    if length >= max(2 * wanted, wanted + 2):
        raise BadImage(
            path,
            f"{length} bytes of pixel data; {pixels.rows} x {pixels.columns} pixels of "
            f"{pixels.samples} x {pixels.allocated} bits take {wanted}",
        )
    if pixels.photometric == SUBSAMPLED and length >= wanted // 2 * 3:
        raise BadImage(path, f"{length} bytes of pixel data; {SUBSAMPLED} takes {wanted}")
    return data + b"\0" * (wanted % 2)


def _fragments(path: Path, stream: BinaryIO, most: int) -> bytes:
    """The codestream of the one frame, out of its fragments (PS3.5, A.4)."""
    pieces: list[bytes] = []
    total = 0
    while True:
        head = stream.read(8)
        tag = int.from_bytes(head[:2], "little") << 16 | int.from_bytes(head[2:4], "little")
        length = int.from_bytes(head[4:], "little")
        if len(head) == 8 and tag == SEQUENCE_END:
            break
        total += length
        if len(head) == 8 and tag == ITEM and total > most:
            raise BadImage(path, f"{total} compressed bytes; its image needs at most {most}")
        piece = stream.read(length) if len(head) == 8 else b""
        if len(head) < 8 or len(piece) < length:
            raise BadImage(path, "truncated DICOM: the compressed pixels end too early")
        if tag != ITEM:
            raise BadImage(path, "damaged DICOM: the compressed pixels are no fragments")
        pieces.append(piece)
    if len(pieces) < 2:
        raise BadImage(path, "holds no image (no pixel data)")
    offsets = len(pieces[0]) // 4
    if offsets > 1:
        raise BadImage(path, f"holds {offsets} compressed frames; allowed: one image per file")
    return b"".join(pieces[1:])


def installed(syntax: str) -> tuple[str, ...]:
    """The plugins of pydicom that this installation has for a transfer syntax."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    return tuple(get_decoder(UID(syntax)).available_plugins)


def _undo(
    syntax: str, data: bytes, plugin: str, kind: str, pixels: Description
) -> tuple[np.ndarray, str]:
    """Decode by pydicom, which is given every number and looks for none; samples and their kind."""
    from pydicom.encaps import encapsulate

    options: dict[str, Any] = {
        "rows": pixels.rows,
        "columns": pixels.columns,
        "samples_per_pixel": pixels.samples,
        "photometric_interpretation": pixels.photometric,
        "bits_allocated": pixels.allocated,
        "bits_stored": pixels.stored,
        "pixel_representation": int(pixels.signed),
        "planar_configuration": pixels.planar or 0,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": kind,
    }
    if syntax not in dicom_codestream.SIGN_CODED:
        options["correct_unused_bits"] = False
    source = encapsulate([data]) if plugin else data
    return decoder_process.decode(decoder_process.Request(syntax, source, plugin, options))
