"""DICOM files made by hand for tests: good ones, and sequences nested in one another."""

import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import BadImage, read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

NAME = "Secret^Patient"


def image(samples: np.ndarray, bits: int = 12, **elements: object) -> Dataset:
    dataset = Dataset()
    dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.7")
    dataset.SOPInstanceUID = UID("1.2.3")
    dataset.PatientName = NAME
    dataset.Rows, dataset.Columns = samples.shape[:2]
    dataset.SamplesPerPixel = 1 if samples.ndim == 2 else 3
    if samples.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.PhotometricInterpretation = "MONOCHROME2" if samples.ndim == 2 else "RGB"
    dataset.BitsAllocated = 8 * samples.dtype.itemsize
    dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelRepresentation = int(samples.dtype.kind == "i")
    dataset.PixelData = samples.tobytes()
    dataset["PixelData"].VR = "OB" if samples.dtype.itemsize == 1 else "OW"
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def save(path: Path, dataset: Dataset, syntax: UID = ExplicitVRLittleEndian) -> Path:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = dataset.get("SOPClassUID", UID("1.2"))
    meta.MediaStorageSOPInstanceUID = UID("1.2.3")
    meta.TransferSyntaxUID = syntax
    dataset.file_meta = meta
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.save_as(path, enforce_file_format=True)
    return path


def refused(path: Path, *words: str) -> None:
    with pytest.raises(BadImage) as caught:
        read_grey(path)
    text = str(caught.value)
    assert "\n" not in text and str(path) in text and NAME not in text
    assert all(word in text for word in words), text


def ramp(bits: int = 12, dtype: type = np.uint16) -> np.ndarray:
    return np.linspace(0, 2**bits - 1, 24 * 36).round().astype(dtype).reshape(24, 36)


def nested(depth: int, syntax: UID, undefined: bool) -> bytes:
    """Elements of sequences in one another, by hand: pydicom's own writer would recurse too."""
    item = b""
    for _ in range(depth):
        length = (0xFFFFFFFF if undefined else len(item)).to_bytes(4, "little")
        item = b"\xfe\xff\x00\xe0" + length + item
        if undefined:
            item += b"\xfe\xff\x0d\xe0\0\0\0\0"
        length = (0xFFFFFFFF if undefined else len(item)).to_bytes(4, "little")
        kind = b"" if syntax == ImplicitVRLittleEndian else b"SQ\0\0"
        item = b"\x08\x00\x15\x11" + kind + length + item
        if undefined:
            item += b"\xfe\xff\xdd\xe0\0\0\0\0"
    return item


def with_nested(path: Path, depth: int, syntax: UID, undefined: bool) -> Path:
    """A good image with sequences nested before it."""
    data = save(path, image(ramp()), syntax).read_bytes()
    start = 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    head, body = data[:start], data[start:]
    inner = nested(depth, syntax, undefined)
    if syntax == DeflatedExplicitVRLittleEndian:
        deflater = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        body = zlib.decompress(body, -zlib.MAX_WBITS)
        path.write_bytes(head + deflater.compress(inner + body) + deflater.flush())
    else:
        path.write_bytes(head + inner + body)
    return path


RAMP = ramp()
SHOWN = np.rint(RAMP / 4095 * 65535)
SIGNED = (RAMP.astype(np.int32) - 2048).astype(np.int16)


def item(**elements: object) -> Dataset:
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def lut(entries: np.ndarray, bits: int, first: int = 0, kind: str = "US") -> Dataset:
    """A table of words; kind is the representation of the descriptor."""
    table = Dataset()
    table.add_new("LUTDescriptor", kind, [len(entries) % 65536, first, bits])
    table.add_new("LUTData", "OW", entries.astype("<u2").tobytes())
    table.ModalityLUTType = "US"
    return table


def packed(entries: np.ndarray) -> Dataset:
    """A table of bytes, two in a word; of odd length with one more."""
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [len(entries), 0, 8])
    table.add_new("LUTData", "OW", entries.astype(np.uint8).tobytes() + b"\0" * (len(entries) % 2))
    return table


def scaled(values: np.ndarray, lowest: float, highest: float, top: int = 65535) -> np.ndarray:
    return np.rint(np.clip((np.asarray(values, float) - lowest) / (highest - lowest), 0, 1) * top)


def outside(shown: np.ndarray, hidden: np.ndarray, level: int = 0) -> np.ndarray:
    return np.where(hidden, level, shown)


WINDOW = {"WindowCenter": "900", "WindowWidth": "700"}
LINEAR = scaled(RAMP - 899.5, -349.5, 349.5)
