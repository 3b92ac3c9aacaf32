"""JPEG: read where every block is there, whatever the last bytes say; other kinds are named."""

import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.images.decode import check_header, read_grey
from tests.data.images.pictures import refused

HEIGHT, WIDTH = 120, 150
END = b"\xff\xd9"
BASELINE, PROGRESSIVE = b"\xff\xc0", b"\xff\xc2"
Change = Callable[[bytes], bytes]


def busy() -> np.ndarray:
    """Every block has details, so that nothing is left over by chance."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).normal(0, 25, (HEIGHT, WIDTH))
    return np.clip(120 + 60 * np.sin(x / 9) * np.cos(y / 7) + noise, 0, 255).astype(np.uint8)


def coded(mode: str = "L", **options: object) -> bytes:
    stream = BytesIO()
    Image.fromarray(busy()).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


def several() -> bytes:
    """Two pictures in one file, as phones write a preview behind the first."""
    stream = BytesIO()
    first = Image.fromarray(busy())
    first.save(stream, "MPO", save_all=True, append_images=[first.resize((30, 24))])
    return stream.getvalue()


WHOLE = {
    "baseline": coded(),
    "progressive": coded(progressive=True),
    "own tables": coded(optimize=True),
    "restarts by rows": coded(restart_marker_rows=1),
    "restarts by blocks": coded(restart_marker_blocks=3),
    "colour, all of it": coded("RGB", subsampling=0),
    "colour, half": coded("RGB", subsampling=1),
    "colour, a quarter": coded("RGB", subsampling=2),
    "colour, progressive": coded("RGB", progressive=True),
    "colour without a transform": coded("RGB", keep_rgb=True),
    "inks": coded("CMYK"),
}


def segment(marker: int, content: bytes) -> bytes:
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(content) + 2) + content


def after_start(piece: bytes) -> Change:
    return lambda data: data[:2] + piece + data[2:]


def frame_at(data: bytes) -> int:
    return max(data.find(BASELINE), data.find(PROGRESSIVE))


def patched(offset: int, content: bytes) -> Change:
    """Change bytes of the segment that describes the picture, counted from its marker."""

    def change(data: bytes) -> bytes:
        at = frame_at(data) + offset
        return data[:at] + content + data[at + len(content) :]

    return change


def kind(marker: int) -> Change:
    return patched(1, bytes([marker]))


def pixels(data: bytes) -> np.ndarray:
    """What Pillow makes of a file with nothing wrong."""
    with Image.open(BytesIO(data)) as image:
        if image.mode == "RGB":
            image.draft("L", image.size)
        return np.asarray(image.convert("RGB").convert("L") if image.mode == "CMYK" else image)


def scan_at(data: bytes) -> int:
    return data.rfind(b"\xff\xda")


def odd_scan(data: bytes) -> bytes:
    """All zeros where a sequential scan has to say 0, 63, 0."""
    at = scan_at(data) + 5 + 2 * data[scan_at(data) + 4]
    return data[:at] + b"\0\0\0" + data[at + 3 :]


# Sound, though not as one would write it: what libjpeg only warns of.
ODD: dict[str, Change] = {
    "two bytes of padding": lambda data: data[:-2] + b"\0\0" + END,
    "much padding": lambda data: data[:-2] + bytes(500) + END,
    "filled up with FF": lambda data: data[:-2] + b"\xff" * 9 + END,
    "bytes behind the end": lambda data: data + b"and more" + data[:200],
    "an unknown version of JFIF": lambda data: data.replace(b"JFIF\0\1", b"JFIF\0\7", 1),
    "no JFIF": lambda data: data[:2] + data[20:],
    "a long comment": after_start(segment(0xFE, b"\xff\xd9 no end" * 900)),
    "an unknown segment": after_start(segment(0xEB, bytes(99))),
    "a cut Adobe marker": after_start(segment(0xEE, b"Adobe\0\x64\0")),
    "bytes between segments": lambda data: data[:20] + b"??" + data[20:],
    "zeros in its scan's header": odd_scan,
}


@pytest.mark.parametrize("name", WHOLE)
def test_complete_files_are_read_as_before(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(WHOLE[name])
    np.testing.assert_array_equal(read_grey(path), pixels(WHOLE[name]))
    assert check_header(path) == (HEIGHT, WIDTH)


@pytest.mark.parametrize("name", ODD)
def test_odd_but_complete_files_are_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(ODD[name](WHOLE["baseline"]))
    np.testing.assert_array_equal(read_grey(path), pixels(WHOLE["baseline"]))


def test_the_first_picture_of_several_is_read(tmp_path: Path) -> None:
    data, path = several(), tmp_path / "a.jpg"
    path.write_bytes(data)
    assert read_grey(path).shape == (HEIGHT, WIDTH)
    first = data.index(END) + 2
    path.write_bytes(data[: first // 2] + END + data[first:])
    refused(path, "truncated JPEG")


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, None])
@pytest.mark.parametrize("name", WHOLE)
def test_a_cut_file_with_an_end_marker_is_refused(
    tmp_path: Path, name: str, share: float | None
) -> None:
    data, path = WHOLE[name], tmp_path / "a.jpg"
    start = scan_at(data) + 20
    kept = len(data) - 4 if share is None else start + int(share * (len(data) - 2 - start))
    path.write_bytes(data[:kept] + END)
    refused(path, "JPEG")


def without_interval(data: bytes) -> bytes:
    """Lose what is between two restart markers, and the second."""
    first, second = data.index(b"\xff\xd2"), data.index(b"\xff\xd3")
    return data[:first] + data[second:]


def shorter_interval(data: bytes) -> bytes:
    """Lose the second half of what is between two restart markers."""
    first, second = data.index(b"\xff\xd2"), data.index(b"\xff\xd3")
    return data[: (first + second) // 2] + data[second:]


# Of which file, what becomes of it, words of the refusal.
INCOMPLETE: dict[str, tuple[str, Change, str]] = {
    "a taller header": ("baseline", patched(5, b"\x01\0"), "truncated JPEG"),
    "a wider header": ("baseline", patched(7, b"\x01\0"), "truncated JPEG"),
    "a lower header": ("baseline", patched(5, b"\0\x40"), "left over after 150 x 64"),
    "a narrower header": ("baseline", patched(7, b"\0\x40"), "left over after 64 x 120"),
    "a taller header, progressive": ("progressive", patched(5, b"\x01\0"), "truncated JPEG"),
    "a lower header, progressive": ("progressive", patched(5, b"\0\x40"), "damaged JPEG"),
    "the last scan missing": (
        "progressive",
        lambda data: data[: scan_at(data)] + END,
        "stop before the finest",
    ),
    "the last scan missing, colour": (
        "colour, progressive",
        lambda data: data[: scan_at(data)] + END,
        "stop before the finest",
    ),
    "an interval missing": ("restarts by rows", without_interval, "damaged JPEG"),
    "half an interval": ("restarts by rows", shorter_interval, "truncated JPEG"),
    "no scan": (
        "baseline",
        lambda data: data[: scan_at(data)] + END,
        "JPEG",
    ),
    "no picture": ("baseline", lambda data: data[: frame_at(data)] + END, "damaged JPEG"),
    "no code of that kind": (
        "baseline",
        lambda data: data[:-900] + b"\xff\0" * 400 + data[-100:],
        "JPEG",
    ),
}


@pytest.mark.parametrize("name", INCOMPLETE)
def test_missing_and_left_over_blocks_are_refused(tmp_path: Path, name: str) -> None:
    source, change, words = INCOMPLETE[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(change(WHOLE[source]))
    refused(path, words)


def two_components(data: bytes) -> bytes:
    at = frame_at(data)
    return data[:at] + segment(0xC0, data[at + 4 : at + 9] + b"\x02" + bytes(6)) + data[at + 13 :]


ADOBE = b"Adobe\0\x64\0\0\0\0"
# Of which file, what becomes of it, words that name the kind.
UNREAD: dict[str, tuple[str, Change, str]] = {
    "12 bits": ("baseline", patched(4, b"\x0c"), "12 bits a sample"),
    "height behind the picture": ("baseline", patched(5, b"\0\0"), "height only behind"),
    "arithmetic": ("baseline", kind(0xC9), "arithmetic-coded"),
    "arithmetic, progressive": ("progressive", kind(0xCA), "arithmetic-coded"),
    "arithmetic, lossless": ("baseline", kind(0xCB), "arithmetic-coded lossless"),
    "differential": ("baseline", kind(0xC5), "hierarchical"),
    "differential, progressive": ("baseline", kind(0xC6), "hierarchical"),
    "differential, lossless": ("baseline", kind(0xC7), "hierarchical"),
    "differential, arithmetic": ("baseline", kind(0xCD), "hierarchical"),
    "JPEG-LS": ("baseline", kind(0xF7), "JPEG-LS"),
    "JPEG-LS whose data looks like a marker": (
        "baseline",
        lambda data: kind(0xF7)(data)[:-900] + b"\xff\x7d" * 9 + data[-2:],
        "JPEG-LS",
    ),
    "lossless, colour": ("colour, all of it", kind(0xC3), "lossless JPEG in colour"),
    "two components": ("baseline", two_components, "2 components"),
    "inks that nobody explains": (
        "inks",
        lambda data: data.replace(b"Adobe", b"Bdobe", 1),
        "4 components with Adobe transform none",
    ),
    "inks of an unknown transform": (
        "inks",
        lambda data: data[: data.index(b"Adobe") + 11] + b"\7" + data[data.index(b"Adobe") + 12 :],
        "Adobe transform 7",
    ),
    "colour of an unknown transform": (
        "colour, half",
        after_start(segment(0xEE, ADOBE + b"\2")),
        "Adobe transform 2",
    ),
    "colour of two kinds": (
        "colour, half",
        after_start(segment(0xEE, ADOBE + b"\0")),
        "YCbCr by its JFIF and RGB by its Adobe",
    ),
}


@pytest.mark.parametrize("name", UNREAD)
def test_sound_kinds_that_are_not_read_are_named_and_never_called_damaged(
    tmp_path: Path, name: str
) -> None:
    source, change, words = UNREAD[name]
    path = tmp_path / "a.jpg"
    path.write_bytes(change(WHOLE[source]))
    text = str(refused(path, words, "8 or 16-bit grey"))
    assert "damaged" not in text and "truncated" not in text


def lossless(levels: np.ndarray) -> bytes:
    """Differences to the left neighbour, each as its length in 5 bits and its digits."""
    bits = ""
    for y, row in enumerate(levels.astype(int)):
        before = [levels[y - 1, 0] if y else 128, *row[:-1]]
        for difference in (row - before).tolist():
            length = abs(difference).bit_length()
            digits = difference if difference > 0 else difference + (1 << length) - 1
            bits += f"{length:05b}" + (f"{digits:0{length}b}" if length else "")
    bits += "1" * (-len(bits) % 8)
    data = bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    frame = struct.pack(">BHHB", 8, *levels.shape, 1) + b"\x01\x11\0"
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    start = segment(0xC3, frame) + segment(0xC4, table) + segment(0xDA, b"\x01\x01\0\x01\0\0")
    return b"\xff\xd8" + start + data.replace(b"\xff", b"\xff\0") + END


def test_lossless_is_exact_and_complete(tmp_path: Path) -> None:
    data, path = lossless(busy()), tmp_path / "a.jpg"
    path.write_bytes(data)
    np.testing.assert_array_equal(read_grey(path), busy())
    path.write_bytes(data[: len(data) // 2] + END)
    refused(path, "truncated JPEG")


def with_exif(kind: int, raw: bytes) -> Change:
    """With an orientation of some type of TIFF, in four bytes."""
    entry = struct.pack("<HHI", 0x0112, kind, 1) + raw.ljust(4, b"\0")
    content = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4)
    return after_start(segment(0xE1, content))


@pytest.mark.parametrize(
    ("kind", "raw", "words"),
    [
        (3, b"\x09\0", "orientation 9"),
        (3, b"\x2c\1", "orientation 300"),
        (8, b"\xff\xff", "orientation -1"),
        (11, struct.pack("<f", 6.5), "orientation 6.5"),
        (2, b"6", "orientation 6"),
    ],
)
def test_orientations_that_do_not_exist_are_refused(
    tmp_path: Path, kind: int, raw: bytes, words: str
) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(kind, raw)(WHOLE["baseline"]))
    refused(tmp_path / "a.jpg", words, "allowed: 1 to 8")


@pytest.mark.parametrize(("kind", "turned"), [(3, True), (4, True), (99, False)])
def test_orientations_of_any_whole_type(tmp_path: Path, kind: int, turned: bool) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(kind, b"\x08\0")(WHOLE["baseline"]))
    upright = pixels(WHOLE["baseline"])
    expected = np.rot90(upright) if turned else upright
    np.testing.assert_array_equal(read_grey(tmp_path / "a.jpg"), expected)


def test_orientation_0_is_what_cameras_write_that_do_not_know(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(with_exif(3, b"\0\0")(WHOLE["baseline"]))
    np.testing.assert_array_equal(read_grey(tmp_path / "a.jpg"), pixels(WHOLE["baseline"]))
