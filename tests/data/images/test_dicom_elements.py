"""Every DICOM element that changes what a sample means: applied to the pixel, or refused by name.

The rows follow the standard's modules (PS3.3); docs/data.md, "What is read", is the same list.
"""

import struct
from pathlib import Path

import numpy as np
import pytest

from selftaught.data.images.decode import BadImage, check_header, read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.dataset import Dataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    UID,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.data.images.dicom_files import (  # noqa: E402
    LINEAR,
    RAMP,
    SHOWN,
    SIGNED,
    WINDOW,
    image,
    item,
    lut,
    outside,
    packed,
    refused,
    save,
    scaled,
)

ROWS, COLUMNS = np.mgrid[1:25, 1:37]
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
    ({"PixelRepresentation": None}, "PixelRepresentation is missing or empty; allowed"),
    ({"PixelSpacing": ["0.1", "0.2"]}, "PixelSpacing 0.1 x 0.2: pixels are not square"),
    ({"ImagerPixelSpacing": ["0.2", "0.1"]}, "ImagerPixelSpacing 0.2 x 0.1"),
    ({"PixelAspectRatio": ["1", "2"]}, "PixelAspectRatio 1 x 2"),
    ({"PixelSpacing": ["0.1", "-0.2"]}, "PixelSpacing is not two positive numbers"),
    ({"PixelPresentation": "COLOR"}, "PixelPresentation 'COLOR'"),
    ({"PixelData": RAMP.tobytes() * 2}, "3456 bytes of pixel data"),
    # C.7.5.1.1.2
    ({"PixelPaddingRangeLimit": 5}, "PixelPaddingRangeLimit without PixelPaddingValue"),
    ({"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 4095}, "correct or remove"),
    # C.11.1
    ({"RescaleSlope": "0", "RescaleIntercept": "5"}, "RescaleSlope 0, RescaleIntercept 5"),
    (
        {"RescaleIntercept": "1E300"},
        "RescaleIntercept 1e+300: samples would be alike or not finite; allowed",
    ),
    ({"RescaleSlope": "1e400"}, "RescaleSlope '1e400' is no finite"),
    ({"RescaleSlope": "1E305"}, "alike or not finite"),
    ({"RescaleSlope": "1E-30", "RescaleIntercept": "1"}, "alike or not finite"),
    ({"RescaleSlope": ["1", "2"]}, "RescaleSlope has 2 values"),
    ({"ModalityLUTSequence": Sequence([lut(np.zeros(4096), 12)])}, "shown alike"),
    # C.11.2
    ({"WindowCenter": "5"}, "one of them is missing; allowed: both or neither"),
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
    (
        {"PresentationLUTShape": "INVERSE"},
        "INVERSE of MONOCHROME2: which one holds is unknown; allow",
    ),
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
