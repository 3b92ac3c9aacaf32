"""DICOM to grey: one frame, modality LUT, VOI window, MONOCHROME1 inverted exactly once.

Only the elements that describe pixels are read, so identifiers never enter the process.
"""

import zlib
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from selftaught.data.images import dicom_display
from selftaught.data.images.dicom_depth import check_depth
from selftaught.data.images.limits import BadImage, check_size

if TYPE_CHECKING:
    from pydicom import Dataset

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOR = ("PALETTE COLOR", "RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
PREAMBLE = 132
PIXEL_GROUP = 0x7FE00008
# What a file may hold beside its pixels, and how much is inflated at a time.
SLACK = 2**26
PIECE = 2**20
TAGS = [
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
    "PixelData",
]


def header(path: Path) -> tuple[int, int]:
    """(height, width) from the pixel description; the pixels are not read.

    Raises:
        BadImage: no image in the file, several frames, unusual samples, or above 64 Mpx.
    """
    try:
        return _check_description(path, _elements(path, pixels=False))
    except Exception as error:
        raise _reason(path, error) from error


def read(path: Path) -> np.ndarray:
    """Decode a single-frame DICOM image for display.

    Returns:
        (H, W) uint8 where at most 8 bits are stored, else uint16; the window, or the whole range
        of stored values, is spread over all of the output range.

    Raises:
        BadImage: as `header`; also pixels that are truncated or cannot be decompressed.
    """
    from pydicom.pixels import pixel_array

    try:
        elements = _elements(path, pixels=True)
        size = _check_description(path, elements)
        _check_codestream(path, elements, size)
        try:
            samples = pixel_array(elements)
        except Exception as error:
            raise _undecodable(path, elements, error) from error
        if samples.shape[:2] != size:
            raise BadImage(path, f"pixel data of shape {samples.shape}; the header says {size}")
        if elements.PhotometricInterpretation in GREY:
            return dicom_display.grey(path, elements, samples)
        return dicom_display.luma(elements, samples)
    except Exception as error:
        raise _reason(path, error) from error


def _elements(path: Path, *, pixels: bool) -> "Dataset":
    """The elements of `TAGS`, with the file meta information attached."""
    from pydicom import dcmread
    from pydicom.filereader import read_dataset
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian

    with path.open("rb") as handle:
        handle.seek(PREAMBLE)
        meta = read_dataset(handle, False, True, stop_when=lambda tag, vr, n: tag >> 16 != 2)
        syntax = meta.get("TransferSyntaxUID")
        if syntax == DeflatedExplicitVRLittleEndian:
            return _deflated(path, handle, meta, pixels=pixels)
        check_depth(path, handle, little=syntax != ExplicitVRBigEndian)
    elements = dcmread(path, stop_before_pixels=True, specific_tags=TAGS)
    if not pixels:
        return elements
    allowed = 2 * _bytes(*_check_description(path, elements), elements) + SLACK
    if path.stat().st_size > allowed:
        raise BadImage(path, f"has {path.stat().st_size} bytes; its image needs at most {allowed}")
    return dcmread(path, specific_tags=TAGS)


def _deflated(path: Path, handle: BinaryIO, meta: "Dataset", *, pixels: bool) -> "Dataset":
    """Inflate no more than the described image can need, however much the file holds."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filereader import read_dataset
    from pydicom.tag import BaseTag, Tag

    tags: list[int | BaseTag] = [Tag(name) for name in TAGS]
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    data = bytearray()
    elements, allowed = None, 2 * PIECE
    while not inflater.eof:
        compressed = inflater.unconsumed_tail or handle.read(PIECE)
        if not compressed:
            raise BadImage(path, "truncated DICOM: the deflated data ends too early")
        data += inflater.decompress(compressed, PIECE)
        if elements is None and (len(data) >= PIECE or inflater.eof):
            check_depth(path, BytesIO(data), little=True)
            elements = read_dataset(
                BytesIO(data),
                False,
                True,
                stop_when=lambda tag, vr, n: tag >= PIXEL_GROUP,
                specific_tags=tags,
            )
            allowed = _bytes(*_check_description(path, elements), elements) + 2 * PIECE
        if len(data) > allowed:
            raise BadImage(path, f"inflates to more than the {allowed} bytes its image needs")
    if pixels or elements is None:
        elements = read_dataset(BytesIO(data), False, True, specific_tags=tags)
    elements.file_meta = FileMetaDataset(meta)
    return elements


def _bytes(height: int, width: int, elements: "Dataset") -> int:
    return height * width * int(elements.SamplesPerPixel) * max(1, elements.BitsAllocated // 8)


def _check_description(path: Path, elements: "Dataset") -> tuple[int, int]:
    """Refuse what is not one ordinary image; (height, width)."""
    if "Rows" not in elements or "Columns" not in elements:
        raise BadImage(path, "holds no image (no Rows and Columns)")
    height, width = int(elements.Rows), int(elements.Columns)
    check_size(path, height, width)
    frames = int(elements.get("NumberOfFrames") or 1)
    if frames != 1:
        raise BadImage(path, f"holds {frames} frames; allowed: one image per file")
    kind = elements.get("PhotometricInterpretation")
    if kind not in GREY + COLOR:
        raise BadImage(path, f"PhotometricInterpretation {kind!r}; allowed: {GREY + COLOR}")
    samples = 1 if kind in (*GREY, "PALETTE COLOR") else 3
    if elements.get("SamplesPerPixel") != samples:
        given = elements.get("SamplesPerPixel")
        raise BadImage(path, f"SamplesPerPixel {given}; {kind} has {samples}")
    allocated, stored = elements.get("BitsAllocated"), elements.get("BitsStored")
    if allocated not in (1, 8, 16) or not 1 <= (stored or 0) <= allocated:
        raise BadImage(path, f"{stored} bits stored in {allocated}; allowed: up to 16 in 1, 8, 16")
    return height, width


def _check_codestream(path: Path, elements: "Dataset", size: tuple[int, int]) -> None:
    """Refuse missing pixels, and compressed ones that claim another size than the header."""
    from PIL import Image
    from pydicom.encaps import get_frame

    if "PixelData" not in elements or not elements.PixelData:
        raise BadImage(path, "holds no image (no pixel data)")
    if not elements.file_meta.TransferSyntaxUID.is_compressed:
        return
    # Run-length coding grows up to 64 times when it is undone.
    allowed = 2 * _bytes(*size, elements) + PIECE
    if len(elements.PixelData) > allowed:
        length = len(elements.PixelData)
        raise BadImage(path, f"{length} compressed bytes; its image needs at most {allowed}")
    if "JPEG" not in elements.file_meta.TransferSyntaxUID.name:
        return
    try:
        with Image.open(BytesIO(get_frame(elements.PixelData, 0, number_of_frames=1))) as image:
            coded = (image.height, image.width)
    except Image.UnidentifiedImageError:
        return  # A JPEG flavour that Pillow does not know; pydicom's own plugins decide.
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadImage(path, f"compressed image far larger than its header's {size}") from None
    if coded != size:
        raise BadImage(path, f"compressed image of {coded} pixels; the header says {size}")


def _undecodable(path: Path, elements: "Dataset", error: Exception) -> BadImage:
    syntax = elements.file_meta.TransferSyntaxUID.name
    text = str(error).splitlines()
    detail = text[0] if text else type(error).__name__
    return BadImage(path, f"pixel data cannot be decoded ({syntax}): {detail}")


def _reason(path: Path, error: Exception) -> Exception:
    """The error to raise for what pydicom raised.

    Its own messages may quote elements, hence identifiers, so only the class is passed on.
    """
    if isinstance(error, BadImage | MemoryError | ImportError):
        return error
    if getattr(error, "errno", None) is not None:
        return error
    if isinstance(error, RecursionError):
        return BadImage(path, "DICOM sequences are nested too deeply to be read")
    if isinstance(error, EOFError):
        return BadImage(path, "truncated DICOM: the file ends too early")
    return BadImage(path, f"damaged DICOM: cannot be read ({type(error).__name__})")
