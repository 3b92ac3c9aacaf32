"""DICOM that nests deeply or claims less than it holds: refused before memory grows."""

import zlib
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import BadImage, check_header, read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from tests.data.images.dicom_files import image, ramp, refused, save, with_nested  # noqa: E402
from tests.data.images.measure import growth  # noqa: E402


@pytest.mark.parametrize("undefined", [False, True])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian]
)
def test_deep_nesting_is_refused_as_such_and_ordinary_nesting_read(
    tmp_path: Path, undefined: bool, syntax: UID
) -> None:
    for depth in (65, 300, 5_000):
        path = with_nested(tmp_path / "deep.dcm", depth, syntax, undefined)
        refused(path, "nested more than 64 levels")
        with pytest.raises(BadImage, match="nested more than 64 levels"):
            check_header(path)
    path = with_nested(tmp_path / "fine.dcm", 64, syntax, undefined)
    np.testing.assert_array_equal(read_grey(path), np.rint(ramp() / 4095 * 65535))


def test_many_sequences_beside_one_another_are_no_depth(tmp_path: Path) -> None:
    parts = []
    for number in range(200):
        part = Dataset()
        part.CodeValue = str(number)
        # Fragments of an icon are no items of a sequence, whatever bytes they hold.
        part.PixelData = encapsulate([b"\xfe\xff\x00\xe0\xff\xff\xff\xff" * 40])
        part["PixelData"].VR, part["PixelData"].is_undefined_length = "OB", True
        parts.append(part)
    dataset = image(ramp(), IconImageSequence=Sequence(parts))
    dataset["IconImageSequence"].is_undefined_length = True
    path = save(tmp_path / "a.dcm", dataset)
    np.testing.assert_array_equal(read_grey(path), np.rint(ramp() / 4095 * 65535))


@pytest.mark.parametrize("tag", [b"\x42\x00\x11\x00", b"\xe0\x7f\x10\x00"])
def test_a_deflated_bomb_is_refused_before_memory_grows(tmp_path: Path, tag: bytes) -> None:
    """256 MB of zeros, before the pixels or as the pixels of a small image."""
    path = save(tmp_path / "bomb.dcm", image(ramp()), DeflatedExplicitVRLittleEndian)
    assert read_grey(path).shape == (24, 36)
    data = path.read_bytes()
    start = 144 + pydicom.dcmread(path).file_meta.FileMetaInformationGroupLength
    elements = zlib.decompress(data[start:], -zlib.MAX_WBITS)
    elements = elements[: elements.index(b"\xe0\x7f\x10\x00")]
    deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
    with path.open("wb") as handle:
        handle.write(data[:start] + deflater.compress(elements + tag + b"OB\0\0\0\0\0\x10"))
        for _ in range(256):
            handle.write(deflater.compress(bytes(2**20)))
        handle.write(deflater.flush())
    assert path.stat().st_size < 2**21
    lines, grown = growth(path)
    assert len(lines) == 2 and all("inflates to more" in line for line in lines)
    assert grown < 100


def test_what_is_long_before_the_description_is_no_bomb(tmp_path: Path) -> None:
    dataset = image(ramp())
    dataset.add_new(0x00090010, "LO", "private")
    dataset.add_new(0x00091001, "OB", bytes(3 * 2**19))
    path = save(tmp_path / "a.dcm", dataset, DeflatedExplicitVRLittleEndian)
    assert check_header(path) == (24, 36)
    np.testing.assert_array_equal(read_grey(path), np.rint(ramp() / 4095 * 65535))


def test_a_run_length_bomb_is_refused_before_memory_grows(tmp_path: Path) -> None:
    header = np.zeros(16, "<u4")
    header[:2] = 1, 64
    frame = header.tobytes() + b"\x81\0" * 2**22
    dataset = image(ramp(8, np.uint8), 8, PixelData=encapsulate([frame]))
    dataset["PixelData"].is_undefined_length = True
    path = save(tmp_path / "a.dcm", dataset, RLELossless)
    with pytest.raises(BadImage, match="compressed bytes"):
        read_grey(path)
    lines, grown = growth(path)
    assert len(lines) == 1 and grown < 100


def test_a_compressed_image_of_another_size_is_refused(tmp_path: Path) -> None:
    from io import BytesIO

    from PIL import Image
    from pydicom.encaps import encapsulate
    from pydicom.uid import JPEGBaseline8Bit

    buffer = BytesIO()
    Image.new("L", (3000, 2000)).save(buffer, "JPEG")
    dataset = image(ramp(8, np.uint8), 8, PixelData=encapsulate([buffer.getvalue()]))
    dataset["PixelData"].is_undefined_length = True
    path = save(tmp_path / "a.dcm", dataset, JPEGBaseline8Bit)
    refused(path, "(2000, 3000)", "(24, 36)")
