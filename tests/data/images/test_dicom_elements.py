"""Every DICOM element that changes what a sample means: applied to the pixel, or refused by name.

The rows follow the standard's modules (PS3.3); docs/data.md, "What is read", is the same list.
"""

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

from tests.data.images.dicom_files import image, ramp, refused, save  # noqa: E402

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


ROWS, COLUMNS = np.mgrid[1:25, 1:37]
LINEAR = scaled(RAMP - 899.5, -349.5, 349.5)
GROUPS = {
    "PixelValueTransformationSequence": Sequence([item(RescaleSlope="-1", RescaleIntercept=0)])
}
FRAME_WINDOW = Sequence([item(WindowCenter="900", WindowWidth="700")])

# What is set, and what is shown.
APPLIED: dict[str, tuple[dict[str, object], np.ndarray]] = {
    # C.7.6.3 Image Pixel
    "NumberOfFrames empty": ({"NumberOfFrames": None}, SHOWN),
    "NumberOfFrames 1": ({"NumberOfFrames": "1"}, SHOWN),
    "PhotometricInterpretation MONOCHROME1": (
        {"PhotometricInterpretation": "MONOCHROME1"},
        65535 - SHOWN,
    ),
    "BitsStored above an overlay's bits": (
        {"PixelData": (RAMP | 0xA000).tobytes()},
        SHOWN,
    ),
    "HighBit above the samples": ({"PixelData": (RAMP << 4).tobytes(), "HighBit": 15}, SHOWN),
    "HighBit between overlays": (
        {"PixelData": (RAMP << 2 | 0x8001).astype(np.uint16).tobytes(), "HighBit": 13},
        SHOWN,
    ),
    "PixelRepresentation signed, without its sign in the word": (
        {"PixelData": (SIGNED.view(np.uint16) & 0xFFF).tobytes(), "PixelRepresentation": 1},
        SHOWN,
    ),
    "PixelSpacing square": ({"PixelSpacing": ["0.2", "0.200"]}, SHOWN),
    "PixelSpacing of zeros": ({"PixelSpacing": ["0.000", "0.000"]}, SHOWN),
    "PixelAspectRatio 1:1": ({"PixelAspectRatio": ["1", "1"]}, SHOWN),
    "SmallestImagePixelValue": ({"SmallestImagePixelValue": 5, "LargestImagePixelValue": 9}, SHOWN),
    # C.7.5.1.1.2 Pixel Padding
    "PixelPaddingValue": ({"PixelPaddingValue": 4095}, outside(SHOWN, RAMP == 4095)),
    "PixelPaddingValue of MONOCHROME1": (
        {"PixelPaddingValue": 0, "PhotometricInterpretation": "MONOCHROME1"},
        outside(65535 - SHOWN, RAMP == 0),
    ),
    "PixelPaddingRangeLimit": (
        {"PixelPaddingValue": 3900, "PixelPaddingRangeLimit": 4000},
        outside(SHOWN, (RAMP >= 3900) & (RAMP <= 4000)),
    ),
    "PixelPaddingRangeLimit of MONOCHROME1 comes first": (
        {
            "PixelPaddingValue": 4095,
            "PixelPaddingRangeLimit": 4000,
            "PhotometricInterpretation": "MONOCHROME1",
        },
        outside(65535 - SHOWN, RAMP >= 4000),
    ),
    "PixelPaddingValue is a stored value": (
        {"PixelPaddingValue": 4095, "RescaleSlope": "-2", "RescaleIntercept": "9"},
        outside(65535 - SHOWN, RAMP == 4095),
    ),
    "PixelPaddingValue that no sample has": ({"PixelPaddingValue": 63536}, SHOWN),
    # C.11.1 Modality LUT
    "RescaleSlope negative": ({"RescaleSlope": "-2", "RescaleIntercept": "1E2"}, 65535 - SHOWN),
    "RescaleSlope with blanks and sign": (
        {"RescaleSlope": " +0.5 ", "WindowCenter": "449.75", "WindowWidth": "350.5"},
        scaled(RAMP * 0.5 - 449.25, -174.75, 174.75),
    ),
    "ModalityLUTSequence, a byte an entry": (
        {"ModalityLUTSequence": Sequence([packed(255 - np.arange(256))]), "WindowCenter": None},
        scaled(255 - np.minimum(RAMP, 255), 0, 255),
    ),
    "ModalityLUTSequence of 65,536 entries": (
        {"ModalityLUTSequence": Sequence([lut(65535 - np.arange(65536), 16)])},
        scaled(-RAMP.astype(int), -4095, 0),
    ),
    # C.11.2 VOI LUT
    "WindowCenter": ({"WindowCenter": "900", "WindowWidth": "700"}, LINEAR),
    "WindowCenter, the first with a width": (
        {"WindowCenter": ["5", "900", "7"], "WindowWidth": ["", "700"]},
        LINEAR,
    ),
    "VOILUTFunction in small letters": (
        {"WindowCenter": "900", "WindowWidth": "700", "VOILUTFunction": "linear"},
        LINEAR,
    ),
    "VOILUTFunction LINEAR_EXACT, narrow": (
        {"WindowCenter": "2000", "WindowWidth": "0.5", "VOILUTFunction": "LINEAR_EXACT"},
        np.where(RAMP > 2000, 65535, 0),
    ),
    "VOILUTSequence of more room than its entries take": (
        {"VOILUTSequence": Sequence([lut(np.arange(4096) // 8, 14)])},
        scaled(RAMP // 8, 0, 511),
    ),
    "VOILUTSequence of less room than its entries take": (
        {"VOILUTSequence": Sequence([lut(np.arange(4096) * 16, 8)])},
        scaled(RAMP.astype(int) * 16, 0, 65535),
    ),
    "VOILUTSequence, odd number of bytes": (
        {"VOILUTSequence": Sequence([packed(np.arange(251))])},
        scaled(np.minimum(RAMP, 250), 0, 255),
    ),
    "VOILUTSequence, first value in the middle": (
        {"VOILUTSequence": Sequence([lut(np.arange(1024), 10, first=1000)])},
        scaled(RAMP, 1000, 2023),
    ),
    "VOILUTSequence, the first with entries, before a window": (
        {
            "VOILUTSequence": Sequence([item(LUTExplanation="a"), lut(4095 - np.arange(4096), 12)]),
            "WindowCenter": "900",
            "WindowWidth": "700",
        },
        65535 - SHOWN,
    ),
    # C.7.6.1, C.11.6 Presentation LUT
    "PresentationLUTShape": ({"PresentationLUTShape": "IDENTITY"}, SHOWN),
    "PresentationLUTShape of MONOCHROME1": (
        {"PresentationLUTShape": "INVERSE", "PhotometricInterpretation": "MONOCHROME1"},
        65535 - SHOWN,
    ),
    "PresentationLUTSequence of an empty item": (
        {"PresentationLUTSequence": Sequence([Dataset()])},
        SHOWN,
    ),
    # C.7.6.11 Display Shutter
    "ShutterShape RECTANGULAR": (
        {
            "ShutterShape": "RECTANGULAR",
            "ShutterLeftVerticalEdge": "3",
            "ShutterRightVerticalEdge": "30",
            "ShutterUpperHorizontalEdge": "2",
            "ShutterLowerHorizontalEdge": "99",
        },
        outside(SHOWN, (COLUMNS < 3) | (COLUMNS > 30) | (ROWS < 2)),
    ),
    "ShutterShape CIRCULAR, its level": (
        {
            "ShutterShape": "CIRCULAR",
            "CenterOfCircularShutter": ["12", "18"],
            "RadiusOfCircularShutter": "10",
            "ShutterPresentationValue": 257,
            "PhotometricInterpretation": "MONOCHROME1",
        },
        outside(65535 - SHOWN, (ROWS - 12) ** 2 + (COLUMNS - 18) ** 2 > 100, 257),
    ),
    "ShutterShape POLYGONAL": (
        {
            "ShutterShape": "POLYGONAL",
            "VerticesOfThePolygonalShutter": ["5", "5", "5", "20", "15", "20", "15", "5"],
        },
        outside(SHOWN, (ROWS < 5) | (ROWS > 15) | (COLUMNS < 5) | (COLUMNS > 20)),
    ),
    # C.7.6.16 functional groups of an enhanced image of one frame
    "PixelValueTransformationSequence": (
        {"SharedFunctionalGroupsSequence": Sequence([item(**GROUPS)])},
        65535 - SHOWN,
    ),
    "FrameVOILUTSequence": (
        {
            "SharedFunctionalGroupsSequence": Sequence([item(**GROUPS)]),
            "PerFrameFunctionalGroupsSequence": Sequence(
                [
                    item(
                        FrameVOILUTSequence=FRAME_WINDOW,
                        PixelValueTransformationSequence=Sequence(
                            [item(RescaleSlope="1", RescaleIntercept="0")]
                        ),
                    )
                ]
            ),
        },
        LINEAR,
    ),
    # Facts about how the picture came to be, which change no pixel.
    "PixelIntensityRelationship": (
        {"PixelIntensityRelationship": "LOG", "PixelIntensityRelationshipSign": 1},
        SHOWN,
    ),
    "RescaleType": ({"RescaleSlope": 1, "RescaleIntercept": 0, "RescaleType": "OD"}, SHOWN),
}


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("name", APPLIED)
def test_an_element_is_applied(tmp_path: Path, name: str, syntax: UID) -> None:
    elements, expected = APPLIED[name]
    path = save(tmp_path / "a.dcm", image(RAMP, **elements), syntax)
    np.testing.assert_array_equal(read_grey(path), expected)
    assert check_header(path) == expected.shape


WINDOW = {"WindowCenter": "900", "WindowWidth": "700"}
EDGES = {
    "ShutterShape": "RECTANGULAR",
    "ShutterLeftVerticalEdge": "1",
    "ShutterRightVerticalEdge": "36",
    "ShutterUpperHorizontalEdge": "1",
}

# What is set, and words of the refusal.
REFUSED: list[tuple[dict[str, object], str]] = [
    # C.7.6.3
    ({"Rows": None}, "Rows is missing"),
    ({"NumberOfFrames": "3"}, "3 frames"),
    ({"PhotometricInterpretation": "CMYK"}, "PhotometricInterpretation 'CMYK'"),
    ({"PhotometricInterpretation": None}, "PhotometricInterpretation is missing"),
    ({"BitsStored": 0}, "0 bits stored in 16"),
    ({"BitsAllocated": 12}, "stored in 12"),
    ({"HighBit": 16}, "HighBit 16; allowed: whole numbers from 11 to 15"),
    ({"HighBit": 5}, "HighBit 5"),
    ({"PixelRepresentation": 2}, "PixelRepresentation 2"),
    ({"PixelRepresentation": None}, "PixelRepresentation is missing"),
    ({"PixelSpacing": ["0.1", "0.2"]}, "PixelSpacing 0.1 x 0.2: pixels are not square"),
    ({"ImagerPixelSpacing": ["0.2", "0.1"]}, "ImagerPixelSpacing 0.2 x 0.1"),
    ({"PixelAspectRatio": ["1", "2"]}, "PixelAspectRatio 1 x 2"),
    ({"PixelSpacing": ["0.1", "-0.2"]}, "PixelSpacing is not two positive numbers"),
    ({"PixelPresentation": "COLOR"}, "PixelPresentation 'COLOR'"),
    ({"PixelData": RAMP.tobytes() * 2}, "3456 bytes of pixel data"),
    # C.7.5.1.1.2
    ({"PixelPaddingRangeLimit": 5}, "PixelPaddingRangeLimit without PixelPaddingValue"),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "shown alike"),
    # C.11.1
    ({"RescaleSlope": "0", "RescaleIntercept": "5"}, "RescaleSlope 0, RescaleIntercept 5"),
    ({"RescaleIntercept": "1E300"}, "RescaleSlope 1, RescaleIntercept 1e+300"),
    ({"RescaleSlope": "1e400"}, "RescaleSlope '1e400' is no finite"),
    ({"RescaleSlope": "1E305"}, "alike or not finite"),
    ({"RescaleSlope": "1E-30", "RescaleIntercept": "1"}, "alike or not finite"),
    ({"RescaleSlope": ["1", "2"]}, "RescaleSlope has 2 values"),
    ({"ModalityLUTSequence": Sequence([lut(np.zeros(4096), 12)])}, "shown alike"),
    # C.11.2
    ({"WindowCenter": "5"}, "WindowCenter and WindowWidth: one of them is missing"),
    ({"WindowWidth": "5"}, "WindowCenter and WindowWidth: one of them is missing"),
    ({"WindowCenter": "9", "WindowWidth": "-5"}, "width -5"),
    ({"WindowCenter": "9", "WindowWidth": "0.5"}, "widths from 1"),
    ({**WINDOW, "VOILUTFunction": "SIGMOID", "WindowWidth": "0"}, "widths above 0"),
    ({**WINDOW, "VOILUTFunction": "LOG"}, "VOILUTFunction 'LOG'"),
    ({"WindowCenter": "90000", "WindowWidth": "5"}, "shown alike"),
    ({"VOILUTSequence": Sequence([lut(np.arange(99), 17)])}, "LUTDescriptor 99, 0, 17"),
    (
        {"VOILUTSequence": Sequence([item(LUTDescriptor=[9, 0, 8])])},
        "LUTDescriptor without LUTData",
    ),
    # C.11.6
    ({"PresentationLUTShape": "INVERSE"}, "PresentationLUTShape INVERSE of MONOCHROME2"),
    ({"PresentationLUTShape": "LIN OD"}, "PresentationLUTShape 'LIN OD'"),
    ({"PresentationLUTSequence": Sequence([lut(RAMP[0], 12)])}, "PresentationLUTSequence"),
    # C.7.6.11
    (EDGES, "ShutterLowerHorizontalEdge"),
    ({**EDGES, "ShutterLowerHorizontalEdge": "0"}, "hides the whole image"),
    ({"ShutterShape": "BITMAP"}, "ShutterShape of unknown value"),
    ({"ShutterShape": "CIRCULAR", "RadiusOfCircularShutter": "5"}, "CIRCULAR needs a center"),
    ({"ShutterShape": "POLYGONAL", "VerticesOfThePolygonalShutter": ["1", "2"]}, "three corners"),
]


@pytest.mark.parametrize(("elements", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_an_element_is_refused(tmp_path: Path, elements: dict[str, object], words: str) -> None:
    refused(save(tmp_path / "a.dcm", image(RAMP, **elements)), words)


@pytest.mark.parametrize(
    ("text", "centre"),
    [
        (b"900.25", 900.25),
        (b"+900.5", 900.5),
        (b"9.00E2", 900),
        (b"900.  ", 900),
        (b"  900 ", 900),
        (b"900\0\0\0", 900),
        (b"900,25", None),
        (b"9 00.2", None),
        (b"0x384 ", None),
        (b"900_25", None),
        (b"1E+999", None),
        (b"-nan  ", None),
        ("９００".encode(), None),
        (b"900\\7,", None),
        (b"True  ", None),
    ],
)
def test_a_decimal_string_is_read_whole(tmp_path: Path, text: bytes, centre: float | None) -> None:
    window = {"WindowCenter": "123.45", "WindowWidth": "700"}
    path = save(tmp_path / "a.dcm", image(RAMP, **window))
    data = path.read_bytes().replace(
        b"DS\x06\x00123.45", b"DS" + struct.pack("<H", len(text)) + text
    )
    path.write_bytes(data)
    if centre is None:
        refused(path, "WindowCenter")
    else:
        expected = scaled(RAMP - (centre - 0.5), -349.5, 349.5)
        np.testing.assert_array_equal(read_grey(path), expected)


def test_what_looks_like_text_is_not_repeated(tmp_path: Path) -> None:
    for name in ("RescaleSlope", "PhotometricInterpretation", "NumberOfFrames", "ShutterShape"):
        path = save(tmp_path / "a.dcm", image(RAMP, **{name: "1"}))
        tag = pydicom.datadict.tag_for_keyword(name)
        begin = path.read_bytes().index(struct.pack("<HH", tag >> 16, tag & 0xFFFF))
        data = path.read_bytes()
        text = b"Secret^Patient, born 1951 "
        path.write_bytes(data[: begin + 6] + struct.pack("<H", 26) + text + data[begin + 10 :])
        refused(path, name)
        with pytest.raises(BadImage) as caught:
            read_grey(path)
        assert "secret" not in str(caught.value).lower()


@pytest.mark.parametrize(
    ("kind", "value"),
    [("SS", -2000), ("US", 63536), ("DS", "-2000"), ("SL", -2000), ("FD", -2000.0)],
)
def test_padding_of_signed_samples_in_any_representation(
    tmp_path: Path, kind: str, value: object
) -> None:
    dataset = image(SIGNED)
    samples = SIGNED.copy()
    samples[3:9] = -2000
    dataset.PixelData = samples.tobytes()
    dataset.add_new("PixelPaddingValue", kind, value)
    shown = scaled(samples, -2048, 2047)
    shown[samples == -2000] = 0
    np.testing.assert_array_equal(read_grey(save(tmp_path / "a.dcm", dataset)), shown)
    assert 700 < scaled(np.array(-2000), -2048, 2047) < 800


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
