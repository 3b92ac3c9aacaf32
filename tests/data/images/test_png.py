"""Every chunk of the PNG specification: applied, refused by name, or left out on purpose."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.images.decode import check_header, read_grey, stated_bits
from tests.data.images.pictures import refused, scene

HEIGHT, WIDTH = 37, 52
LEVELS = scene(HEIGHT, WIDTH)
DEEP = LEVELS.astype(np.uint16) * 200
GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
COLORS = bytes(value for level in range(255, -1, -1) for value in (level,) * 3)
Chunks = list[tuple[bytes, bytes]]


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def rows(samples: np.ndarray, bits: int) -> bytes:
    """(H, W, ...) samples as rows without filters."""
    flat = samples.reshape(samples.shape[0], -1)
    if bits < 8:
        flat = np.packbits(np.unpackbits(flat[..., None], axis=2)[..., 8 - bits :], axis=None)
        flat = flat.reshape(samples.shape[0], -1)
    return b"".join(b"\0" + row.astype(">u2" if bits == 16 else "u1").tobytes() for row in flat)


def png(
    samples: np.ndarray,
    color: int = GREY,
    bits: int = 8,
    *,
    before: Chunks | None = None,
    behind: Chunks | None = None,
    head: tuple[int, int, int] = (0, 0, 0),
    size: tuple[int, int] | None = None,
    coded: bytes | None = None,
) -> bytes:
    """A PNG with chunks before and behind its pixels; `head`: compression, filters, interlace."""
    height, width = size or samples.shape[:2]
    coded = zlib.compress(rows(samples, bits)) if coded is None else coded
    parts = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color, *head)),
        *(before or []),
        (b"IDAT", coded),
        *(behind or []),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def exif(way: int) -> bytes:
    return b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, way, 0) + bytes(4)


def key(*samples: int) -> Chunks:
    return [(b"tRNS", struct.pack(f">{len(samples)}H", *samples))]


def colored(samples: np.ndarray) -> np.ndarray:
    return np.stack([samples] * 3, -1)


FEW = (LEVELS >> 4)[:, :48]
PAIRS = (LEVELS >> 6)[:, :48]
OPAQUE = np.where(np.arange(WIDTH) < 30, 0, 255).astype(np.uint8) | 0 * LEVELS
DEEP_OPAQUE = OPAQUE.astype(np.uint16) * 257
LINEAR = struct.pack(">I", 100_000)
SCREEN = bytes([1, 13, 0, 1])
# What the file is, and the exact levels.
READ: dict[str, tuple[bytes, np.ndarray]] = {
    "tRNS, grey of 2 bits": (
        png(PAIRS, bits=2, before=key(2)),
        np.where(PAIRS == 2, 0, PAIRS * 85),
    ),
    "tRNS, grey of 4 bits": (png(FEW, bits=4, before=key(9)), np.where(FEW == 9, 0, FEW * 17)),
    "tRNS, high bits that do not count": (
        png(LEVELS, before=key(0x0700 + int(LEVELS[3, 4]))),
        np.where(LEVELS == LEVELS[3, 4], 0, LEVELS),
    ),
    "tRNS, grey of 16 bits": (
        png(DEEP, bits=16, before=key(int(DEEP[3, 4]))),
        np.where(DEEP == DEEP[3, 4], 0, DEEP).astype(np.uint16),
    ),
    "tRNS, colour of 8 bits": (
        png(colored(LEVELS), RGB, before=key(*[int(LEVELS[3, 4])] * 3)),
        np.where(LEVELS == LEVELS[3, 4], 0, LEVELS),
    ),
    "tRNS, colour of 16 bits": (
        png(colored(DEEP), RGB, 16, before=key(*[int(DEEP[3, 4])] * 3)),
        np.where(DEEP == DEEP[3, 4], 0, DEEP).astype(np.uint16),
    ),
    "tRNS, of a palette": (
        png(LEVELS, PALETTE, before=[(b"PLTE", COLORS), (b"tRNS", bytes(60) + b"\xff" * 9)]),
        np.where(LEVELS < 60, 0, 255 - LEVELS),
    ),
    "alpha of 8 bits": (png(np.stack([LEVELS, OPAQUE], -1), GREY_ALPHA), LEVELS & OPAQUE),
    "alpha of 16 bits": (
        png(np.stack([DEEP, DEEP_OPAQUE], -1), GREY_ALPHA, 16),
        DEEP & DEEP_OPAQUE,
    ),
    "colour and alpha of 16 bits": (
        png(np.stack([DEEP] * 3 + [DEEP_OPAQUE], -1), RGB_ALPHA, 16),
        DEEP & DEEP_OPAQUE,
    ),
    "PLTE": (png(LEVELS, PALETTE, before=[(b"PLTE", COLORS)]), 255 - LEVELS),
    "PLTE that only suggests": (
        png(colored(LEVELS), RGB, before=[(b"PLTE", COLORS)]),
        LEVELS,
    ),
    "eXIf before the pixels": (png(LEVELS, before=[(b"eXIf", exif(6))]), np.rot90(LEVELS, -1)),
    "eXIf behind the pixels": (png(LEVELS, behind=[(b"eXIf", exif(6))]), np.rot90(LEVELS, -1)),
    "eXIf that is none": (png(LEVELS, before=[(b"eXIf", b"no such thing")]), LEVELS),
    "eXIf, colour of 16 bits": (
        png(colored(DEEP), RGB, 16, behind=[(b"eXIf", exif(3))]),
        DEEP[::-1, ::-1],
    ),
    "acTL of one picture": (
        png(LEVELS, before=[(b"acTL", struct.pack(">II", 1, 0)), (b"fcTL", bytes(26))]),
        LEVELS,
    ),
    "acTL behind the pixels": (png(LEVELS, behind=[(b"acTL", struct.pack(">II", 5, 0))]), LEVELS),
    # Levels are taken as they are stored, however a screen should show them.
    "gAMA": (png(LEVELS, before=[(b"gAMA", LINEAR)]), LEVELS),
    "gAMA, 16 bits": (png(DEEP, bits=16, before=[(b"gAMA", LINEAR)]), DEEP),
    "cHRM": (png(LEVELS, before=[(b"cHRM", bytes(32))]), LEVELS),
    "sRGB": (png(LEVELS, before=[(b"sRGB", b"\0")]), LEVELS),
    "iCCP": (png(LEVELS, before=[(b"iCCP", b"odd\0\0" + zlib.compress(b"no profile"))]), LEVELS),
    "cICP of a screen": (png(LEVELS, before=[(b"cICP", SCREEN)]), LEVELS),
    "mDCV, cLLI": (png(LEVELS, before=[(b"mDCV", bytes(24)), (b"cLLI", bytes(8))]), LEVELS),
    "sBIT": (png(LEVELS, before=[(b"sBIT", b"\5")]), LEVELS),
    "sBIT, 16 bits": (png(DEEP >> 5, bits=16, before=[(b"sBIT", b"\x0b")]), DEEP >> 5),
    "bKGD": (
        png(np.stack([LEVELS, OPAQUE], -1), GREY_ALPHA, before=[(b"bKGD", b"\0\xff")]),
        LEVELS & OPAQUE,
    ),
    "hIST": (
        png(LEVELS, PALETTE, before=[(b"PLTE", COLORS), (b"hIST", bytes(512))]),
        255 - LEVELS,
    ),
    "pHYs": (png(LEVELS, before=[(b"pHYs", struct.pack(">IIB", 1, 2, 0))]), LEVELS),
    "a long text": (
        png(LEVELS, before=[(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**22)))]),
        LEVELS,
    ),
    "tIME, oFFs": (png(LEVELS, behind=[(b"tIME", bytes(7)), (b"oFFs", bytes(9))]), LEVELS),
    "a few bytes too many": (
        png(LEVELS, coded=zlib.compress(rows(LEVELS, 8) + bytes(9))),
        LEVELS,
    ),
}


@pytest.mark.parametrize("name", READ)
def test_read_exactly(tmp_path: Path, name: str) -> None:
    data, expected = READ[name]
    path = tmp_path / "a.png"
    path.write_bytes(data)
    got = read_grey(path)
    assert got.dtype == (np.uint16 if expected.dtype == np.uint16 else np.uint8)
    assert check_header(path) == expected.shape
    np.testing.assert_array_equal(got, expected)


UNREAD: dict[str, tuple[bytes, str]] = {
    "cICP, linear light": (png(LEVELS, before=[(b"cICP", b"\1\x08\0\1")]), "cICP 01080001"),
    "cICP, PQ": (png(LEVELS, before=[(b"cICP", b"\x09\x10\0\1")]), "cICP 09100001"),
    "cICP, HLG": (png(LEVELS, before=[(b"cICP", b"\x09\x12\0\1")]), "cICP 09120001"),
    "cICP, narrow range": (png(LEVELS, before=[(b"cICP", b"\1\x0d\0\0")]), "cICP 010d0000"),
    "filters of MNG": (png(LEVELS, head=(0, 64, 0)), "filters of MNG"),
    "an unknown critical chunk": (png(LEVELS, before=[(b"ABCD", b"")]), "critical chunk b'ABCD'"),
    "Apple's": (
        b"\x89PNG\r\n\x1a\n" + chunk(b"CgBI", b"\x50\0\x20\2") + png(LEVELS)[8:],
        "CgBI",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_sound_kinds_that_are_not_read_are_named_and_never_called_damaged(
    tmp_path: Path, name: str
) -> None:
    data, words = UNREAD[name]
    (tmp_path / "a.png").write_bytes(data)
    text = str(refused(tmp_path / "a.png", words, "save it again"))
    assert "damaged" not in text and "truncated" not in text


CODED = zlib.compress(rows(LEVELS, 8))
# All with right checksums of their chunks.
WRONG: dict[str, tuple[bytes, str]] = {
    "rows missing": (png(LEVELS[:20], size=LEVELS.shape), "truncated PNG"),
    "rows missing, colour": (png(colored(LEVELS)[:20], RGB, size=LEVELS.shape), "truncated PNG"),
    "rows missing, palette": (
        png(LEVELS[:20], PALETTE, before=[(b"PLTE", COLORS)], size=LEVELS.shape),
        "truncated PNG",
    ),
    "rows missing, 16 bits": (png(DEEP[:20], bits=16, size=LEVELS.shape), "truncated PNG"),
    "rows missing, interlaced": (png(LEVELS, head=(0, 0, 1)), "truncated PNG"),
    "compressed data cut": (png(LEVELS, coded=CODED[: len(CODED) // 2]), "truncated PNG"),
    "no pixels": (png(LEVELS, coded=b""), "truncated PNG"),
    "rows left over": (png(LEVELS, size=(20, WIDTH)), "more rows than 52 x 20"),
    "columns left over": (png(LEVELS, size=(HEIGHT, 20)), "more rows than 20 x 37"),
    "checksum of the pixels": (png(LEVELS, coded=CODED[:-1] + b"\0"), "damaged PNG"),
    "no such filter": (
        png(LEVELS, coded=zlib.compress(b"\x09" + rows(LEVELS, 8)[1:])),
        "damaged PNG",
    ),
    "no such colour type": (png(LEVELS, 1), "colour type 1 of 8 bits"),
    "no such depth": (png(LEVELS, GREY, 3, coded=CODED), "colour type 0 of 3 bits"),
    "no such depth of colour": (png(LEVELS, RGB, 4, coded=CODED), "colour type 2 of 4 bits"),
    "no such interlace": (png(LEVELS, head=(0, 0, 2)), "interlace 2"),
    "no such compression": (png(LEVELS, head=(1, 0, 0)), "compression 1"),
    "no palette": (png(LEVELS, PALETTE), "palette of 0 bytes"),
    "half a colour": (png(LEVELS, PALETTE, before=[(b"PLTE", COLORS[:-1])]), "palette of 767"),
    "a colour too many": (
        png(FEW, PALETTE, 4, before=[(b"PLTE", COLORS[:51])]),
        "palette of 51 bytes for 4 bits",
    ),
    "beyond the palette": (png(LEVELS, PALETTE, before=[(b"PLTE", COLORS[:90])]), "palette of 30"),
    "two palettes": (
        png(LEVELS, PALETTE, before=[(b"PLTE", COLORS), (b"PLTE", COLORS)]),
        "2 chunks PLTE",
    ),
    "half a key": (png(LEVELS, before=[(b"tRNS", b"\0")]), "tRNS) of 1 bytes"),
    "a key of grey in colour": (png(colored(LEVELS), RGB, before=key(9)), "tRNS) of 2 bytes"),
    "orientation": (png(LEVELS, behind=[(b"eXIf", exif(9))]), "orientation 9; allowed: 1 to 8"),
    "frames": (png(LEVELS, before=[(b"acTL", struct.pack(">II", 3, 0))]), "4 frames"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_numbers_and_missing_pixels_are_refused(tmp_path: Path, name: str) -> None:
    data, words = WRONG[name]
    (tmp_path / "a.png").write_bytes(data)
    refused(tmp_path / "a.png", words)


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (37, 52), (64, 9)])
@pytest.mark.parametrize("bits", [1, 8])
def test_interlaced_pictures_of_all_sizes(tmp_path: Path, size: tuple[int, int], bits: int) -> None:
    levels = scene(*size)
    levels = (levels > 99).astype(np.uint8) if bits == 1 else levels
    data = b""
    for x, y, right, down in (
        *((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4)),
        *((0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)),
    ):
        part = levels[y::down, x::right]
        if part.size:
            packed = np.packbits(part, axis=1) if bits == 1 else part
            data += b"".join(b"\0" + row.tobytes() for row in packed)
    path = tmp_path / "a.png"
    path.write_bytes(png(levels, bits=bits, head=(0, 0, 1), coded=zlib.compress(data)))
    np.testing.assert_array_equal(read_grey(path), levels * 255 if bits == 1 else levels)
    if levels.size > 6:
        path.write_bytes(png(levels, bits=bits, head=(0, 0, 1), coded=zlib.compress(data[:-9])))
        refused(path, "truncated PNG")


def test_what_states_a_depth(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for before, bits in (([(b"sBIT", b"\x0b")], 11), ([], None)):
        path.write_bytes(png(DEEP, bits=16, before=before))
        assert stated_bits(path) == bits
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "a.tif", DEEP)
    assert stated_bits(tmp_path / "a.tif") is None
    Image.fromarray(LEVELS).save(tmp_path / "a.jpg")
    assert stated_bits(tmp_path / "a.jpg") is None
