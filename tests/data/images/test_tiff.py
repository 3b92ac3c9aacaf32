"""Every tag of TIFF 6.0 that says how to read samples: applied exactly, or refused by name."""

import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from selftaught.data.images.decode import check_header, read_grey
from tests.data.images.pictures import refused, scene, tiff_file

tifffile = pytest.importorskip("tifffile")
HEIGHT, WIDTH = 37, 52
DEEP = (np.arange(HEIGHT * WIDTH, dtype=np.uint32).reshape(HEIGHT, WIDTH) * 34).astype(np.uint16)
HALF = np.full_like(DEEP, 32768)
HALVED = np.rint(DEEP * np.float32(32768 / 65535)).astype(np.uint16)
OPAQUE = np.where(np.arange(WIDTH) < 30, np.uint16(0), np.uint16(65535)) | 0 * DEEP
RGB = np.stack([DEEP] * 3)
NO_ALPHA, ASSOCIATED, ALPHA = "unspecified", "assocalpha", "unassalpha"
Make = Callable[[Path], object]


def written(samples: np.ndarray, **options: object) -> Make:
    return lambda path: tifffile.imwrite(path, samples, **options)


def planar(**options: object) -> Make:
    return written(RGB, photometric="rgb", planarconfig="separate", **options)


def tagged(
    samples: np.ndarray | bytes, tags: dict, order: str = "<", width: int = WIDTH, pages: int = 1
) -> Make:
    data = samples if isinstance(samples, bytes) else samples.tobytes()
    content = tiff_file(data, width, HEIGHT, tags, order=order, pages=pages)
    return lambda path: path.write_bytes(content)


def strip_of(samples: np.ndarray, compression: str) -> bytes:
    """One strip of (H, W) uint16, compressed by Pillow."""
    stream = BytesIO()
    Image.fromarray(samples).save(stream, "TIFF", compression=compression)
    stream.seek(0)
    page = tifffile.TiffFile(stream).pages[0]
    assert len(page.dataoffsets) == 1
    start = page.dataoffsets[0]
    return stream.getvalue()[start : start + page.databytecounts[0]]


def lzw_planes() -> Make:
    """Differences of neighbours, in three planes of one strip."""
    steps = np.diff(DEEP, axis=1, prepend=np.zeros((HEIGHT, 1), np.uint16))
    strip = strip_of(steps, "tiff_lzw")
    starts = tuple(8 + i * len(strip) for i in range(3))
    tags = {258: (16,) * 3, 259: 5, 262: 2, 273: starts, 277: 3, 279: (len(strip),) * 3}
    return tagged(strip * 3, {**tags, 284: 2, 317: 2})


def lzw_with_alpha() -> Make:
    pairs = np.stack([DEEP, HALF], -1).reshape(HEIGHT, -1)
    return tagged(strip_of(pairs, "tiff_lzw"), {258: (16, 16), 259: 5, 277: 2, 338: 2})


def interleaved(tags: dict, compression: str = "raw") -> Make:
    """Colour of 16 bits in one strip."""
    wide = np.stack([DEEP] * 3, -1).reshape(HEIGHT, -1)
    return tagged(strip_of(wide, compression), {258: (16,) * 3, 262: 2, 277: 3, **tags})


def opencv_color() -> Make:
    """LZW of differences, interleaved; in strips of a few rows."""
    return lambda path: cv2.imwrite(str(path), np.stack([DEEP] * 3, -1))


def reversed_bits(data: bytes) -> bytes:
    return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data)


def with_copy(first: bool) -> Make:
    """The picture and a reduced copy of it."""

    def make(path: Path) -> None:
        with tifffile.TiffWriter(path) as out:
            for small in (first, not first):
                picture = DEEP[::2, ::2] if small else DEEP
                out.write(picture, subfiletype=int(small), metadata=None)

    return make


def packed12(order: str) -> Make:
    low = (DEEP >> 4).reshape(-1, 2).astype(np.uint32)
    triple = low[:, 0] << 12 | low[:, 1]
    data = b"".join(int(value).to_bytes(3, "big") for value in triple)
    return tagged(data, {258: 12}, order)


GREY = scene(HEIGHT, WIDTH)
COLORS = tuple(range(255, -1, -1)) * 3
BITS = np.packbits(GREY > 99, axis=1)
BLACK_AND_WHITE = np.where(GREY > 99, 255, 0).astype(np.uint8)
STRIPS = tuple(8 + top * WIDTH for top in range(0, HEIGHT, 5))
COUNTS = (*(5 * WIDTH,) * 7, 2 * WIDTH)
DEEP_STRIPS = {258: 16, 273: tuple(2 * start - 8 for start in STRIPS), 278: 5, 279: (0,) * 8}
DENSITIES = tuple(range(255, -1, -1))

READ: dict[str, tuple[Make, np.ndarray]] = {
    "planes, strips of 5 rows": (planar(rowsperstrip=5), DEEP),
    "planes, differences": (planar(compression="zlib", predictor=True), DEEP),
    "planes, big-endian tiles": (planar(tile=(16, 32), byteorder=">"), DEEP),
    "planes, BigTIFF": (planar(bigtiff=True), DEEP),
    "planes, turned": (
        planar(extratags=[(274, "H", 1, 6, True)]),
        np.rot90(DEEP, -1),
    ),
    "planes, LZW of differences": (lzw_planes(), DEEP),
    "interleaved, LZW of differences": (opencv_color(), DEEP),
    "interleaved, Zstandard": (interleaved({259: 50000}, "zstd"), DEEP),
    "interleaved, differences of what is not compressed": (interleaved({317: 2}), DEEP),
    "a plane of one": (tagged(DEEP, {258: 16, 284: 2}), DEEP),
    "planes of 8 bits, of which alpha is a part": (
        written(
            np.stack([GREY] * 3 + [GREY | 255]),
            photometric="rgb",
            planarconfig="separate",
            extrasamples=[ASSOCIATED],
        ),
        GREY,
    ),
    "interleaved, deflate of differences": (
        written(np.stack([DEEP] * 3, -1), photometric="rgb", compression="zlib", predictor=True),
        DEEP,
    ),
    "grey and alpha, LZW": (lzw_with_alpha(), HALVED),
    "grey and alpha": (
        written(np.stack([DEEP, HALF], -1), photometric="minisblack", extrasamples=[ALPHA]),
        HALVED,
    ),
    "grey of which alpha is a part": (
        written(np.stack([DEEP, HALF], -1), photometric="minisblack", extrasamples=[ASSOCIATED]),
        DEEP,
    ),
    "colour, something, alpha": (
        written(
            np.stack([DEEP] * 3 + [0 * DEEP, OPAQUE], -1),
            photometric="rgb",
            extrasamples=[NO_ALPHA, ALPHA],
        ),
        DEEP & OPAQUE,
    ),
    "8 bits, something, alpha": (
        written(
            np.stack([GREY, 0 * GREY, GREY | 255], -1),
            photometric="minisblack",
            planarconfig="contig",
            extrasamples=[NO_ALPHA, ALPHA],
        ),
        GREY,
    ),
    "negative, big-endian": (written(DEEP, photometric="miniswhite", byteorder=">"), 65535 - DEEP),
    "negative, tiles": (written(DEEP, photometric="miniswhite", tile=(16, 16)), 65535 - DEEP),
    "negative, 32 bits": (
        tagged(DEEP.astype(np.uint32) + (2**32 - 65536), {258: 32, 262: 0}),
        65535 - DEEP,
    ),
    "32 bits, big-endian": (written(DEEP.astype(np.uint32), byteorder=">"), DEEP),
    "64 bits": (written(DEEP.astype(np.uint64)), DEEP),
    "signed 8 bits, none negative": (written((GREY // 2).astype(np.int8)), GREY // 2),
    "signed 16 bits, none negative": (written((DEEP // 2).astype(np.int16)), DEEP // 2),
    "signed 16 bits, big-endian deflate": (
        written((DEEP // 2).astype(">i2"), byteorder=">", compression="zlib"),
        DEEP // 2,
    ),
    "signed 16 bits, a plane of one": (
        tagged(DEEP // 2, {258: 16, 284: 2, 339: 2}),
        DEEP // 2,
    ),
    "subsampling of no chroma": (interleaved({530: (2, 2)}), DEEP),
    "12 bits": (packed12("<"), DEEP >> 4),
    "colours of 8 bits": (tagged(GREY, {262: 3, 320: COLORS}), 255 - GREY),
    "colours of 16 bits": (
        tagged(GREY, {262: 3, 320: tuple(value * 257 for value in COLORS)}),
        255 - GREY,
    ),
    "bits from the right, 1": (
        tagged(reversed_bits(BITS.tobytes()), {258: 1, 266: 2}),
        BLACK_AND_WHITE,
    ),
    "bits from the right, 8": (tagged(reversed_bits(GREY.tobytes()), {266: 2}), GREY),
    "bits from the right, 16": (tagged(reversed_bits(DEEP.tobytes()), {258: 16, 266: 2}), DEEP),
    "lengths not known": (tagged(GREY, {279: 0}), GREY),
    "lengths not stated": (tagged(GREY, {279: None}), GREY),
    "lengths of strips not known": (tagged(DEEP, DEEP_STRIPS), DEEP),
    "lengths of strips not known, negative": (
        tagged(DEEP.byteswap(), {**DEEP_STRIPS, 262: 0}, ">"),
        65535 - DEEP,
    ),
    "lengths of strips not stated": (tagged(GREY, {273: STRIPS, 278: 5, 279: None}), GREY),
    "rows not stated": (tagged(GREY, {278: None}), GREY),
    "rows without end": (tagged(GREY, {278: 2**32 - 1}), GREY),
    "strips of 5 rows": (tagged(GREY, {273: STRIPS, 278: 5, 279: COUNTS}), GREY),
    "and a reduced copy": (with_copy(first=False), DEEP),
    "after a reduced copy": (with_copy(first=True), DEEP),
    # What says how to show, print or measure samples does not change them.
    "least and most": (tagged(GREY, {280: 90, 281: 100}), GREY),
    "least and most of any format": (tagged(GREY, {340: 90, 341: 100}), GREY),
    "densities": (tagged(GREY, {290: 3, 291: DENSITIES}), GREY),
    "transfer function": (tagged(GREY, {301: tuple(range(0, 65536, 256))}), GREY),
    "a unit of millimetres": (tagged(GREY, {296: 4}), GREY),
    "halftone hints": (tagged(GREY, {321: (200, 20)}), GREY),
    "threshholding": (tagged(GREY, {263: 2}), GREY),
}


@pytest.mark.parametrize("name", READ)
def test_read_exactly(tmp_path: Path, name: str) -> None:
    make, expected = READ[name]
    make(tmp_path / "a.tif")
    got = read_grey(tmp_path / "a.tif")
    assert got.dtype == (np.uint8 if expected.dtype == np.uint8 else np.uint16)
    assert got.shape == expected.shape == check_header(tmp_path / "a.tif")
    np.testing.assert_array_equal(got, expected)


def float_planes(path: Path) -> None:
    tifffile.imwrite(path, RGB.astype(np.float32), photometric="rgb", planarconfig="separate")


def mask_beside(path: Path) -> None:
    with tifffile.TiffWriter(path) as out:
        out.write(GREY, metadata=None)
        out.write(GREY > 99, subfiletype=4, photometric="mask", metadata=None)


def hidden_stack(path: Path) -> None:
    """Five frames behind the tags of one, as ImageJ writes what is too large for TIFF."""
    text = "ImageJ=1.54f\nimages=5\nslices=5\n"
    tifffile.imwrite(path, GREY, description=text, metadata=None)


# Sound, each of a kind that is not read: words that name the kind.
UNREAD: dict[str, tuple[Make, str]] = {
    "float16": (written(DEEP.astype(np.float16)), "16 bits, floating point"),
    "float24": (tagged(bytes(3 * DEEP.size), {258: 24, 339: 3}), "24 bits, floating point"),
    "float64": (written(DEEP.astype(np.float64)), "64 bits, floating point"),
    "float planes": (float_planes, "32 bits, floating point"),
    "complex": (written(DEEP.astype(np.complex64)), "complex"),
    "complex integers": (tagged(bytes(4 * DEEP.size), {258: 32, 339: 5}), "complex"),
    "undefined": (tagged(GREY, {339: 4}), "undefined samples"),
    "unknown format": (tagged(GREY, {339: 7}), "SampleFormat 7"),
    "mixed formats": (
        tagged(np.stack([GREY] * 2, -1), {258: (8, 8), 277: 2, 338: 0, 339: (1, 2)}),
        "tags of an unusual form",
    ),
    "5, 6, 5 bits": (tagged(DEEP, {258: (5, 6, 5), 262: 2, 277: 3}), "(5, 6, 5) bits"),
    "3 bits": (tagged(DEEP, {258: 3}), "1 x 3 bits"),
    "10 bits": (tagged(DEEP, {258: 10}), "1 x 10 bits"),
    "12 bits, big-endian": (packed12(">"), "1 x 12 bits"),
    "14 bits": (tagged(DEEP, {258: 14}), "1 x 14 bits"),
    "palette of 16 bits": (tagged(DEEP, {258: 16, 262: 3, 320: (0,) * 3 * 65536}), "PALETTE"),
    "mask": (tagged(BITS, {258: 1, 262: 4}), "MASK"),
    "colour filters": (tagged(DEEP, {258: 16, 262: 32803}), "CFA"),
    "linear raw": (tagged(DEEP, {258: 16, 262: 34892}), "LINEAR_RAW"),
    "logarithms": (tagged(DEEP, {258: 16, 262: 32844}), "LOGL"),
    "no photometric": (tagged(DEEP, {258: 16, 262: None}), "whether 0 is black or white"),
    "CMYK of 16 bits": (written(np.stack([DEEP] * 4, -1), photometric="separated"), "4 x 16 bits"),
    "other inks": (
        tagged(np.stack([GREY] * 4, -1), {258: (8,) * 4, 262: 5, 277: 4, 332: 2}),
        "InkSet 2",
    ),
    "two alphas": (
        tagged(np.stack([GREY] * 3, -1), {258: (8,) * 3, 277: 3, 338: (2, 2)}),
        "ExtraSamples",
    ),
    "one sample of RGB": (tagged(DEEP, {258: (16,) * 3, 262: 2, 277: None}), "1 samples a pixel"),
    "200 samples": (tagged(bytes(200 * 8), {258: 8, 277: 200}), "200 samples a pixel"),
    "floating point predictor": (tagged(GREY, {317: 3}), "Predictor FLOATINGPOINT"),
    "JPEG 2000": (tagged(GREY, {259: 34712}), "Compression JPEG2000"),
    "WebP": (tagged(GREY, {259: 50001}), "Compression WEBP"),
    "tiles listed as strips": (tagged(GREY, {322: WIDTH, 323: HEIGHT + 3}), "tiles as strips"),
    "JPEG XL": (tagged(GREY, {259: 50002}), "Compression JPEGXL"),
    "unknown compression": (tagged(GREY, {259: 12345}), "Compression 12345"),
    "indexed": (tagged(GREY, {346: 1}), "Indexed 1"),
    "proxy": (tagged(GREY, {351: 1}), "OPIProxy 1"),
    "square roots": (tagged(GREY, {33445: 2}), "MDFileTag 2"),
    "decode table": (tagged(GREY, {433: (0, 1)}), "Decode table"),
    "densities the other way": (tagged(GREY, {291: DENSITIES[::-1]}), "GrayResponseCurve"),
    "a mask beside it": (mask_beside, "transparency mask"),
    "a reduced copy alone": (tagged(GREY, {254: 1}), "only a reduced copy"),
    "high definition luma": (
        tagged(
            np.stack([GREY] * 3, -1),
            {258: (8,) * 3, 262: 6, 277: 3, 530: (1, 1)},
        ),
        "YCbCrCoefficients",
    ),
    "narrow range": (
        tagged(np.stack([GREY] * 3, -1), {258: (8,) * 3, 262: 6, 277: 3, 530: (1, 1)}),
        "ReferenceBlackWhite",
    ),
}
FRACTIONS = {
    "high definition luma": (529, (2126, 10000, 7152, 10000, 722, 10000)),
    "narrow range": (532, (16, 1, 235, 1, 128, 1, 240, 1, 128, 1, 240, 1)),
}


def as_fractions(path: Path, code: int, numbers: tuple[int, ...]) -> None:
    """Add a tag of fractions to a file of one page."""
    samples = np.stack([GREY] * 3, -1)
    tag = (code, "2I", len(numbers) // 2, numbers, True)
    more = [(530, "H", 2, (1, 1), True), tag]
    tifffile.imwrite(path, samples, photometric="rgb", extratags=more, metadata=None)
    with tifffile.TiffFile(path, mode="r+") as opened:
        opened.pages[0].tags["PhotometricInterpretation"].overwrite(6)


@pytest.mark.parametrize("name", UNREAD)
def test_sound_kinds_that_are_not_read_are_named_and_never_called_damaged(
    tmp_path: Path, name: str
) -> None:
    make, words = UNREAD[name]
    path = tmp_path / "a.tif"
    as_fractions(path, *FRACTIONS[name]) if name in FRACTIONS else make(path)
    text = str(refused(path, words, "save it again as", "8 or 16-bit grey"))
    assert "damaged" not in text and "truncated" not in text


# Numbers that do not exist, frames, and pixels that are not there.
WRONG: dict[str, tuple[Make, tuple[str, ...]]] = {
    "orientation": (tagged(GREY, {274: 9}), ("Orientation 9", "allowed: 0, 1")),
    "fill order": (tagged(GREY, {266: 3}), ("FillOrder 3", "allowed: 1, 2")),
    "planes": (tagged(GREY, {284: 3}), ("PlanarConfiguration 3", "allowed: 1, 2")),
    "no rows": (tagged(GREY, {278: 0}), ("RowsPerStrip 0",)),
    "no pixels": (tagged(GREY, {}, width=0), ("at least 1 x 1",)),
    "negative 8 bits": (written(GREY.astype(np.int8) | -128), ("from -128", "0 to 65535")),
    "negative planes": (
        written((RGB // 2).astype(np.int16) - 9, photometric="rgb", planarconfig="separate"),
        ("from -9", "0 to 65535"),
    ),
    "negative, LZW": (
        interleaved({259: 5, 339: 2}, "tiff_lzw"),
        ("has samples from -", "0 to 65535"),
    ),
    "beyond 16 bits": (written(DEEP.astype(np.uint32) * 9), ("0 to 65535",)),
    "two pages": (tagged(GREY, {}, pages=2), ("2 frames",)),
    "hidden stack": (hidden_stack, ("5 frames",)),
    "depth": (tagged(GREY, {32997: 3}), ("3 frames",)),
    "a strip of too few bytes": (tagged(GREY, {279: GREY.size - 1}), ("truncated TIFF",)),
    "a strip beyond the end": (tagged(GREY, {273: 9000}), ("truncated TIFF",)),
    "a strip of nothing": (tagged(GREY, {259: 8, 279: 0}), ("truncated TIFF",)),
    "sparse": (tagged(GREY, {273: 0, 279: 0}), ("leaves out strips", "save it again whole")),
    "few bytes, subsampling of no chroma": (
        tagged(GREY, {279: GREY.size - 1, 530: (2, 2)}),
        ("truncated TIFF",),
    ),
    "too few strips": (tagged(GREY, {278: 5}), ("1 of its 8 strips",)),
    "half of what is compressed": (
        tagged(zlib.compress(GREY[:20].tobytes()), {259: 8}),
        ("TIFF",),
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_and_missing_pixels_are_refused(tmp_path: Path, name: str) -> None:
    make, words = WRONG[name]
    make(tmp_path / "a.tif")
    refused(tmp_path / "a.tif", *words)


@pytest.mark.parametrize("compression", ["group3", "group4", "jpeg", "packbits", "zstd"])
def test_a_strip_that_ends_early_is_refused(tmp_path: Path, compression: str) -> None:
    """Its length is halved, its bytes stay; libtiff alone fills up fax and JPEG in silence."""
    path = tmp_path / "a.tif"
    fax = compression.startswith("group")
    picture = np.random.default_rng(0).integers(0, 255, (64, 64)).astype(np.uint8)
    Image.fromarray(picture > 128 if fax else picture).save(path, compression=compression)
    whole = read_grey(path)
    if compression != "jpeg":
        expected = np.where(picture > 128, 255, 0) if fax else picture
        np.testing.assert_array_equal(whole, expected)
    with tifffile.TiffFile(path, mode="r+") as opened:
        (length,) = opened.pages[0].databytecounts
        if compression == "jpeg":
            start = opened.pages[0].dataoffsets[0]
            opened.filehandle.seek(start + length // 2 - 2)
            opened.filehandle.write(b"\xff\xd9")
        opened.pages[0].tags["StripByteCounts"].overwrite(length // 2)
    refused(path, "truncated" if fax or compression == "jpeg" else "TIFF")
