"""Sides on the edges that are seen; what lies at a film's rims: frames, shutters, fingers, bars."""

import cv2
import numpy as np
import pytest

from selftaught.data.prepare.carrier import find_carrier
from selftaught.data.prepare.edges import refined
from selftaught.data.prepare.geometry import ordered, overlap, row_ends, whole_frame
from selftaught.data.prepare.mask import find_mask, without_bar


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def legs(width: int, *, soft: float) -> np.ndarray:
    """Two bright limbs on black from the upper to the lower border, (162, width) uint8."""
    x = np.arange(width)
    thick = np.zeros(width)
    for middle in (0.27 * width, 0.73 * width):
        thick = np.maximum(thick, 1 - ((x - middle) / (0.2 * width)) ** 2)
    profile = 200 * np.maximum(thick, 0) ** soft
    return np.rint(np.tile(profile, (162, 1))).astype(np.uint8)


@pytest.mark.parametrize("share", [0.0, 0.002, 0.1, 1.0])
def test_the_ends_of_rows_have_the_hull_of_all_places(share: float) -> None:
    mask = np.random.default_rng(1).random((61, 83)) < share
    ends, places = row_ends(mask), np.argwhere(mask)[:, ::-1]
    assert {*map(tuple, ends)} <= {*map(tuple, places)} and bool(len(ends)) == bool(share)
    hulls = [cv2.convexHull(of.astype(np.int32))[:, 0] for of in (ends, places) if share]
    assert not share or {*map(tuple, hulls[0])} == {*map(tuple, hulls[1])}


@pytest.mark.parametrize("width", [300, 640])
def test_a_body_on_black_is_no_film_and_loses_nothing(width: int) -> None:
    found = find_carrier(legs(width, soft=1.0))
    if found is not None:
        assert overlap(found.quad, whole_frame((162, width))) > 0.99


def test_content_at_the_pictures_border_is_not_cut() -> None:
    # A film that the picture's upper and lower border cut off: only left and right are seen.
    random = np.random.default_rng(8)
    grey = np.full((300, 400), 250.0)
    grey[:, 60:331] = 60 + random.normal(0, 8, (300, 271))
    found = find_carrier(np.clip(grey, 0, 255).astype(np.uint8))
    assert found is not None
    np.testing.assert_allclose(found.quad[:, 1], [0, 0, 299, 299], atol=1.5)
    np.testing.assert_allclose(found.quad[:, 0], [59.5, 330.5, 330.5, 59.5], atol=1.5)


def test_a_body_that_fills_its_picture_is_not_cut() -> None:
    y, x = np.mgrid[:162, :300]
    thick = 1 - ((x - 160) / 170) ** 2 - 0.1 * ((y - 80) / 80) ** 2
    grey = np.rint(np.clip(2 + 160 * thick, 0, 255)).astype(np.uint8)
    found = find_carrier(grey)
    assert found is None or overlap(found.quad, whole_frame(grey.shape)) > 0.98


@pytest.mark.parametrize("wrong", [-4.0, -1.5, 3.0, 5.0])
def test_sides_move_onto_their_edges(wrong: float) -> None:
    film = ordered([(60, 40), (250, 55), (236, 320), (46, 305)])
    apart = cv2.fillConvexPoly(np.zeros((360, 300), np.uint8), np.round(film).astype(int), 80)
    outwards = np.sign(film - film.mean(axis=0))
    found = refined(apart.astype(np.float32), film + wrong * outwards)
    assert found is not None and np.abs(found - film).max() < 1.0


def test_soft_curved_sides_are_no_films() -> None:
    y, x = np.mgrid[:300, :300]
    round_body = 200 * np.maximum(1 - ((x - 150) / 110) ** 2 - ((y - 150) / 120) ** 2, 0)
    quad = ordered([(40, 30), (260, 30), (260, 270), (40, 270)])
    assert refined(round_body.astype(np.float32), quad) is None


def finger(*, background: float) -> tuple[np.ndarray, np.ndarray]:
    """A hand's back with one finger that ends 21 rows below the upper border; (H, W) and truth."""
    body = np.zeros((360, 300), np.uint8)
    cv2.ellipse(body, (150, 330), (90, 130), 0, 0, 360, 1, -1)
    cv2.line(body, (150, 30), (150, 240), 1, 18)
    depth = cv2.distanceTransform(np.pad(body, ((0, 40), (0, 0)), mode="edge"), cv2.DIST_L2, 5)
    thick = np.sqrt(np.minimum(depth[:360] / 20, 1))
    return np.rint(background + 110 * thick).astype(np.uint8), body > 0


@pytest.mark.parametrize("background", [0.0, 25.0])
def test_a_finger_that_points_into_a_dark_rim_keeps_its_tip(background: float) -> None:
    grey, body = finger(background=background)
    found = find_mask(grey)
    assert found is not None and dice(found, body) > 0.94
    tip = body[:50]
    assert (found[:50] & tip).sum() > 0.95 * tip.sum()


@pytest.mark.parametrize("line", [2, 4])
def test_the_body_goes_on_under_a_frames_line_but_not_under_a_shutter(line: int) -> None:
    grey, body = finger(background=20.0)
    framed = grey.copy()
    framed[:line], framed[-line:], framed[:, :line], framed[:, -line:] = 245, 245, 245, 245
    found = find_mask(framed)
    assert found is not None and dice(found, body) > 0.94
    assert found[-1, 100:200].all() and not found[:, 0].any()
    shut = grey.copy()
    shut[-24:], shut[:, -24:] = 240, 240
    found = find_mask(shut)
    assert found is not None and not found[-20:].any() and not found[:, -20:].any()


def test_a_background_with_noise_hides_no_skin() -> None:
    x = np.abs(np.arange(240) - 120.0)
    profile = np.minimum(3.0 * np.maximum(70 - x, 0), 130)
    noise = np.random.default_rng(5).normal(0, 2, (360, 240))
    body = np.tile(x < 70, (360, 1))
    found = find_mask(np.clip(profile + noise, 0, 255).astype(np.uint8))
    assert found is not None and dice(found, body) > 0.94
    assert found.sum() < 1.03 * body.sum()


@pytest.mark.parametrize("tilt", [0.0, 0.02])
def test_a_bar_across_the_film_is_no_body(tilt: float) -> None:
    body = np.zeros((400, 320), bool)
    body[:, 110:200] = True
    bar = np.arange(400)[:, None] < 28 + tilt * np.arange(320)[None]
    barred = body | bar
    without_bar(barred)
    assert dice(barred, body) > 0.99
    # What widens on one side only, or in a curve, is anatomy.
    one_sided = np.tile(np.arange(320) < 200, (400, 1)) | bar
    for other in (one_sided, body | _dome()):
        same = other.copy()
        without_bar(same)
        np.testing.assert_array_equal(same, other)


def _dome() -> np.ndarray:
    dome = np.zeros((400, 320), np.uint8)
    cv2.ellipse(dome, (155, 0), (230, 50), 0, 0, 360, 1, -1)
    return dome > 0


def test_a_film_without_a_body_has_no_mask() -> None:
    noise = np.random.default_rng(0).normal(120, 40, (300, 240))
    assert find_mask(np.clip(noise, 0, 255).astype(np.uint8)) is None


def test_bright_tissue_at_the_border_is_no_shutter() -> None:
    x = np.arange(384)
    thick = np.sqrt(np.maximum(1 - ((x % 192 - 96 + np.sign(192 - x) * 80) / 150) ** 2, 0))
    grey = np.tile(np.rint(225 * thick), (100, 1)).astype(np.uint8)
    found = find_mask(grey)
    assert found is None or found[:, [2, 20, 50, -50, -20, -3]].all()
