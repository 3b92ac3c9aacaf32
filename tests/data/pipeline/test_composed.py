"""The composed executor: known geometry, and a slow float64 reference for whole views."""

import numpy as np
import pytest

from selftaught.data.pipeline import composed
from selftaught.data.pipeline.sample import Sample
from selftaught.data.plan import PARAMETERS, PLAIN, Augment, draw, finetune_augment, pretext_augment
from tests.data.pipeline.slow import NEUTRAL, view

SIZE = 96


def scene(dtype: type = np.uint8, size: int = SIZE) -> np.ndarray:
    """Black border, smooth inside, no symmetry, full range."""
    y, x = np.mgrid[:size, :size] / size
    image = 0.35 + 0.3 * x + 0.2 * np.sin(9 * y + 4 * x) + 0.15 * np.cos(25 * x * y)
    image[: size // 8] = image[-size // 8 :] = 0
    image = (image - image.min()) / (image.max() - image.min())
    return np.rint(image * np.iinfo(dtype).max).astype(dtype)


def disc(size: int = SIZE) -> np.ndarray:
    y, x = np.mgrid[:size, :size] / size
    return np.where((x - 0.45) ** 2 + (y - 0.55) ** 2 < 0.14, 255, 0).astype(np.uint8)


def rendered(
    image: np.ndarray,
    mask: np.ndarray | None = None,
    augment: Augment = PLAIN,
    masked: bool = True,
    **row: float,
) -> tuple[np.ndarray, np.ndarray]:
    made = np.full(image.shape, np.nan, np.float32)
    region = np.full(image.shape, np.nan, np.float32)
    composed.render(Sample(image, mask), NEUTRAL | row, augment, made, region, masked=masked)
    return made, region


def normal(image: np.ndarray) -> np.ndarray:
    image = image.astype(float)
    return (image - image.min()) / (image.max() - image.min())


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_neutral_row_is_the_canvas(dtype: type) -> None:
    made, _ = rendered(scene(dtype))
    np.testing.assert_allclose(made, normal(scene(dtype)), atol=2e-6)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_exact_moves(dtype: type) -> None:
    image = scene(dtype)
    moves = {
        (("horizontal_flip", 1.0),): image[:, ::-1],
        (("vertical_flip", 1.0),): image[::-1],
        (("angle", 90.0),): np.rot90(image),  # counter-clockwise, as Pillow turns
        (("angle", -90.0),): np.rot90(image, -1),
        (("angle", 180.0),): image[::-1, ::-1],
        (("horizontal_flip", 1.0), ("angle", 90.0)): np.rot90(image[:, ::-1]),
    }
    for row, expected in moves.items():
        made, _ = rendered(image, **dict(row))
        np.testing.assert_allclose(made, normal(expected), atol=0.003)


def test_small_rotation_turns_as_pillow_does() -> None:
    from PIL import Image

    image = scene()
    expected = np.asarray(Image.fromarray(image).rotate(20, Image.Resampling.BILINEAR))
    made, _ = rendered(image, angle=20.0)
    other, _ = rendered(image, angle=-20.0)
    assert np.abs(made - normal(expected)).mean() < 0.004
    assert np.abs(other - normal(expected)).mean() > 0.05


def test_scale_magnifies_about_the_centre_or_the_corner() -> None:
    image = np.zeros((SIZE, SIZE), np.uint8)
    image[32:64, 32:64] = 255
    made, _ = rendered(image, scale=1.5)
    inside = made > 0.5
    assert inside.sum() == 48 * 48 and inside[24:72, 24:72].all()
    made, _ = rendered(image, augment=Augment(scale_pivot="corner"), scale=1.5)
    assert (made > 0.5)[48:96, 48:96].all() and (made > 0.5).sum() == 48 * 48


def test_crop_box_is_left_top_width_height() -> None:
    image = scene()
    made, _ = rendered(image, crop_left=0.25, crop_top=0.5, crop_width=0.5, crop_height=0.25)
    part = image[48:72, 24:72]
    shrunk = made.reshape(24, 4, 48, 2).mean((1, 3))
    assert np.corrcoef(shrunk.ravel(), part.ravel())[0, 1] > 0.999


ROWS = draw(pretext_augment("default"), seed=1, stage="t", epoch=0, samples=range(6), views=2)
MILD = draw(finetune_augment("default"), seed=1, stage="t", epoch=0, samples=range(6), views=1)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("values", [*ROWS.reshape(12, -1), *MILD.reshape(6, -1)])
def test_views_agree_with_the_slow_reference(dtype: type, values: np.ndarray) -> None:
    """Within one grey level on average at 8 bits, and twenty times closer at 16."""
    row = dict(zip(PARAMETERS, values.astype(float).tolist(), strict=True))
    made, region = rendered(scene(dtype), disc(), **row)
    expected = view(scene(dtype), disc(), row)
    error = np.abs(made - expected)
    assert error.mean() * 255 < (0.8 if dtype is np.uint8 else 0.12)
    assert np.percentile(error, 99) * 255 < (3 if dtype is np.uint8 else 1)
    assert 0.0 <= made.min() and made.max() <= 1.0
    assert 0.0 <= region.min() and region.max() <= 1.0


@pytest.mark.parametrize("values", ROWS.reshape(12, -1))
def test_mask_and_image_move_together(values: np.ndarray) -> None:
    """An image equal to its mask stays equal to it under the geometry of any plan."""
    row = dict(zip(PARAMETERS, values.astype(float).tolist(), strict=True))
    row |= {"color_brightness": 1.0, "color_contrast": 1.0, "blur_sigma": 0.0}
    made, region = rendered(disc(), disc(), masked=False, **row)
    assert region.max() > 0.5
    np.testing.assert_allclose(made, region, atol=2e-6)


def test_deep_images_are_not_cut_to_8_bits() -> None:
    """Grey levels that 8 bits cannot tell apart survive every step."""
    image = np.full((SIZE, SIZE), 30_000, np.uint16)
    image[:, 40:] += 60
    image[0] = 0
    image[-1] = 65535
    plain, _ = rendered(image)
    step = plain[SIZE // 2, 41:].mean() - plain[SIZE // 2, :39].mean()
    assert abs(step - 60 / 65535) < 1e-6
    changed, _ = rendered(image, angle=3.0, brightness=1.1, color_contrast=1.05, blur_sigma=1.0)
    assert np.unique(changed[20:70, 10:80]).size > 10
    assert changed[48, 70] - changed[48, 15] > 0.5 * 60 / 65535


def test_constant_images_become_zero() -> None:
    for dtype in (np.uint8, np.uint16):
        made, _ = rendered(np.full((SIZE, SIZE), 99, dtype))
        assert not made.any()


def test_mask_scale_and_multiplication() -> None:
    published = Augment(mask_scale=255)
    made, region = rendered(scene(), disc(), published)
    np.testing.assert_allclose(made, 255 * normal(scene()) * (disc() / 255), atol=1e-3)
    np.testing.assert_allclose(region, disc() / 255, atol=1e-6)
    made, _ = rendered(scene(), disc(), published, masked=False)
    np.testing.assert_allclose(made, 255 * normal(scene()), atol=1e-3)


@pytest.mark.parametrize("shape", [(40, 96), (96, 40), (200, 151), (7, 300), (300, 7), (1, 1)])
def test_canvas_is_a_centred_square(shape: tuple[int, int]) -> None:
    image = np.full(shape, 200, np.uint8)
    base = composed.canvas(Sample(image, None), SIZE, frame=True)
    ratio = SIZE / max(shape)
    height, width = (max(1, round(side * ratio)) for side in shape)
    assert base.image.shape == (SIZE, SIZE) and base.mask is not None
    assert (base.image > 0).sum() == height * width
    np.testing.assert_array_equal(base.mask > 0, base.image > 0)
    rows, columns = np.flatnonzero(base.image.any(1)), np.flatnonzero(base.image.any(0))
    assert rows[0] == (SIZE - height) // 2 and columns[0] == (SIZE - width) // 2


def test_canvas_is_antialiased() -> None:
    """One-pixel stripes average out; plain subsampling would keep or lose them."""
    stripes = np.zeros((SIZE * 4, SIZE * 4), np.uint16)
    stripes[:, ::2] = 60_000
    base = composed.canvas(Sample(stripes, None), SIZE, frame=False)
    assert base.mask is None and base.image.dtype == np.uint16
    assert np.abs(base.image.astype(int) - 30_000).max() <= 1
