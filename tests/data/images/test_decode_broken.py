"""read_grey and check_header: every kind of bad file."""

import errno
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selftaught.data.images.decode import BadImage, check_header, read_grey
from selftaught.data.images.limits import MAX_PIXELS
from selftaught.errors import InputError, MachineError
from tests.data.images.measure import growth
from tests.data.images.pictures import color, png_file, refused, scene


@pytest.mark.parametrize("bits", [8, 16])
def test_png_cut_anywhere_is_refused(tmp_path: Path, bits: int) -> None:
    """Pillow alone accepts the loss of the last 20 bytes."""
    path = tmp_path / "a.png"
    Image.fromarray(scene() if bits == 8 else scene().astype(np.uint16) * 257).save(path)
    data = path.read_bytes()
    for cut in (*range(1, 40), len(data) // 2, len(data) - 50, len(data) - 9):
        path.write_bytes(data[:-cut])
        refused(path, "truncated")


def test_png_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene()).save(path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in rng.integers(8, len(data), 60).tolist():
        flipped = bytearray(data)
        flipped[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        refused(path)


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_cut_anywhere_is_refused(tmp_path: Path, progressive: bool) -> None:
    path = tmp_path / "a.jpg"
    Image.fromarray(color()).save(path, progressive=progressive)
    data = path.read_bytes()
    for cut in (*range(1, 40), 100, len(data) // 2, len(data) - 10):
        path.write_bytes(data[:-cut])
        refused(path)


def test_tiff_cut_in_its_pixels_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    for compression in (None, "tiff_lzw", "tiff_adobe_deflate"):
        Image.fromarray(scene()).save(path, compression=compression)
        data = path.read_bytes()
        for cut in (50, 200, len(data) // 2):
            path.write_bytes(data[:-cut])
            refused(path)


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "0 bytes")
    (tmp_path / "text.png").write_text("not an image\n" * 50)
    refused(tmp_path / "text.png", "PNG, JPEG, TIFF or DICOM")
    refused(tmp_path / "missing.png", "is missing")
    refused(tmp_path, "not a regular file")
    refused(tmp_path / "text.png" / "below.png", "cannot be opened")
    refused("a\0b.png", "not a valid file name")
    (tmp_path / "start.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    refused(tmp_path / "start.png", "PNG")
    (tmp_path / "start.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    refused(tmp_path / "start.jpg", "JPEG")
    (tmp_path / "two\nlines.png").write_text("x")
    with pytest.raises(BadImage) as caught:
        read_grey(tmp_path / "two\nlines.png")
    assert "\n" not in str(caught.value)


def test_a_wrong_suffix_is_named(tmp_path: Path) -> None:
    Image.fromarray(scene()).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    refused(tmp_path / "a.jpg", "holds PNG", ".jpg", "allowed: .png")
    (tmp_path / "a.jpg").rename(tmp_path / "a")
    refused(tmp_path / "a", "without a suffix")
    Image.fromarray(scene()).save(tmp_path / "b.gif")
    refused(tmp_path / "b.gif", "allowed: 8/16-bit PNG")


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "not a regular file")


def test_sizes_at_the_cap(tmp_path: Path) -> None:
    side = int(MAX_PIXELS**0.5)
    path = tmp_path / "a.png"
    path.write_bytes(png_file(side, side, 1, b""))
    assert check_header(path) == (side, side)
    path.write_bytes(png_file(side, side + 1, 1, b""))
    with pytest.raises(BadImage, match="8192 x 8193 pixels .64 Mpx.; allowed up to 64 Mpx"):
        check_header(path)
    path.write_bytes(png_file(0, 5, 1, b""))
    refused(path)
    path.write_bytes(png_file(65535, 65535, 8, b""))
    refused(path, "allowed up to 64 Mpx")


def test_a_one_bit_bomb_is_refused_before_memory_grows(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_file(13_000, 13_000, 1, bytes(13_000 * (1 + 13_000 // 8))))
    assert path.stat().st_size < 30_000
    lines, grown = growth(path)
    assert len(lines) == 2 and all("13000 x 13000" in line for line in lines)
    assert grown < 100


def test_a_tiff_bomb_is_refused_before_memory_grows(tmp_path: Path) -> None:
    path = tmp_path / "bomb.tif"
    Image.new("1", (9_000, 9_000)).save(path, compression="group4")
    lines, grown = growth(path)
    assert len(lines) == 2 and all("9000 x 9000" in line for line in lines)
    assert grown < 100


def test_bad_image_is_an_input_error_that_names_file_and_reason() -> None:
    error = BadImage("folder/a.png", "is\nempty")
    assert isinstance(error, InputError)
    assert (error.path, error.reason) == (Path("folder/a.png"), "is empty")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.path) == ("folder/a.png: is empty", error.path)


def test_an_unreadable_disk_is_the_machines_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(scene()).save(path)

    def fail(self: Path) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(MachineError, match=r"a\.png: cannot be read: Input/output error"):
        read_grey(path)
