"""Small files that would fill the memory: refused for what they are, before it grows."""

import zipfile
from pathlib import Path

import numpy as np

from tests.data.images.dicom_files import ImplicitVRLittleEndian, with_nested
from tests.data.images.measure import growth
from tests.data.prepare.films import bomb_png

MEGABYTES = 100


def png(folder: Path) -> Path:
    """13,000 x 13,000 pixels: 169 MB of levels in 165 KB."""
    path = folder / "bomb.png"
    path.write_bytes(bomb_png(13_000))
    assert path.stat().st_size < 200_000
    return path


def npz(folder: Path) -> Path:
    """200 MB of zeros in 195 KB, named as what NumPy would open."""
    path = folder / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("arr_0.npy", "w") as member:
            np.lib.format.write_array(member, np.zeros(200_000_000, np.uint8))
    return path


def dicom(folder: Path) -> Path:
    """A good image after sequences of 300 levels."""
    return with_nested(folder / "nested.dcm", 300, ImplicitVRLittleEndian, undefined=True)


def test_refused_for_the_right_reason_before_memory_grows(tmp_path: Path) -> None:
    lines, grown = growth(png(tmp_path), npz(tmp_path), dicom(tmp_path))
    reasons = ("allowed up to 64 Mpx", "is not an image", "nested more than 64")
    for line, reason in zip(lines, [one for one in reasons for _ in range(2)], strict=True):
        assert reason in line
    assert grown < MEGABYTES
