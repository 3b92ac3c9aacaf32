"""DICOM lookup tables and palettes: entries as the standard and its writers store them."""

from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    ExplicitVRBigEndian,
)

from tests.data.images.dicom_files import (  # noqa: E402
    RAMP,
    SIGNED,
    image,
    lut,
    packed,
    ramp,
    refused,
    save,
    scaled,
)


@pytest.mark.parametrize("kind", ["US", "SS"])
@pytest.mark.parametrize("slope", [1, 2])
def test_a_table_whose_first_value_is_negative(tmp_path: Path, kind: str, slope: int) -> None:
    """The descriptor's representation is often the wrong one."""
    first = -1024 if kind == "SS" else 65536 - 1024
    table = lut(np.arange(2048) * 2, 12, first, kind)
    dataset = image(SIGNED, VOILUTSequence=Sequence([table]), RescaleSlope=slope)
    expected = scaled(np.clip(SIGNED.astype(int) * slope + 1024, 0, 2047) * 2, 0, 4095)
    np.testing.assert_array_equal(read_grey(save(tmp_path / "a.dcm", dataset)), expected)


def test_a_table_whose_first_value_is_large(tmp_path: Path) -> None:
    samples = np.linspace(0, 65535, 24 * 36).astype(np.uint16).reshape(24, 36)
    table = lut(np.arange(4096), 12, 40000)
    dataset = image(samples, 16, VOILUTSequence=Sequence([table]))
    expected = scaled(samples, 40000, 44095)
    np.testing.assert_array_equal(read_grey(save(tmp_path / "a.dcm", dataset)), expected)


@pytest.mark.parametrize("name", ["ModalityLUTSequence", "VOILUTSequence"])
@pytest.mark.parametrize("bits", [8, 16])
def test_tables_in_big_endian(tmp_path: Path, name: str, bits: int) -> None:
    entries = 255 - np.arange(256)
    table = packed(entries) if bits == 8 else lut(entries, 8)
    table["LUTData"].value = np.frombuffer(table.LUTData, "<u2").astype(">u2").tobytes()
    samples = ramp(8, np.uint8)
    dataset = image(samples, 8, **{name: Sequence([table])})
    dataset["PixelData"].VR = "OB"
    path = save(tmp_path / "a.dcm", dataset, ExplicitVRBigEndian)
    np.testing.assert_array_equal(read_grey(path), 255 - samples)


@pytest.mark.parametrize("length", [510, 256, 1024])
def test_a_table_that_is_not_as_its_descriptor_says(tmp_path: Path, length: int) -> None:
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [256, 0, 16])
    table.add_new("LUTData", "OW", bytes(length))
    dataset = image(RAMP, VOILUTSequence=Sequence([table]))
    refused(save(tmp_path / "a.dcm", dataset), "LUTData of", "256 entries of 16 bits")


def palette(samples: np.ndarray, bits: int, data: bytes, first: int = 0, **names: str) -> Dataset:
    """Grey colours: the same table for red, green and blue."""
    dataset = image(samples, 8, PhotometricInterpretation="PALETTE COLOR")
    for color in ("Red", "Green", "Blue"):
        name = f"{color}PaletteColorLookupTable"
        dataset.add_new(f"{name}Descriptor", "US", [256, first, bits])
        dataset.add_new(f"{names.get('part', '')}{name}Data", "OW", data)
    return dataset


INVERSE = 255 - np.arange(256)
# 0 to 99 down, one step to 100, then 27 levels three times, as segments of three kinds.
SEGMENTS = {
    8: bytes([0, 2, 255, 250, 1, 98, 152, 0, 3, 9, 8, 7, 1, 48, 55, 2, 1, 7, 0, 0, 0, 1, 102, 3]),
    16: np.array(
        [0, 2, 255, 250, 1, 98, 152, 0, 3, 9, 8, 7, 1, 48, 55, 2, 1, 14, 0, 1, 102, 3], "<u2"
    ).tobytes(),
}


def expanded() -> np.ndarray:
    first = [255, 250, *np.rint(np.linspace(250, 152, 99)[1:])]
    second = [9, 8, 7, *np.rint(np.linspace(7, 55, 49)[1:])]
    third = [9, 8, 7]
    return np.array([*first, *second, *third, *np.rint(np.linspace(7, 3, 103)[1:])][:256])


@pytest.mark.parametrize(
    ("bits", "data", "part", "expected"),
    [
        (8, INVERSE.astype(np.uint8).tobytes(), "", INVERSE),
        (8, INVERSE.astype("<u2").tobytes(), "", INVERSE),
        (16, INVERSE.astype("<u2").tobytes(), "", INVERSE),
        (16, (INVERSE * 256).astype("<u2").tobytes(), "", INVERSE * 256),
        (8, SEGMENTS[8], "Segmented", expanded()),
        (16, SEGMENTS[16], "Segmented", expanded()),
    ],
)
def test_palettes(tmp_path: Path, bits: int, data: bytes, part: str, expected: np.ndarray) -> None:
    samples = ramp(8, np.uint8)
    path = save(tmp_path / "a.dcm", palette(samples, bits, data, part=part))
    got = read_grey(path)
    assert got.dtype == (np.uint16 if expected.max() > 255 else np.uint8)
    assert np.abs(got - expected[samples].astype(float)).max() <= 0.01


@pytest.mark.parametrize(
    "data", [bytes([3, 1]), bytes([0, 9, 1]), bytes([1, 5, 7]), bytes([2, 1, 0, 0, 0, 0]) * 9]
)
def test_segments_that_cannot_be_followed(tmp_path: Path, data: bytes) -> None:
    path = save(tmp_path / "a.dcm", palette(ramp(8, np.uint8), 8, data, part="Segmented"))
    refused(path, "SegmentedRedPaletteColorLookupTableData")


def test_colors_that_nothing_here_computes(tmp_path: Path) -> None:
    rgb = np.zeros((4, 6, 3), np.uint16)
    for elements, words in (
        ({"PhotometricInterpretation": "YBR_FULL"}, "YBR_FULL of 12 bits"),
        ({"PixelRepresentation": 1}, "PixelRepresentation 1"),
        ({"PlanarConfiguration": 2}, "PlanarConfiguration 2"),
        ({"PlanarConfiguration": None}, "PlanarConfiguration is missing"),
        ({"PhotometricInterpretation": "YBR_PARTIAL_420"}, "YBR_PARTIAL_420"),
    ):
        refused(save(tmp_path / "a.dcm", image(rgb, 12, **elements)), words)
    palettes = palette(ramp(8, np.uint8), 8, bytes(256))
    del palettes.BluePaletteColorLookupTableData
    refused(save(tmp_path / "a.dcm", palettes), "BluePaletteColorLookupTableData is missing")


def test_colors_by_plane_and_in_the_upper_bits(tmp_path: Path) -> None:
    rgb = np.random.default_rng(3).integers(0, 4096, (6, 8, 3)).astype(np.uint16)
    expected = read_grey(save(tmp_path / "a.dcm", image(rgb, 12)))
    assert np.abs(expected - rgb @ [0.299, 0.587, 0.114] / 4095 * 65535).max() <= 0.6
    planes = np.moveaxis(rgb, -1, 0).tobytes()
    path = save(tmp_path / "b.dcm", image(rgb, 12, PlanarConfiguration=1, PixelData=planes))
    np.testing.assert_array_equal(read_grey(path), expected)
    upper = (rgb << 4).tobytes()
    path = save(tmp_path / "c.dcm", image(rgb, 12, HighBit=15, PixelData=upper))
    np.testing.assert_array_equal(read_grey(path), expected)
