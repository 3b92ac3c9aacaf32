"""DICOM files that begin, end or are read in unusual ways, and those that hold no image."""

import struct
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import BadImage, check_header, is_dicom, read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.data.images.dicom_files import (  # noqa: E402
    LINEAR,
    RAMP,
    SHOWN,
    WINDOW,
    image,
    item,
    refused,
    save,
    scaled,
)


@pytest.mark.parametrize(
    ("kind", "words"),
    [("FloatPixelData", "FloatPixelData"), ("DoubleFloatPixelData", "DoubleFloatPixelData")],
)
def test_pixels_that_are_no_integers(tmp_path: Path, kind: str, words: str) -> None:
    dataset = image(RAMP)
    del dataset.PixelData
    setattr(dataset, kind, RAMP.astype(np.float64).tobytes())
    refused(save(tmp_path / "a.dcm", dataset), words)
    dataset = image(RAMP, PixelDataProviderURL="https://host/Secret^Patient")
    del dataset.PixelData
    refused(save(tmp_path / "a.dcm", dataset), "an address of them")


@pytest.mark.parametrize("start", ["preamble of words", "file meta information", "elements"])
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian, ExplicitVRBigEndian]
)
def test_files_that_begin_anywhere(tmp_path: Path, start: str, syntax: UID) -> None:
    dataset = image(RAMP)
    if syntax == ExplicitVRBigEndian:
        dataset.PixelData = RAMP.astype(">u2").tobytes()
    data = save(tmp_path / "a.dcm", dataset, syntax).read_bytes()
    elements = 144 + pydicom.dcmread(tmp_path / "a.dcm").file_meta.FileMetaInformationGroupLength
    begin = {"preamble of words": 0, "file meta information": 132, "elements": elements}[start]
    (tmp_path / "b").write_bytes(b"MM\0*" + data[4:] if begin == 0 else data[begin:])
    assert is_dicom(tmp_path / "b")
    np.testing.assert_array_equal(read_grey(tmp_path / "b"), SHOWN)
    (tmp_path / "b.png").write_bytes(data[begin:])
    refused(tmp_path / "b.png", "holds DICOM data but is named .png")


@pytest.mark.parametrize(
    "start",
    [b"\x08\0\0\0\x04\0\0\0" * 20, b"\x02\0\0\0\x03\0\0\0" * 20, b"\x08\0\x05\0CT\x0a\0" * 20]
    + [b"BM8\0", b"GIF89a" + b"\0" * 200, b"\x08\0\x05\0\x0a\0\0\0ISO_IR 100\x08\0\x01"],
)
def test_what_only_looks_like_elements(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a.bin").write_bytes(start)
    assert not is_dicom(tmp_path / "a.bin")


@pytest.mark.parametrize(
    ("uid", "words"),
    [
        ("1.2.840.10008.5.1.4.1.1.481.5", "RT Plan Storage"),
        ("1.2.840.10008.5.1.4.1.1.88.22", "Enhanced SR Storage"),
        ("1.2.840.10008.5.1.4.1.1.11.1", "Grayscale Softcopy Presentation State Storage"),
        ("1.2.840.10008.1.3.10", "Media Storage Directory Storage"),
        ("1.2.840.10008.5.1.4.1.1.104.1", "Encapsulated PDF Storage"),
        ("1.2.826.0.1.3680043.8.498.111222333", "no Rows and Columns)"),
    ],
)
def test_files_of_another_kind_say_which(tmp_path: Path, uid: str, words: str) -> None:
    path = save(tmp_path / "a.dcm", item(SOPClassUID=UID(uid), PatientName="Secret^Patient"))
    refused(path, "holds no image", words)
    assert uid not in str(pytest.raises(BadImage, read_grey, path).value)


def test_an_element_that_stands_twice(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", image(RAMP, WindowCenter="900", WindowWidth="700"))
    data = path.read_bytes()
    begin = data.index(b"\x28\0\x50\x10DS")
    one = data[begin : begin + 12]
    path.write_bytes(data[:begin] + one + data[begin:])
    np.testing.assert_array_equal(read_grey(path), LINEAR)
    path.write_bytes(data[:begin] + one.replace(b"900", b"100") + data[begin:])
    refused(path, "WindowCenter stands twice")
    path.write_bytes(data + one.replace(b"900", b"100"))
    refused(path, "WindowCenter stands twice")


TURNED = (4095 - np.arange(4096)).astype("<u2").tobytes()
TABLE = {
    "explicit": struct.pack("<HH2s4H", 0x28, 0x3002, b"US", 6, 4096, 0, 12)
    + struct.pack("<HH4sI", 0x28, 0x3006, b"OW\0\0", len(TURNED))
    + TURNED,
    "implicit": struct.pack("<HHI3H", 0x28, 0x3002, 6, 4096, 0, 12)
    + struct.pack("<HHI", 0x28, 0x3006, len(TURNED))
    + TURNED,
}
LIMITS = struct.pack("<HH2sH4s", 0x28, 0x1050, b"DS", 4, b"900 ")
LIMITS += struct.pack("<HH2sH4s", 0x28, 0x1051, b"DS", 4, b"700 ")
LENGTH, NONE = 0, 0xFFFFFFFF
ITEM_END, SEQUENCE_END = b"\xfe\xff\x0d\xe0\0\0\0\0", b"\xfe\xff\xdd\xe0\0\0\0\0"


def sequence(
    tag: int, kind: bytes, items: list[bytes], lengths: tuple[int, int], ends: str
) -> bytes:
    """A sequence by hand: `lengths` of itself and of its items, `ends` that have a delimiter."""
    inside = b""
    for one in items:
        inside += struct.pack("<HHI", 0xFFFE, 0xE000, lengths[1] or len(one)) + one
        inside += ITEM_END * ("items" in ends)
    head = struct.pack("<HH4sI", tag >> 16, tag & 0xFFFF, kind, lengths[0] or len(inside))
    return head + inside + SEQUENCE_END * ("sequence" in ends)


@pytest.mark.parametrize(
    ("kind", "inside", "lengths", "ends"),
    [
        (b"SQ\0\0", "explicit", (LENGTH, LENGTH), ""),
        (b"SQ\0\0", "explicit", (NONE, NONE), "items, sequence"),
        (b"SQ\0\0", "explicit", (LENGTH, NONE), "items"),
        (b"SQ\0\0", "implicit", (LENGTH, LENGTH), ""),
        # What states its length is ended all the same.
        (b"SQ\0\0", "explicit", (LENGTH, LENGTH), "items"),
        (b"SQ\0\0", "explicit", (NONE, LENGTH), "items, sequence"),
        (b"SQ\0\0", "explicit", (LENGTH, LENGTH), "items, sequence"),
        # By a system that did not know the element (PS3.5, 6.2.2), and did not turn its items.
        (b"UN\0\0", "implicit", (LENGTH, LENGTH), ""),
        (b"UN\0\0", "implicit", (NONE, NONE), "items, sequence"),
        (b"UN\0\0", "explicit", (LENGTH, LENGTH), ""),
        (b"UN\0\0", "explicit", (NONE, NONE), "items, sequence"),
    ],
)
def test_a_sequence_however_it_is_written(
    tmp_path: Path, kind: bytes, inside: str, lengths: tuple[int, int], ends: str
) -> None:
    """Its second item holds the table; another image's window before it is not this one's."""
    path = save(tmp_path / "a.dcm", image(RAMP))
    data = path.read_bytes()
    other = sequence(0x00081140, b"SQ\0\0", [LIMITS, LIMITS], lengths, ends)
    table = sequence(0x00283010, kind, [b"", TABLE[inside]], lengths, ends)
    for tag, one in ((b"\x28\0\x02\0", other), (b"\xe0\x7f\x10\0", table)):
        begin = data.rindex(tag)
        data = data[:begin] + one + data[begin:]
    path.write_bytes(data)
    np.testing.assert_array_equal(read_grey(path), 65535 - SHOWN)
    assert check_header(path) == RAMP.shape


@pytest.mark.parametrize("kind", [b"??", b"  ", b"UN"])
def test_elements_of_unknown_kind_are_passed_over(tmp_path: Path, kind: bytes) -> None:
    path = save(tmp_path / "a.dcm", image(RAMP))
    begin = path.read_bytes().index(b"\x28\0\x02\0US")
    data = path.read_bytes()
    private = struct.pack("<HH2sHI6s", 0x27, 0x1010, kind, 0, 6, b"\x28\0\x50\x10DS")
    path.write_bytes(data[:begin] + private + data[begin:])
    np.testing.assert_array_equal(read_grey(path), SHOWN)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("behind", "expected"),
    [
        (LIMITS, LINEAR),
        (struct.pack("<HH4sI2s", 0xFFFC, 0xFFFC, b"OB\0\0", 2, b"ab") + LIMITS, LINEAR),
        (LIMITS + b"\0" * 300, LINEAR),
        (b"\0" * 300, SHOWN),
        (b"\xff" * 300, SHOWN),
        (b" " * 300, SHOWN),
        (np.random.default_rng(0).bytes(999), SHOWN),
    ],
)
def test_what_follows_the_pixels(
    tmp_path: Path, behind: bytes, expected: np.ndarray, compressed: bool
) -> None:
    dataset = image(RAMP)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax = ExplicitVRLittleEndian
    if compressed:
        dataset.compress(syntax := pydicom.uid.RLELossless)
    path = save(tmp_path / "a.dcm", dataset, syntax)
    path.write_bytes(path.read_bytes() + behind)
    np.testing.assert_array_equal(read_grey(path), expected)


def test_a_file_that_ends_within_an_element(tmp_path: Path) -> None:
    data = save(tmp_path / "a.dcm", image(RAMP, **WINDOW)).read_bytes()
    for tag, after in ((b"\x28\0\x01\x01US", 9), (b"\x28\0\x50\x10DS", 9), (b"\x10\0\x10\0PN", 12)):
        path = tmp_path / "b.dcm"
        path.write_bytes(data[: data.index(tag) + after])
        refused(path, "truncated DICOM: the file ends within its elements")
        with pytest.raises(BadImage, match="truncated DICOM"):
            check_header(path)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_no_setting_of_pydicom_changes_a_pixel(
    tmp_path: Path, syntax: UID, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom import config

    elements = {**WINDOW, "RescaleSlope": "0.5000000000000000001", "RescaleIntercept": "1"}
    tables = {"VOILUTSequence": Sequence([Dataset()]), "NumberOfFrames": "01"}
    path = save(tmp_path / "a.dcm", image(RAMP, **elements, **tables), syntax)
    expected = read_grey(path)
    np.testing.assert_array_equal(expected, scaled(RAMP * 0.5 + 1 - 899.5, -349.5, 349.5))
    for name, value in (
        ("use_DS_numpy", True),
        ("use_IS_numpy", True),
        ("convert_wrong_length_to_UN", True),
        ("use_none_as_empty_text_VR_value", True),
        ("replace_un_with_known_vr", False),
        ("assume_implicit_vr_switch", False),
        ("data_element_callback", lambda raw, **_: raw._replace(value=b"7")),
    ):
        monkeypatch.setattr(config, name, value)
    monkeypatch.setattr(config.settings, "reading_validation_mode", config.RAISE)
    monkeypatch.setattr(config.settings, "infer_sq_for_un_vr", False)
    np.testing.assert_array_equal(read_grey(path), expected)
