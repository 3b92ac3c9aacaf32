"""read_grey and check_header: every allowed kind of file, every kind of bad one."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from selftaught.data.images.decode import BadImage, check_header, read_grey
from tests.data.images.pictures import color, luma, png_file, refused, scene

REAL = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"
real = pytest.mark.skipif(not REAL.is_dir(), reason="the real radiographs are not beside the repo")


DEFLATE = {"compression": "tiff_adobe_deflate"}


def agrees(
    path: Path, expected: np.ndarray, *, dtype: type = np.uint8, within: float = 1.0
) -> None:
    got = read_grey(path)
    assert got.dtype == dtype and got.flags.c_contiguous and got.flags.writeable
    assert check_header(path) == got.shape == expected.shape
    assert np.abs(got.astype(float) - expected).max() <= within


@pytest.mark.parametrize("suffix", ["png", "PNG", "tif", "TIFF"])
def test_grey_8_bits_is_exact(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(scene()).save(path)
    agrees(path, scene(), within=0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_16_bits_is_exact(tmp_path: Path, suffix: str) -> None:
    deep = np.arange(37 * 52, dtype=np.uint16).reshape(37, 52) * 34
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(deep).save(path)
    agrees(path, deep, dtype=np.uint16, within=0)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_use_the_whole_range(tmp_path: Path, bits: int) -> None:
    path = tmp_path / "a.png"
    samples = scene() >> (8 - bits)
    if bits == 1:
        Image.fromarray(samples.astype(bool)).save(path)
    else:
        path.write_bytes(png(samples, bits))
    agrees(path, samples * (255 / (2**bits - 1)), within=0)


def png(samples: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 2 or 4 bits, which Pillow does not write."""
    height, width = samples.shape
    per_byte = 8 // bits
    padded = np.pad(samples, ((0, 0), (0, -width % per_byte)))
    packed = np.zeros((height, padded.shape[1] // per_byte), np.uint8)
    for i in range(per_byte):
        packed |= padded[:, i::per_byte] << (8 - bits * (i + 1))
    rows = b"".join(b"\0" + row.tobytes() for row in packed)
    return png_file(width, height, bits, rows)


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "YCbCr", "LAB", "P"])
def test_color_becomes_luma(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.png" if mode == "P" else "a.tif")
    image = Image.fromarray(color())
    if mode == "P":
        image = image.quantize(256)
        expected = luma(np.asarray(image.convert("RGB")))
    elif mode == "LAB":
        from PIL import ImageCms

        srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        image = ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB")
        expected = luma(color())
    else:
        image = image.convert(mode)
        expected = luma(color())
    image.save(path)
    agrees(path, expected, within=3 if mode in ("YCbCr", "LAB") else 1)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_jpeg(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.jpg"
    smooth = np.stack([scene(), scene() // 2 + 30, 200 - scene() // 3], -1)
    Image.fromarray(smooth).convert(mode).save(path, quality=95)
    agrees(path, luma(smooth), within=8)
    assert np.abs(read_grey(path) - luma(smooth)).mean() < 1.5


def test_transparent_pixels_become_black(tmp_path: Path) -> None:
    alpha = np.zeros((37, 52), np.uint8)
    alpha[10:, 5:] = 255
    alpha[30:, 30:] = 128
    for mode, expected in (
        ("LA", scene() * (alpha / 255)),
        ("RGBA", luma(color()) * (alpha / 255)),
    ):
        image = Image.fromarray(scene() if mode == "LA" else color())
        image.putalpha(Image.fromarray(alpha))
        assert image.mode == mode
        for suffix in ("png", "tif"):
            path = tmp_path / f"{mode}.{suffix}"
            image.save(path)
            agrees(path, expected, within=1.1)


def test_transparent_palette_and_grey_values(tmp_path: Path) -> None:
    grey = scene() // 2
    grey[:5] = 200
    path = tmp_path / "l.png"
    Image.fromarray(grey).save(path, transparency=200)
    agrees(path, np.where(grey == 200, 0, grey), within=0)
    deep = grey.astype(np.uint16) * 257
    path = tmp_path / "i.png"
    Image.fromarray(deep).save(path, transparency=200 * 257)
    agrees(path, np.where(deep == 200 * 257, 0, deep), dtype=np.uint16, within=0)
    palette = Image.fromarray(grey).convert("P")
    path = tmp_path / "p.png"
    palette.save(path, transparency=200)
    agrees(path, np.where(grey == 200, 0, grey), within=0)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("channels", [3, 4])
def test_deep_color_keeps_16_bits(tmp_path: Path, suffix: str, channels: int) -> None:
    if (suffix, channels) == ("tif", 4):
        pytest.skip("OpenCV writes no 16-bit TIFF with alpha")
    rgba = np.random.default_rng(0).integers(0, 65536, (21, 33, channels)).astype(np.uint16)
    path = tmp_path / f"a.{suffix}"
    swapped = rgba[..., [2, 1, 0, 3][:channels]]
    assert cv2.imwrite(str(path), swapped)
    expected = luma(rgba) * (rgba[..., 3] / 65535 if channels == 4 else 1.0)
    agrees(path, expected, dtype=np.uint16, within=1)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "deflated.tif"])
def test_exif_rotation(tmp_path: Path, turn: int, kind: str) -> None:
    """The uncompressed TIFF is one that Pillow garbles when it maps the file."""
    path = tmp_path / f"a.{kind}"
    exif = Image.Exif()
    exif[0x0112] = turn
    options: dict[str, object] = {"jpg": {"quality": 95}, "deflated.tif": DEFLATE}.get(kind, {})
    stored = scene()
    Image.fromarray(stored).save(path, exif=exif, **options)
    if kind == "jpg":
        stored = np.asarray(Image.open(path))
    upright = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.T,
        6: np.rot90(stored, -1),
        7: stored[::-1, ::-1].T,
        8: np.rot90(stored),
    }
    agrees(path, upright[turn], within=0)


@pytest.mark.parametrize("bits", [8, 16])
def test_white_is_zero_tiff_is_inverted(tmp_path: Path, bits: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    stored = scene() if bits == 8 else scene().astype(np.uint16) * 257
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, stored, photometric="miniswhite")
    agrees(path, (2**bits - 1) - stored.astype(float), dtype=stored.dtype.type, within=0)


def test_big_endian_and_signed_tiff(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    deep = scene().astype(np.uint16) * 200
    tifffile.imwrite(tmp_path / "b.tif", deep, byteorder=">")
    agrees(tmp_path / "b.tif", deep, dtype=np.uint16, within=0)
    tifffile.imwrite(tmp_path / "i.tif", scene().astype(np.int16))
    agrees(tmp_path / "i.tif", scene(), dtype=np.uint16, within=0)
    tifffile.imwrite(tmp_path / "n.tif", scene().astype(np.int16) - 50)
    refused(tmp_path / "n.tif", "-10", "0 to 65535")
    tifffile.imwrite(tmp_path / "f.tif", scene().astype(np.float32))
    refused(tmp_path / "f.tif", "floating point")


def test_several_frames_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(scene()), Image.fromarray(255 - scene())]
    for name in ("a.tif", "a.png"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        refused(tmp_path / name, "2 frames")
        with pytest.raises(BadImage, match="2 frames"):
            check_header(tmp_path / name)


@real
@pytest.mark.real_data
def test_truncated_radiographs() -> None:
    folder = REAL / "truncated"
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert len(rows) == 18
    for row in rows:
        path = folder / row["path"]
        if row["readable"] == "1":
            with Image.open(path) as image:
                expected = np.asarray(image.convert("L"), float)
            agrees(path, expected, within=2)
        else:
            refused(path, "truncated JPEG")


@real
@pytest.mark.real_data
def test_deep_knees_keep_their_intensities() -> None:
    rows = list(csv.DictReader((REAL / "knee" / "manifest.csv").open()))
    deep = [row for row in rows if row["bits"] == "16"]
    assert len(deep) == 69
    for row in deep:
        path = REAL / "knee" / row["path"]
        got = read_grey(path)
        with Image.open(path) as image:
            expected = np.asarray(image)
        assert got.dtype == np.uint16
        assert got.mean() == expected.mean() and np.unique(got).size > 256
