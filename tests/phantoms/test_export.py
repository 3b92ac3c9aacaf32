"""Every export format against the 16-bit master."""

import io

import cv2
import numpy as np
import pytest

from selftaught.phantoms import FORMATS, encode, radiograph, to_8bit

MASTER = radiograph(5, 4, size=97, body_part="wrist", kind="plate").image


def opencv(data: bytes) -> np.ndarray:
    return np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))


def test_8bit_rounds_to_the_nearest_level() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    assert np.array_equal(to_8bit(levels), np.rint(levels / 257.0).astype(np.uint8))


@pytest.mark.parametrize("name", ["png16", "tiff16"])
def test_16bit_formats_are_exact(name: str) -> None:
    back = opencv(encode(MASTER, name))
    assert back.dtype == np.uint16
    assert np.array_equal(back, MASTER)


@pytest.mark.parametrize(
    ("name", "mode"), [("png8", "L"), ("png_rgb", "RGB"), ("png_la", "LA"), ("png_palette", "P")]
)
def test_8bit_colour_types_are_exact(name: str, mode: str) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(encode(MASTER, name))) as picture:
        assert picture.mode == mode
        grey = np.asarray(picture.convert("RGB"))[..., 1]
    assert np.array_equal(grey, to_8bit(MASTER))


def test_jpeg_is_close() -> None:
    back = opencv(encode(MASTER, "jpeg")).astype(int)
    assert back.shape == MASTER.shape
    assert np.abs(back - to_8bit(MASTER)).mean() < 3


@pytest.mark.parametrize("name", ["dicom", "dicom_rle", "dicom_monochrome1"])
def test_dicom_is_exact(name: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.dcmread(io.BytesIO(encode(MASTER, name)))
    assert (dataset.Rows, dataset.Columns, dataset.BitsStored) == (*MASTER.shape, 16)
    assert dataset.file_meta.TransferSyntaxUID.is_compressed == (name == "dicom_rle")
    stored = dataset.pixel_array
    if name == "dicom_monochrome1":
        assert dataset.PhotometricInterpretation == "MONOCHROME1"
        stored = 65535 - stored
    else:
        assert dataset.PhotometricInterpretation == "MONOCHROME2"
    assert np.array_equal(stored, MASTER)


@pytest.mark.parametrize("name", FORMATS)
def test_encoding_is_deterministic(name: str) -> None:
    assert encode(MASTER, name) == encode(MASTER, name)


def test_unknown_format_is_named() -> None:
    with pytest.raises(ValueError, match="gif"):
        encode(MASTER, "gif")
