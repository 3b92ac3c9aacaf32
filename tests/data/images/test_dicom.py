"""DICOM: what a screen would show, and one line for every file that shows nothing."""

from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import check_header, read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from tests.data.images.dicom_files import image, ramp, refused, save  # noqa: E402

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data" / "dicom"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real DICOM files are not beside the repo")


@pytest.mark.parametrize(
    "syntax",
    [
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
    ],
)
def test_stored_range_is_spread_over_16_bits(tmp_path: Path, syntax: UID) -> None:
    path = save(tmp_path / "a.dcm", image(ramp()), syntax)
    got = read_grey(path)
    assert got.dtype == np.uint16 and check_header(path) == (24, 36) == got.shape
    np.testing.assert_array_equal(got, np.rint(ramp() / 4095 * 65535))


def test_big_endian(tmp_path: Path) -> None:
    dataset = image(ramp())
    dataset.PixelData = ramp().astype(">u2").tobytes()
    path = save(tmp_path / "a.dcm", dataset, ExplicitVRBigEndian)
    np.testing.assert_array_equal(read_grey(path), np.rint(ramp() / 4095 * 65535))


def test_rle(tmp_path: Path) -> None:
    dataset = image(ramp())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.compress(RLELossless)
    path = save(tmp_path / "a.dcm", dataset, RLELossless)
    np.testing.assert_array_equal(read_grey(path), np.rint(ramp() / 4095 * 65535))


def test_8_bits_stay_8_bits_and_any_name_will_do(tmp_path: Path) -> None:
    samples = ramp(8, np.uint8)
    for name in ("a.dcm", "a", "1.2.840.113", "a.IMA"):
        got = read_grey(save(tmp_path / name, image(samples, 8)))
        assert got.dtype == np.uint8
        np.testing.assert_array_equal(got, samples)
    refused(save(tmp_path / "a.png", image(samples, 8)), "holds DICOM data but is named .png")


def test_signed_samples_and_negative_slope(tmp_path: Path) -> None:
    samples = (ramp().astype(np.int32) - 2048).astype(np.int16)
    path = save(tmp_path / "a.dcm", image(samples))
    np.testing.assert_array_equal(read_grey(path), np.rint(ramp() / 4095 * 65535))
    path = save(tmp_path / "b.dcm", image(samples, RescaleSlope=-2, RescaleIntercept=10))
    np.testing.assert_array_equal(read_grey(path), np.rint((4095 - ramp()) / 4095 * 65535))


def window(x: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    """PS3.3 C.11.2.1, value by value."""
    shown = np.empty(x.shape)
    for i, value in np.ndenumerate(x.astype(float)):
        if function == "SIGMOID":
            shown[i] = 1 / (1 + np.exp(min(-4 * (value - center) / width, 700)))
        elif function == "LINEAR_EXACT":
            shown[i] = min(max((value - center) / width + 0.5, 0), 1)
        elif value <= center - 0.5 - (width - 1) / 2:
            shown[i] = 0
        elif value > center - 0.5 + (width - 1) / 2:
            shown[i] = 1
        else:
            shown[i] = (value - (center - 0.5)) / (width - 1) + 0.5
    return shown


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("limits", [(1000, 500), (2048, 4096), (300, 1), (-50, 20.5)])
def test_window_after_rescale(
    tmp_path: Path, function: str | None, photometric: str, limits: tuple[float, float]
) -> None:
    elements: dict[str, object] = {"VOILUTFunction": function} if function else {}
    dataset = image(
        ramp(),
        WindowCenter=limits[0],
        WindowWidth=limits[1],
        RescaleSlope="0.5",
        RescaleIntercept="-100",
        PhotometricInterpretation=photometric,
        **elements,
    )
    expected = window(ramp() * 0.5 - 100, *limits, function or "LINEAR")
    if photometric == "MONOCHROME1":
        expected = 1 - expected
    got = read_grey(save(tmp_path / "a.dcm", dataset))
    assert np.abs(got - expected * 65535).max() <= 0.51


def test_the_first_of_several_windows_counts(tmp_path: Path) -> None:
    path = save(tmp_path / "a.dcm", image(ramp(), WindowCenter=[900, 5], WindowWidth=[700, 9]))
    assert np.abs(read_grey(path) - 65535 * window(ramp(), 900, 700, "LINEAR")).max() <= 0.51


def test_monochrome1_is_inverted_exactly_once(tmp_path: Path) -> None:
    dataset = image(ramp(), PhotometricInterpretation="MONOCHROME1", PresentationLUTShape="INVERSE")
    got = read_grey(save(tmp_path / "a.dcm", dataset))
    assert got[0, 0] == 65535 and got[-1, -1] == 0


def lut(entries: np.ndarray, bits: int, first: int = 0) -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "US", [len(entries), first, bits])
    item.add_new("LUTData", "US", entries.tolist())
    return item


def test_lookup_tables_go_before_windows(tmp_path: Path) -> None:
    modality = np.arange(4095, -1, -1)
    item = lut(modality, 12)
    item.ModalityLUTType = "US"
    curve = (np.arange(4096) ** 2 // 4096).astype(int)
    dataset = image(ramp(), ModalityLUTSequence=Sequence([item]))
    got = read_grey(save(tmp_path / "a.dcm", dataset))
    np.testing.assert_array_equal(got, np.rint(modality[ramp()] / 4095 * 65535))
    dataset = image(
        ramp(),
        ModalityLUTSequence=Sequence([item]),
        VOILUTSequence=Sequence([lut(curve, 12)]),
        WindowCenter=10,
        WindowWidth=10,
    )
    got = read_grey(save(tmp_path / "b.dcm", dataset))
    np.testing.assert_array_equal(got, np.rint(curve[modality[ramp()]] / 4095 * 65535))


def test_color_and_palette(tmp_path: Path) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (10, 12, 3)).astype(np.uint8)
    weights = np.array([0.299, 0.587, 0.114])
    got = read_grey(save(tmp_path / "rgb.dcm", image(rgb, 8)))
    assert got.dtype == np.uint8 and np.abs(got - rgb @ weights).max() <= 0.51
    entries = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype(np.uint16)
    palette: dict[str, object] = {"PhotometricInterpretation": "PALETTE COLOR"}
    samples = ramp(8, np.uint8)
    dataset = image(samples, 8, **palette)
    for name, column in zip(("Red", "Green", "Blue"), entries, strict=True):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [256, 0, 16])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", column.tobytes())
    got = read_grey(save(tmp_path / "p.dcm", dataset))
    expected = np.moveaxis(entries[:, samples], 0, -1) @ weights
    assert got.dtype == np.uint16 and np.abs(got - expected).max() <= 1


@pytest.mark.parametrize(
    ("elements", "word"),
    [
        ({"NumberOfFrames": 2}, "2 frames"),
        ({"Rows": 0}, "at least 1 x 1"),
        ({"Rows": 60000, "Columns": 60000}, "allowed up to 64 Mpx"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "width 0"),
        ({"WindowCenter": 5, "WindowWidth": 9, "VOILUTFunction": "CUBIC"}, "CUBIC"),
        ({"PhotometricInterpretation": "HSV"}, "HSV"),
        ({"BitsStored": 17}, "17 bits"),
        ({"BitsAllocated": 32}, "32"),
        ({"SamplesPerPixel": 3}, "SamplesPerPixel 3"),
        ({"PixelData": b""}, "no pixel data"),
        ({"PixelData": b"\0" * 100}, "pixel data"),
    ],
)
def test_refusals(tmp_path: Path, elements: dict[str, object], word: str) -> None:
    path = save(tmp_path / "a.dcm", image(ramp(), **elements))
    refused(path, word)


def test_missing_parts(tmp_path: Path) -> None:
    for name in ("Rows", "PixelData", "PhotometricInterpretation", "BitsStored"):
        dataset = image(ramp())
        del dataset[name]
        refused(save(tmp_path / "a.dcm", dataset))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_cut_anywhere(tmp_path: Path, syntax: UID) -> None:
    data = save(tmp_path / "whole.dcm", image(ramp()), syntax).read_bytes()
    # Deflated data may end with one byte of padding, which nobody misses.
    for cut in (2, 3, 10, 100, len(data) // 2, len(data) - 140, len(data) - 133):
        (tmp_path / "a.dcm").write_bytes(data[:-cut])
        refused(tmp_path / "a.dcm")


READABLE = {
    "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm": (1024, 1024),
    "Fake_MONOHR1.dcm": (1024, 1024),
    "RG1_J2KI.dcm": (1955, 1841),
    "RG3_J2KI.dcm": (1760, 1760),
    "RG3_J2KR.dcm": (1760, 1760),
    "image_dfl.dcm": (512, 512),
}
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "the header says (1024, 256)",
    "MR_truncated.dcm": "8130 of 8192 bytes",
    "SC_rgb_rle_16bit_2frame.dcm": "2 frames",
    "chrJapMulti.dcm": "no pixel data",
    "empty_charset_LEI.dcm": "no Rows",
    "no_meta.dcm": "not an image",
    "no_meta_group_length.dcm": "no Rows",
    "rtplan.dcm": "it is RT Plan Storage",
}


@real
@pytest.mark.real_data
def test_real_files_are_read_or_refused() -> None:
    assert {path.name for path in REAL.iterdir()} == {*READABLE, *REFUSED}
    for name, size in READABLE.items():
        got = read_grey(REAL / name)
        assert got.shape == size == check_header(REAL / name)
        assert np.ptp(got) > np.iinfo(got.dtype).max // 2
    for name, word in REFUSED.items():
        refused(REAL / name, word)


@real
@pytest.mark.real_data
def test_real_polarity_and_window() -> None:
    dark, light = (read_grey(REAL / name) for name in list(READABLE)[:2])
    np.testing.assert_array_equal(dark, 255 - light)
    for name in ("RG1_J2KI.dcm", "RG3_J2KR.dcm"):
        dataset = pydicom.dcmread(REAL / name)
        center, width = float(dataset.WindowCenter), float(dataset.WindowWidth)
        sampled = dataset.pixel_array[::97, ::89]
        expected = 1 - window(sampled, center, width, "LINEAR")
        assert np.abs(read_grey(REAL / name)[::97, ::89] - expected * 65535).max() <= 0.51
