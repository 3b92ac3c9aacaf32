"""Encode a 16-bit master as PNG, JPEG, TIFF or DICOM of several kinds."""

import io
from collections.abc import Callable
from hashlib import sha256

import cv2
import numpy as np
import numpy.typing as npt

Image16 = npt.NDArray[np.uint16]
Image8 = npt.NDArray[np.uint8]
COMPUTED_RADIOGRAPHY = "1.2.840.10008.5.1.4.1.1.1"


def to_8bit(image: Image16) -> Image8:
    """(H, W) uint16 to uint8, rounded; 65535 becomes 255."""
    return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _opencv(suffix: str, image: Image16 | Image8, *options: int) -> bytes:
    """Encode with OpenCV."""
    done, data = cv2.imencode(suffix, image, list(options))
    if not done:
        raise RuntimeError(f"OpenCV could not encode {suffix} of shape {image.shape}")
    return bytes(data)


def _pillow(mode: str, image: Image16) -> bytes:
    """PNG of a colour type that OpenCV does not write."""
    from PIL import Image

    grey = to_8bit(image)
    if mode == "LA":
        picture = Image.merge("LA", [Image.fromarray(grey), Image.new("L", grey.shape[::-1], 255)])
    else:
        picture = Image.frombytes("P", grey.shape[::-1], grey.tobytes())
        picture.putpalette([level for level in range(256) for _ in range(3)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _dicom(image: Image16, *, first_is_white: bool = False, packed: bool = False) -> bytes:
    """DICOM file with 16-bit pixels.

    Args:
        image: (H, W) master.
        first_is_white: MONOCHROME1: stored values are the complement.
        packed: run-length coded instead of plain.
    """
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian, RLELossless, generate_uid

    identity = generate_uid(entropy_srcs=[sha256(image.tobytes()).hexdigest()])
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID(COMPUTED_RADIOGRAPHY)
    meta.MediaStorageSOPInstanceUID = identity
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = UID(COMPUTED_RADIOGRAPHY)
    dataset.SOPInstanceUID = identity
    dataset.Modality = "CR"
    dataset.PatientName = "Synthetic"
    dataset.PatientID = "synthetic"
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if first_is_white else "MONOCHROME2"
    dataset.Rows, dataset.Columns = image.shape
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = 0
    stored = 65535 - image if first_is_white else image
    dataset.PixelData = np.ascontiguousarray(stored).astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    if packed:
        dataset.compress(RLELossless, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


# Name of the format: (ending of the file, encoder of the (H, W) uint16 master).
FORMATS: dict[str, tuple[str, Callable[[Image16], bytes]]] = {
    "png8": (".png", lambda image: _opencv(".png", to_8bit(image))),
    "png16": (".png", lambda image: _opencv(".png", image)),
    "png_rgb": (".png", lambda image: _opencv(".png", np.dstack([to_8bit(image)] * 3))),
    "png_la": (".png", lambda image: _pillow("LA", image)),
    "png_palette": (".png", lambda image: _pillow("P", image)),
    "jpeg": (".jpg", lambda image: _opencv(".jpg", to_8bit(image), cv2.IMWRITE_JPEG_QUALITY, 95)),
    "tiff16": (".tif", lambda image: _opencv(".tif", image)),
    "dicom": (".dcm", _dicom),
    "dicom_monochrome1": (".dcm", lambda image: _dicom(image, first_is_white=True)),
    "dicom_rle": (".dcm", lambda image: _dicom(image, packed=True)),
}


def encode(image: Image16, name: str) -> bytes:
    """Content of a file.

    Args:
        image: (H, W) uint16 master.
        name: one of `FORMATS`.

    Raises:
        ValueError: unknown format.
    """
    if name not in FORMATS:
        raise ValueError(f"formats: {name!r} is not one of {', '.join(FORMATS)}")
    return FORMATS[name][1](image)
