"""Autocontrast against Pillow, masks of every scale, mismatches."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from selftaught.data.images.contrast import autocontrast
from selftaught.data.images.limits import BadImage
from selftaught.data.pipeline.sample import load


@pytest.mark.parametrize("cutoff", [0.0, 1.0, 10.0, 49.0])
@pytest.mark.parametrize("kind", ["smooth", "noise", "two", "constant", "one pixel"])
def test_autocontrast_is_pillows(cutoff: float, kind: str) -> None:
    rng = np.random.default_rng(0)
    image = {
        "smooth": np.add.outer(np.arange(60), np.arange(70)).astype(np.uint8),
        "noise": rng.normal(120, 20, (51, 33)).clip(0, 255).astype(np.uint8),
        "two": np.where(rng.random((30, 30)) < 0.3, 50, 90).astype(np.uint8),
        "constant": np.full((9, 9), 77, np.uint8),
        "one pixel": np.array([[13]], np.uint8),
    }[kind]
    expected = np.asarray(ImageOps.autocontrast(Image.fromarray(image), cutoff=cutoff))
    np.testing.assert_array_equal(autocontrast(image, cutoff), expected)


def test_autocontrast_keeps_16_bits() -> None:
    rng = np.random.default_rng(0)
    image = rng.normal(3000, 40, (200, 210)).astype(np.uint16)
    got = autocontrast(image, 1.0)
    ordered = np.sort(image.ravel())
    cut = ordered.size // 100
    low, high = float(ordered[cut]), float(ordered[-1 - cut])
    expected = np.clip((image - low) / (high - low), 0, 1) * 65535
    assert got.dtype == np.uint16 and np.abs(got - expected).max() <= 1
    inside = (image >= low) & (image <= high)
    assert np.unique(got[inside]).size == np.unique(image[inside]).size


def save(path: Path, array: np.ndarray) -> Path:
    Image.fromarray(array).save(path)
    return path


@pytest.mark.parametrize("value", [1, 255, 65535])
def test_masks_of_any_scale(tmp_path: Path, value: int) -> None:
    image = np.arange(20 * 30, dtype=np.uint16).reshape(20, 30)
    region = np.zeros((20, 30), np.uint8 if value < 256 else np.uint16)
    region[5:12, 3:22] = value
    sample = load(save(tmp_path / "a.png", image), save(tmp_path / "m.png", region), cutoff=1.0)
    assert sample.mask is not None and sample.mask.dtype == np.uint8
    np.testing.assert_array_equal(sample.mask, np.where(region > 0, 255, 0))
    assert sample.nbytes == 20 * 30 * 3


def test_bad_masks_are_named(tmp_path: Path) -> None:
    image = save(tmp_path / "a.png", np.zeros((20, 30), np.uint8))
    small = save(tmp_path / "small.png", np.ones((20, 29), np.uint8))
    with pytest.raises(BadImage, match=r"small\.png: mask of 29 x 20 .*a\.png has 30 x 20"):
        load(image, small, cutoff=1.0)
    empty = save(tmp_path / "empty.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(BadImage, match=r"empty\.png: mask is empty"):
        load(image, empty, cutoff=1.0)
    with pytest.raises(BadImage, match=r"none\.png: is missing"):
        load(image, tmp_path / "none.png", cutoff=1.0)
