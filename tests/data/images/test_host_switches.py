"""No switch of the process or its environment changes what a file is."""

import os
import subprocess
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from selftaught.data.images.decode import BadImage, check_header, read_grey
from tests.data.images.pictures import color, refused, scene, tiff_file
from tests.data.images.test_jpeg import WHOLE, segment
from tests.data.images.test_png import COLORS, PALETTE, png

GREY, DEEP = scene(), scene().astype(np.uint16) * 200


def saved(kind: str, image: np.ndarray | Image.Image, **options: object) -> bytes:
    stream = BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def colors_of_tiff(data: bytes) -> bytes:
    """With a tag that holds more than it should: Pillow warns."""
    return tiff_file(data, GREY.shape[1], GREY.shape[0], {305: (7, 7), 320: (0,) * 9, 296: 1})


FILES: dict[str, bytes] = {
    "grey.png": saved("PNG", GREY),
    "deep.png": saved("PNG", DEEP),
    "color.png": saved("PNG", color()),
    "palette.png": saved("PNG", Image.fromarray(color()).quantize(99), transparency=bytes(99)),
    "grey.jpg": WHOLE["baseline"],
    "color.jpg": WHOLE["colour, half"],
    # An index of several pictures that is none: Pillow warns.
    "index.jpg": WHOLE["baseline"][:2] + segment(0xE2, b"MPF\0junk") + WHOLE["baseline"][2:],
    "grey.tif": saved("TIFF", GREY),
    "lzw.tif": saved("TIFF", DEEP, compression="tiff_lzw"),
    "odd.tif": colors_of_tiff(GREY.tobytes()),
}
CUT: dict[str, bytes] = {
    "cut.jpg": WHOLE["baseline"][:4000],
    "end.jpg": WHOLE["baseline"][:4000] + b"\xff\xd9",
    "rows.png": png(GREY[:20], size=GREY.shape),
    "palette.png": png(GREY[:20], PALETTE, before=[(b"PLTE", COLORS)], size=GREY.shape),
    "cut.png": FILES["grey.png"][:-30],
    "checksum.png": FILES["grey.png"][:60] + b"\0" + FILES["grey.png"][61:],
    "cut.tif": tiff_file(GREY.tobytes(), 52, 37, {273: 4000}),
    "short.tif": tiff_file(zlib.compress(GREY[:9].tobytes()), 52, 37, {259: 8}),
}
SWITCHES: dict[str, tuple[object, str, object]] = {
    "no truncation": (ImageFile, "LOAD_TRUNCATED_IMAGES", True),
    "least size": (Image, "MAX_IMAGE_PIXELS", 9),
    "no size": (Image, "MAX_IMAGE_PIXELS", None),
    "short texts": (PngImagePlugin, "MAX_TEXT_CHUNK", 1),
    "small blocks": (ImageFile, "MAXBLOCK", 99),
    "libtiff": (TiffImagePlugin, "READ_LIBTIFF", True),
}


def answers(folder: Path) -> dict[str, object]:
    """What every file gives: its levels, or its refusal."""
    given: dict[str, object] = {}
    for name, data in {**FILES, **{f"broken {name}": data for name, data in CUT.items()}}.items():
        (folder / name).write_bytes(data)
        try:
            levels = read_grey(folder / name)
            assert check_header(folder / name) == levels.shape
            given[name] = (levels.dtype.name, levels.shape, levels.tobytes())
        except BadImage as error:
            given[name] = error.reason
    return given


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = answers(tmp_path_factory.mktemp("usual"))
    for name in FILES:
        assert isinstance(given[name], tuple), (name, given[name])
    for name in CUT:
        assert isinstance(given[f"broken {name}"], str), name
    return given


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", SWITCHES)
def test_switches_of_pillow(
    tmp_path: Path, name: str, usual: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, switch, value = SWITCHES[name]
    monkeypatch.setattr(module, switch, value)
    assert answers(tmp_path) == usual
    assert getattr(module, switch) == value


def test_warnings_that_are_errors(tmp_path: Path, usual: dict) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        assert answers(tmp_path) == usual
        assert warnings.filters == before


def test_threads_of_opencv(tmp_path: Path, usual: dict) -> None:
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert answers(tmp_path) == usual
    finally:
        cv2.setNumThreads(threads)


def test_limits_of_opencv_in_the_environment(tmp_path: Path) -> None:
    """Only colour of 16 bits in a PNG depends on OpenCV: the remedy is in the line."""
    Image.fromarray(DEEP).save(tmp_path / "grey.png")
    cv2.imwrite(str(tmp_path / "color.png"), np.stack([DEEP] * 3, -1))
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "color.tif", np.stack([DEEP] * 3, -1), photometric="rgb")
    code = (
        "import sys; from selftaught.data.images.decode import read_grey\n"
        "for name in ('grey.png', 'color.tif', 'color.png'):\n"
        "    try: print(int(read_grey(name).astype(int).sum()))\n"
        "    except Exception as error: print(type(error).__name__, error)\n"
    )
    names = ("OPENCV_IO_MAX_IMAGE_PIXELS", "OPENCV_IO_MAX_IMAGE_WIDTH")
    here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    for name in names:
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env={**here, name: "9"},
            capture_output=True,
            text=True,
        )
        first, second, third = done.stdout.splitlines()
        assert int(first) == int(second) == DEEP.astype(int).sum()
        assert third.startswith("MachineError color.png: ")
        assert "unset the environment variables OPENCV_IO_MAX_IMAGE_PIXELS" in third


def test_the_line_for_what_is_too_large_says_its_size(tmp_path: Path) -> None:
    """Pillow itself would stop at a size above its own limit, without saying which."""
    (tmp_path / "a.tif").write_bytes(tiff_file(b"\0", 60_000, 60_000))
    refused(tmp_path / "a.tif", "60000 x 60000 pixels", "allowed up to 64 Mpx")
