"""Compressed DICOM: exact pixels, complete ones only, and what to install in the refusal."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from selftaught.data.images import dicom_codestream, dicom_pixels
from selftaught.data.images.decode import read_grey

pydicom = pytest.importorskip("pydicom")

from pydicom.encaps import encapsulate  # noqa: E402
from pydicom.uid import UID, JPEGExtended12Bit, JPEGLosslessSV1, RLELossless  # noqa: E402

from tests.data.images.dicom_files import image, ramp, refused, save  # noqa: E402
from tests.data.images.lossless import encode  # noqa: E402

BASELINE, LOSSLESS = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.57"
JPEG_LS, J2K = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90"
FILES = Path(pydicom.__file__).parent / "data" / "test_files"
gdcm = pytest.mark.skipif(
    "gdcm" not in dicom_pixels.installed(LOSSLESS), reason="python-gdcm is not installed"
)


def film(bits: int, tail: int = 0) -> np.ndarray:
    """Noise on a slope; the last rows constant, as under a collimator."""
    rng = np.random.default_rng(bits + tail)
    samples = np.linspace(0.2, 0.7, 40)[:, None] * 2**bits + rng.normal(
        0, 2 ** (bits - 5), (40, 30)
    )
    samples = samples.clip(0, 2**bits - 1).astype(np.uint8 if bits <= 8 else np.uint16)
    if tail:
        samples[-tail:] = samples[-tail, 0]
    return samples


def wrapped(path: Path, samples: np.ndarray, frame: bytes, bits: int, syntax: str) -> Path:
    pieces = [frame[: len(frame) // 4 * 2], frame[len(frame) // 4 * 2 :]]
    dataset = image(samples, bits, PixelData=encapsulate([frame], fragments_per_frame=len(pieces)))
    dataset["PixelData"].is_undefined_length = True
    return save(path, dataset, UID(syntax))


def shown(samples: np.ndarray, bits: int) -> np.ndarray:
    return np.rint(samples / (2**bits - 1) * (255 if bits <= 8 else 65535))


@gdcm
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_lossless_jpeg_is_exact(tmp_path: Path, bits: int, predictor: int) -> None:
    for tail in (0, 9, 40):
        samples = film(bits, tail)
        frame = encode(samples, bits, predictor)
        path = wrapped(tmp_path / "a.dcm", samples, frame, bits, LOSSLESS)
        np.testing.assert_array_equal(read_grey(path), shown(samples, bits))


@gdcm
@pytest.mark.parametrize("predictor", range(1, 8))
@pytest.mark.parametrize("tail", [0, 9])
@pytest.mark.parametrize("rows", [0, 8])
def test_lossless_jpeg_cut_before_its_end_marker(
    tmp_path: Path, predictor: int, tail: int, rows: int
) -> None:
    samples = film(12, tail)
    frame = encode(samples, 12, predictor, rows)
    path = wrapped(tmp_path / "a.dcm", samples, frame, 12, LOSSLESS)
    np.testing.assert_array_equal(read_grey(path), shown(samples, 12))
    for share in (0.3, 0.5, 0.8, 0.97):
        cut = frame[: int(len(frame) * share)].rstrip(b"\xff") + b"\xff\xd9"
        path = wrapped(tmp_path / "b.dcm", samples, cut, 12, LOSSLESS)
        refused(path, "truncated", "JPEG Lossless")


@gdcm
def test_lossless_jpeg_of_signed_samples(tmp_path: Path) -> None:
    samples = film(12)
    words = encode(samples, 12)
    path = wrapped(tmp_path / "a.dcm", samples, words, 12, JPEGLosslessSV1)
    dataset = pydicom.dcmread(path)
    dataset.PixelRepresentation = 1
    dataset.save_as(path)
    signed = (samples.astype(int) + 2048) % 4096
    np.testing.assert_array_equal(read_grey(path), shown(signed, 12))


@pytest.mark.parametrize(
    ("name", "twin"),
    [
        pytest.param("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", marks=gdcm),
        pytest.param("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", marks=gdcm),
        ("MR_small_jp2klossless.dcm", "MR_small.dcm"),
        ("MR_small_RLE.dcm", "MR_small.dcm"),
        ("MR_small_bigendian.dcm", "MR_small.dcm"),
        ("MR_small_implicit.dcm", "MR_small.dcm"),
        ("MR_small_padded.dcm", "MR_small.dcm"),
        ("SC_rgb_small_odd_big_endian.dcm", "SC_rgb_small_odd.dcm"),
        ("liver_expb_1frame.dcm", "liver_1frame.dcm"),
    ],
)
def test_public_files_equal_their_twins(name: str, twin: str) -> None:
    np.testing.assert_array_equal(read_grey(FILES / name), read_grey(FILES / twin))


@gdcm
def test_jpeg_ls_cut_before_its_end_marker(tmp_path: Path) -> None:
    dataset = pydicom.dcmread(FILES / "MR_small_jpeg_ls_lossless.dcm")
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: len(frame) // 2] + b"\xff\xd9"])
    dataset.save_as(tmp_path / "a.dcm")
    refused(tmp_path / "a.dcm", "JPEG-LS data cannot be decoded")


@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL", "YBR_FULL_422"])
@pytest.mark.parametrize("jfif", [False, True])
@pytest.mark.parametrize("keep_rgb", [False, True])
def test_jpeg_that_says_its_colors(
    tmp_path: Path, keep_rgb: bool, jfif: bool, photometric: str
) -> None:
    """Adobe's segment counts, whatever the header says of what was there before it."""
    level = film(8, 9)
    colors = np.stack([level, level // 2, 255 - level], -1)
    buffer = io.BytesIO()
    Image.fromarray(colors).save(buffer, "JPEG", quality=98, subsampling=0, keep_rgb=keep_rgb)
    frame = buffer.getvalue()
    if not keep_rgb:
        begin = 2 if jfif else 4 + int.from_bytes(frame[4:6], "big")
        frame = b"\xff\xd8\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\1" + frame[begin:]
    elif jfif:  # Neither segment: the components are named R, G, B.
        frame = frame[:2] + frame[18:]
    path = wrapped(tmp_path / "a.dcm", colors, frame, 8, BASELINE)
    dataset = pydicom.dcmread(path)
    dataset.PhotometricInterpretation = photometric
    dataset.save_as(path)
    assert np.abs(read_grey(path) - colors @ [0.299, 0.587, 0.114]).mean() < 2


@pytest.mark.parametrize("host", [False, True])
@pytest.mark.parametrize("kind", [BASELINE, J2K])
def test_other_jpeg_cut_before_its_end_marker(
    tmp_path: Path, kind: str, host: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the host told Pillow to do with what is cut."""
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", host)
    samples = film(8, 9)
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "JPEG" if kind == BASELINE else "JPEG2000", quality=90)
    frame = buffer.getvalue()
    if kind == J2K:
        frame = frame[frame.index(b"\xff\x4f\xff\x51") :]
    got = read_grey(wrapped(tmp_path / "a.dcm", samples, frame, 8, kind))
    assert np.abs(got.astype(int) - samples).mean() < 3
    for share in (0.5, 0.8):
        cut = frame[: int(len(frame) * share)].rstrip(b"\xff") + b"\xff\xd9"
        refused(wrapped(tmp_path / "b.dcm", samples, cut, 8, kind), "truncated JPEG")


@pytest.mark.parametrize(
    ("syntax", "words"),
    [
        (LOSSLESS, "pip install python-gdcm"),
        (JPEGLosslessSV1, "pip install python-gdcm"),
        (JPEG_LS, "pip install python-gdcm"),
        ("1.2.840.10008.1.2.4.81", "pip install python-gdcm"),
        ("1.2.840.10008.1.2.4.201", "pip install pylibjpeg pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.203", "pip install pylibjpeg pylibjpeg-openjpeg"),
        ("1.2.840.10008.1.2.4.102", "MPEG-4 AVC/H.264 High Profile"),
        ("1.2.840.10008.1.2.4.55", "gdcmconv --raw"),
    ],
)
def test_what_is_missing_is_in_the_line(
    tmp_path: Path, syntax: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_pixels, "installed", lambda syntax: ("pillow", "pydicom"))
    samples = film(12)
    path = wrapped(tmp_path / "a.dcm", samples, encode(samples, 12), 12, syntax)
    refused(path, words)


def test_jpeg_of_12_bits_says_how_to_export_it(tmp_path: Path) -> None:
    samples = film(12)
    frame = encode(samples, 12).replace(b"\xff\xc3", b"\xff\xc1")
    path = wrapped(tmp_path / "a.dcm", samples, frame, 12, JPEGExtended12Bit)
    refused(path, "JPEG Extended of 12 bits is not read", "gdcmconv --raw")


def test_plugins_are_tried_in_one_order_whatever_else_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dicom_pixels, "installed", lambda syntax: ("gdcm", "pylibjpeg", "pillow"))
    tried: list[str] = []

    def undo(frame: bytes, plugin: str) -> tuple[np.ndarray, str]:
        tried.append(plugin)
        raise RuntimeError

    for codec in (dicom_codestream.BASELINE, dicom_codestream.RLE):
        usable = [plugin for plugin in codec.plugins if plugin in ("gdcm", "pillow", "pydicom")]
        with pytest.raises(dicom_codestream.BadImage):
            dicom_codestream.first(tmp_path, codec, b"", usable, undo)
    assert tried == ["pillow", "pydicom"]


def test_headers_and_pixels_that_contradict_one_another(tmp_path: Path) -> None:
    samples = ramp(8, np.uint8)
    path = save(tmp_path / "a.dcm", image(samples, 8))
    data, plain = path.read_bytes(), b"1.2.840.10008.1.2.1\0"
    for syntax, words in (
        (b"1.2.840.10008.1.2.4.50", "not compressed, though the header says JPEG Baseline"),
        (b"1.2.840.113619.5.2", "compression unknown is not read"),
    ):
        padded = syntax + b"\0" * (len(syntax) % 2)
        named = (b"UI" + bytes([len(text), 0]) + text for text in (plain, padded))
        path.write_bytes(data.replace(*named))
        refused(path, words)
    path = wrapped(tmp_path / "b.dcm", samples, samples.tobytes(), 8, "1.2.840.10008.1.2.1")
    refused(path, "though the header says uncompressed")
    path = wrapped(tmp_path / "c.dcm", samples, samples.tobytes(), 8, "1.2.840.10008.1.2.1.98")
    np.testing.assert_array_equal(read_grey(path), samples)
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "JPEG")
    frame = buffer.getvalue()
    path = wrapped(tmp_path / "d.dcm", samples, frame, 8, BASELINE)
    dataset = pydicom.dcmread(path)
    dataset.BitsStored = 7
    dataset.save_as(path)
    refused(path, "HighBit 7 of compressed pixels")
    two = image(samples, 8, PixelData=encapsulate([frame, frame]))
    two["PixelData"].is_undefined_length = True
    refused(save(tmp_path / "e.dcm", two, UID(BASELINE)), "2 compressed frames")


def test_run_length_codes_of_shifted_samples(tmp_path: Path) -> None:
    dataset = image(ramp() << 4, HighBit=15)
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.compress(RLELossless)
    path = save(tmp_path / "a.dcm", dataset, RLELossless)
    np.testing.assert_array_equal(read_grey(path), shown(ramp(), 12))


@pytest.mark.parametrize("lost", [1, 8, 9, 60])
def test_fragments_that_are_cut(tmp_path: Path, lost: int) -> None:
    buffer = io.BytesIO()
    Image.fromarray(film(8)).save(buffer, "JPEG")
    path = wrapped(tmp_path / "a.dcm", film(8), buffer.getvalue(), 8, BASELINE)
    path.write_bytes(path.read_bytes()[:-lost])
    refused(path, "truncated DICOM")
