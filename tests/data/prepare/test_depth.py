"""Films of 10 to 15 bits that lie unscaled in 16: read as what they are, and empty ones not."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from selftaught.cli.main import main
from selftaught.data.images.limits import BadImage
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import prepare_film, usable_film
from tests.data.images.pictures import tiff_file
from tests.data.images.test_png import png

CONFIG = PrepareConfig(size=96, workers=1, sheets=0)


def limb(least: float, most: float, bits: int, number: int = 0) -> np.ndarray:
    """(128, 128) uint16: a bright body on a darker ground, between two shares of the range."""
    y, x = np.mgrid[:128, :128]
    body = np.exp(-((x - 64) ** 2) / 800) * (0.8 + 0.2 * np.sin(y / 9 + number))
    noise = np.random.default_rng(number).normal(0, 0.01, x.shape)
    shape = np.clip(0.05 + 0.9 * body + noise, 0, 1)
    return np.rint((least + (most - least) * shape) * (2**bits - 1)).astype(np.uint16)


def saved(path: Path, film: np.ndarray, bits: int, way: str) -> Path:
    """As a PNG that does or does not state its depth, or as a TIFF."""
    path = path.with_suffix(".tif" if way.startswith("tiff") else ".png")
    if way == "sBIT":
        path.write_bytes(png(film, bits=16, before=[(b"sBIT", bytes([bits]))]))
    elif way == "tiff of 12 bits":
        pairs = film.reshape(-1, 2).astype(np.uint32)
        data = b"".join(int(a << 12 | b).to_bytes(3, "big") for a, b in pairs)
        path.write_bytes(tiff_file(data, 128, 128, {258: 12}))
    else:
        assert cv2.imwrite(str(path), film)
    return path


@pytest.mark.parametrize(
    ("bits", "share", "way"),
    [
        (10, 0.9, "png"),
        (11, 0.9, "png"),
        (12, 0.9, "tiff"),
        (12, 0.3, "tiff of 12 bits"),
        (10, 0.4, "sBIT"),
        (11, 0.4, "sBIT"),
        (13, 0.9, "sBIT"),
        (14, 0.9, "sBIT"),
        (13, 0.57, "png"),
        (14, 0.57, "tiff"),
        (15, 0.57, "png"),
    ],
)
@pytest.mark.parametrize("as_bits", ["keep", "8"])
def test_unscaled_and_scaled_films_are_prepared_alike(
    tmp_path: Path, bits: int, share: float, way: str, as_bits: str
) -> None:
    least = 0.5 if share == 0.57 else 0.05
    film, config = limb(least, share, bits), PrepareConfig(size=96, bits=as_bits)
    deep = usable_film(saved(tmp_path / "a", film, bits, way), None, "", config)
    scaled = film << (16 - bits)
    same = usable_film(saved(tmp_path / "b", scaled, 16, "png"), None, "", config)
    assert (deep.source_bits, same.source_bits) == (bits, 16)
    np.testing.assert_array_equal(deep.image, same.image)
    np.testing.assert_array_equal(deep.mask, same.mask)
    assert (deep.low, deep.high, deep.low_contrast) == (same.low, same.high, False)


@pytest.mark.parametrize(("bits", "way"), [(10, "png"), (12, "tiff"), (14, "sBIT")])
def test_letters_burnt_in_as_white_do_not_count(tmp_path: Path, bits: int, way: str) -> None:
    film = limb(0.05, 0.9, bits)
    scaled = film << (16 - bits)
    film[4:12, 4:20], scaled[4:12, 4:20] = 65535, (2**bits - 1) << (16 - bits)
    made = usable_film(saved(tmp_path / "a", film, bits, way), None, "", CONFIG)
    same = usable_film(saved(tmp_path / "b", scaled, 16, "png"), None, "", CONFIG)
    assert made.source_bits == bits
    np.testing.assert_array_equal(made.image, same.image)
    np.testing.assert_array_equal(made.mask, same.mask)


def test_what_is_white_in_more_than_letters_counts(tmp_path: Path) -> None:
    film = limb(0.05, 0.9, 11)
    film[:, :9] = 65535
    assert prepare_film(saved(tmp_path / "a", film, 11, "png"), None, "", CONFIG).source_bits == 16


def noisy(mean: float, spread: float) -> np.ndarray:
    levels = np.random.default_rng(0).normal(mean, spread, (128, 128))
    return np.clip(np.rint(levels), 0, 65535).astype(np.uint16)


def hot_pixels() -> np.ndarray:
    film = np.full((128, 128), 60, np.uint16)
    film[::31, ::17] = 1900
    return film


@pytest.mark.parametrize(
    "film",
    [
        np.zeros((128, 128), np.uint16),
        np.full((128, 128), 1500, np.uint16),
        noisy(20, 5),
        noisy(500, 30),
        noisy(1500, 60),
        noisy(3000, 120),
        noisy(20_000, 300),
        hot_pixels(),
        limb(0.5, 0.53, 11),
    ],
    ids=["black", "flat", "20", "500", "1500", "3000", "20000", "hot pixels", "little"],
)
def test_empty_films_stay_of_low_contrast(tmp_path: Path, film: np.ndarray) -> None:
    path = saved(tmp_path / "a", film, 16, "png")
    with pytest.raises(BadImage, match=r"low contrast: .* of 65535\); --drop_low_contrast false"):
        usable_film(path, None, "", CONFIG)
    assert prepare_film(path, None, "", CONFIG).source_bits == 16


@pytest.mark.parametrize("top", [0.125, 0.3, 0.6])
def test_a_dark_film_of_16_bits_stays_dark(tmp_path: Path, top: float) -> None:
    film = limb(0.01, top, 16)
    assert film.max() < 2**15 or top > 0.5
    made = usable_film(saved(tmp_path / "a", film, 16, "png"), None, "", CONFIG)
    assert made.source_bits == 16
    np.testing.assert_allclose(made.image.max() / film.max(), 1, atol=0.1)


def test_a_stated_depth_of_scaled_levels_changes_nothing(tmp_path: Path) -> None:
    """sBIT says 11 bits, and a film as dark as this one fits in them, but it was scaled."""
    film = limb(0.0, 0.03, 11) << 5
    assert film.max() < 2**11
    made = prepare_film(saved(tmp_path / "a", film, 11, "sBIT"), None, "", CONFIG)
    assert made.low_contrast and made.source_bits == 16


def test_published_rules_take_the_range_of_the_type(tmp_path: Path) -> None:
    path = saved(tmp_path / "a", limb(0.05, 0.9, 11), 11, "png")
    for rule in ("carrier", "polarity", "mask"):
        with pytest.raises(BadImage, match="low contrast"):
            usable_film(path, None, "", PrepareConfig(size=96, **{rule: "paper"}))


def test_the_summary_counts_them(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "raw").mkdir()
    for number in range(3):
        saved(tmp_path / "raw" / f"{number}", limb(0.05, 0.9, 11, number), 11, "png")
    saved(tmp_path / "raw" / "full", limb(0.05, 0.9, 16), 16, "png")
    words = ["prepare", str(tmp_path / "raw"), "--out", str(tmp_path / "set"), "--workers", "1"]
    assert main(words) in (0, None)
    assert "11 bits in 16      3" in capsys.readouterr().out
