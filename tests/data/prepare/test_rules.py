"""Carrier, polarity and mask on films whose truth is known; geometry against formulas."""

import cv2
import numpy as np
import pytest

from selftaught.data.prepare import published
from selftaught.data.prepare.carrier import find_carrier
from selftaught.data.prepare.check import edges_visible
from selftaught.data.prepare.config import PrepareConfig
from selftaught.data.prepare.film import is_low_contrast
from selftaught.data.prepare.geometry import ordered, overlap, upright, whole_frame
from selftaught.data.prepare.mask import find_mask, tidy
from selftaught.data.prepare.source import pack_names
from selftaught.errors import InputError


def page(
    angle: float, *, background: float, size: int = 400, deep: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """A film with a limb on a page; (H, W) and its (4, 2) corners."""
    random = np.random.default_rng(int(abs(angle) * 10) + 7)
    film = np.full((240, 160), 30.0) + random.normal(0, 3, (240, 160))
    film[:, 55:105] = 150 + random.normal(0, 6, (240, 50))
    turn = cv2.getRotationMatrix2D((79.5, 119.5), angle, 1.0)
    turn[:, 2] += (size / 2 - 79.5, size / 2 - 119.5)
    corners = np.array([(0, 0), (159, 0), (159, 239), (0, 239)], float) @ turn[:, :2].T + turn[:, 2]
    picture = cv2.warpAffine(film, turn, (size, size), borderValue=background)
    grey = np.clip(picture, 0, 255)
    return (grey * 257).astype(np.uint16) if deep else grey.astype(np.uint8), ordered(corners)


@pytest.mark.parametrize("angle", [0.0, 7.5, -18.0])
@pytest.mark.parametrize("background", [0.0, 90.0, 250.0])
@pytest.mark.parametrize("deep", [False, True])
def test_a_film_on_a_page_is_found(angle: float, background: float, deep: bool) -> None:
    grey, corners = page(angle, background=background, deep=deep)
    found = find_carrier(grey)
    assert found is not None and overlap(found.quad, corners) > 0.95
    assert edges_visible(grey, corners)


def test_tissue_that_fills_the_picture_is_not_cropped() -> None:
    random = np.random.default_rng(1)
    film = 120 + 900 * cv2.GaussianBlur(random.normal(0, 1, (236, 156)), (0, 0), 12)
    grey = np.clip(film + random.normal(0, 4, film.shape), 0, 255).astype(np.uint8)
    found = find_carrier(grey)
    assert found is None or overlap(found.quad, whole_frame(grey.shape)) > 0.9


def test_a_limb_on_plain_black_is_not_taken_for_a_film() -> None:
    grey = np.zeros((400, 300), np.uint8)
    cv2.ellipse(grey, (150, 200), (40, 170), 35, 0, 360, 160, -1)
    found = find_carrier(grey)
    if found is not None:  # never at the price of anatomy
        inside = cv2.fillConvexPoly(np.zeros_like(grey), np.round(found.quad).astype(int), 1)
        assert (grey[inside == 0] > 0).sum() < 0.02 * (grey > 0).sum()


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (8, 8), (64, 64)])
def test_pictures_without_content_have_no_carrier_and_no_mask(shape: tuple[int, int]) -> None:
    for level in (0, 128, 255):
        grey = np.full(shape, level, np.uint8)
        assert find_carrier(grey) is None and find_mask(grey) is None
        assert published.find_carrier(grey, "") is None and published.find_mask(grey) is None


def test_the_published_rule_takes_the_first_large_enough_rectangle() -> None:
    grey = np.zeros((700, 700), np.uint8)
    cv2.rectangle(grey, (50, 60), (400, 560), 180, -1)
    found = published.find_carrier(grey, "hand")
    assert found is not None
    assert overlap(found.quad, [(50, 60), (400, 60), (400, 560), (50, 560)]) > 0.95
    small = cv2.resize(grey, (280, 280), interpolation=cv2.INTER_AREA)  # 140 x 200 = 28,000 px
    assert published.find_carrier(small, "hand") is None
    assert published.find_carrier(small, "finger") is not None


def limb(*, noise: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(4)
    body = np.zeros((300, 200), np.uint8)
    cv2.rectangle(body, (50, 40), (150, 299), 1, -1)
    cv2.ellipse(body, (100, 40), (50, 25), 0, 0, 360, 1, -1)
    bone = np.zeros_like(body)
    cv2.rectangle(bone, (90, 60), (110, 299), 1, -1)
    picture = 20 + 70.0 * body + 90.0 * bone + random.normal(0, noise, body.shape)
    return np.clip(cv2.GaussianBlur(picture, (0, 0), 1), 0, 255).astype(np.uint8), body > 0


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("frame", [0, 3, 16])
def test_the_body_is_found_inside_frames(deep: bool, frame: int) -> None:
    grey, body = limb()
    if frame:
        for part in (grey, body):
            edge = 235 if part is grey else False
            part[:frame], part[-frame:], part[:, :frame], part[:, -frame:] = edge, edge, edge, edge
    found = find_mask(grey.astype(np.uint16) * 257 if deep else grey)
    assert found is not None and found.dtype == bool
    assert dice(found, body) > 0.94


def test_metal_does_not_become_the_body() -> None:
    grey, body = limb()
    grey[100:250, 97:103] = 255
    found = find_mask(grey)
    assert found is not None and dice(found, body) > 0.94


def test_the_published_mask_covers_the_limb() -> None:
    grey, body = limb()
    found = published.find_mask(grey)
    assert found is not None and dice(found, body) > 0.8


def test_tidy_drops_specks_and_fills_holes() -> None:
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    mask[25:30, 25:30] = False
    mask[2:5, 2:5] = True
    tidied = tidy(mask)
    assert tidied[27, 27] and not tidied[3, 3] and tidied[30, 15]


def test_corners_are_ordered_from_top_left() -> None:
    square = np.array([(0, 0), (10, 0), (10, 5), (0, 5)], float)
    for shift in range(4):
        np.testing.assert_array_equal(ordered(np.roll(square, shift, 0)), square)
        np.testing.assert_array_equal(ordered(np.roll(square, shift, 0)[::-1]), square)
    for degrees in (-40, -10, 25, 44):
        angle = np.radians(degrees)
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        np.testing.assert_allclose(ordered(np.roll(square @ turn.T, 2, 0)), square @ turn.T)


def test_overlap_is_intersection_over_union() -> None:
    a = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
    assert overlap(a, a) == pytest.approx(1)
    assert overlap(a, a + (5, 0)) == pytest.approx(50 / 150)
    assert overlap(a, a + (20, 0)) == 0
    assert overlap(a, (a - 5) / 2 + 5) == pytest.approx(25 / 100 * 1, abs=0.3)


def test_upright_turns_back_what_was_turned() -> None:
    grey, corners = page(12.0, background=0.0)
    film = upright(grey, corners)
    assert abs(film.shape[0] - 240) <= 1 and abs(film.shape[1] - 160) <= 1
    assert film[:, 60:100].mean() > 140 and film[5:-5, 5:45].mean() < 40
    wide = upright(grey, ordered(corners[:, ::-1].copy()), portrait=True)
    assert wide.shape[0] >= wide.shape[1]
    same = upright(grey, whole_frame(grey.shape))
    np.testing.assert_array_equal(same, grey)


def test_low_contrast_is_that_of_scikit_image() -> None:
    from skimage.exposure import is_low_contrast as reference

    random = np.random.default_rng(2)
    for spread in (1, 4, 9, 14, 20, 200):
        grey = random.integers(30, 31 + spread, (60, 60)).astype(np.uint8)
        assert is_low_contrast(grey, 0.05) == reference(grey)


def test_names_stay_inside_the_pack_and_are_unique() -> None:
    names = pack_names(["a/b.png", "../a/b.png", "/a/b.png", "c.png"])
    assert names[0] == "a/b.png" and names[3] == "c.png" and len(set(names)) == 4
    assert all(".." not in name and not name.startswith("/") for name in names)


@pytest.mark.parametrize(
    "wrong", [{"size": 8}, {"cutoff": 50.0}, {"workers": 0}, {"bad_limit": 2.0}, {"sheets": -1}]
)
def test_settings_out_of_range_are_named(wrong: dict) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        PrepareConfig(**wrong)
