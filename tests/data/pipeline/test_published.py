"""The published order against the same steps written out with Pillow, quirk by quirk."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from selftaught.data.pipeline import published
from selftaught.data.pipeline.sample import Sample
from selftaught.data.plan import PARAMETERS, draw, finetune_augment, plain, pretext_augment
from tests.data.pipeline.slow import NEUTRAL

SIZE = 64
PRETEXT, FINETUNE = pretext_augment("paper"), finetune_augment("paper")


def scene(dtype: type = np.uint8, shape: tuple[int, int] = (90, 70)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    image = 0.4 + 0.3 * x + 0.2 * np.sin(9 * y + 4 * x) + 0.1 * np.cos(25 * x * y)
    image[:6] = 0
    image = (image - image.min()) / (image.max() - image.min())
    return np.rint(image * np.iinfo(dtype).max).astype(dtype)


def disc(shape: tuple[int, int] = (90, 70)) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.where((x - 35) ** 2 + (y - 50) ** 2 < 900, 255, 0).astype(np.uint8)


def steps(image: Image.Image, row: dict[str, float], *, tones: bool) -> Image.Image:
    """Rows 3 to 12 of the table for an 8-bit image, with literal Pillow calls."""
    if row["horizontal_flip"]:
        image = ImageOps.mirror(image)
    if row["vertical_flip"]:
        image = ImageOps.flip(image)
    if tones:
        image = ImageEnhance.Brightness(image).enhance(row["brightness"])
    factor = 1 / row["scale"]
    matrix = (factor, 0, 0, 0, factor, 0)
    image = image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    image = image.rotate(row["angle"], Image.Resampling.BILINEAR)
    height = SIZE if image.height >= image.width else round(image.height * SIZE / image.width)
    width = SIZE if image.width >= image.height else round(image.width * SIZE / image.height)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = (SIZE - width) // 2, (SIZE - height) // 2
    image = ImageOps.expand(image, (left, top, SIZE - width - left, SIZE - height - top))
    box = (
        round(row["crop_left"] * SIZE),
        round(row["crop_top"] * SIZE),
        round((row["crop_left"] + row["crop_width"]) * SIZE),
        round((row["crop_top"] + row["crop_height"]) * SIZE),
    )
    image = image.crop(box).resize((SIZE, SIZE), Image.Resampling.BILINEAR)
    if tones:
        image = ImageEnhance.Brightness(image).enhance(row["color_brightness"])
        image = ImageEnhance.Contrast(image).enhance(row["color_contrast"])
        if row["blur_sigma"] > 0:
            image = image.filter(ImageFilter.GaussianBlur(row["blur_sigma"]))
    return image


def rows(augment: object, count: int = 8) -> list[dict[str, float]]:
    plan = draw(augment, seed=2, stage="t", epoch=0, samples=range(count), views=1)  # type: ignore[arg-type]
    return [dict(zip(PARAMETERS, values[0].astype(float).tolist(), strict=True)) for values in plan]


def rendered(
    image: np.ndarray, mask: np.ndarray | None, row: dict[str, float], augment: object
) -> tuple[np.ndarray, np.ndarray]:
    made = np.full((SIZE, SIZE), np.nan, np.float32)
    region = np.full((SIZE, SIZE), np.nan, np.float32)
    published.render(Sample(image, mask), row, augment, made, region, masked=mask is not None)  # type: ignore[arg-type]
    return made, region


CASES = [(PRETEXT, row) for row in rows(PRETEXT)] + [(FINETUNE, row) for row in rows(FINETUNE)]


@pytest.mark.parametrize(("augment", "row"), CASES)
def test_8_bit_views_are_the_published_steps(augment: object, row: dict[str, float]) -> None:
    made, region = rendered(scene(), disc(), row, augment)
    levels = np.asarray(steps(Image.fromarray(scene()), row, tones=True), float)
    share = np.asarray(steps(Image.fromarray(disc()), row, tones=False), float) / 255
    expected = (levels - levels.min()) / (levels.max() - levels.min()) * share
    scale = 255 if augment is PRETEXT else 1
    np.testing.assert_allclose(made / scale, expected, atol=2e-6)
    np.testing.assert_allclose(region, share, atol=1e-6)


@pytest.mark.parametrize(("augment", "row"), CASES)
def test_16_bit_views_agree_with_8_bit_ones(augment: object, row: dict[str, float]) -> None:
    deep, _ = rendered(scene(np.uint16), disc(), row, augment)
    flat, _ = rendered(scene(), disc(), row, augment)
    scale = 255 if augment is PRETEXT else 1
    assert np.abs(deep - flat).mean() * 255 / scale < 2.0


def test_deep_images_are_not_cut_to_8_bits() -> None:
    image = np.full((SIZE, SIZE), 30_000, np.uint16)
    image[:, 32:] += 60
    image[0], image[-1] = 0, 65535
    made, _ = rendered(image, None, NEUTRAL, plain(FINETUNE))
    assert abs(made[30, 50] - made[30, 10] - 60 / 65535) < 1e-6
    row = NEUTRAL | {"angle": 2.0, "scale": 1.1, "color_contrast": 1.1, "blur_sigma": 1.0}
    made, _ = rendered(image, None, row, FINETUNE)
    assert 0.5 * 60 / 65535 < made[30, 50] - made[30, 10] < 3 * 60 / 65535


def test_quirks() -> None:
    """Scaling about the top left corner leaves a black band; rotation cuts the corners."""
    white = np.full((SIZE, SIZE), 255, np.uint8)
    white[0, 0] = 0
    made, _ = rendered(white, None, NEUTRAL | {"scale": 1 / 1.2}, FINETUNE)
    edge = round(SIZE / 1.2)
    assert (
        made[5 : edge - 2, 5 : edge - 2].min() == pytest.approx(1, abs=1e-5)
        and not made[edge + 2 :].any()
    )
    oblong = np.full((32, SIZE), 255, np.uint8)
    made, _ = rendered(oblong, None, NEUTRAL | {"angle": 45.0}, FINETUNE)
    assert (
        not made[:16].any() and not made[48:].any() and made[32, 32] == pytest.approx(1, abs=1e-5)
    )


def test_pretext_masks_reach_255(tmp_path: Path) -> None:
    made, _ = rendered(scene(), disc(), NEUTRAL, plain(PRETEXT))
    assert 200 < made.max() <= 255 and made.min() == 0
    made, _ = rendered(scene(), None, NEUTRAL, plain(PRETEXT))
    assert made.max() == pytest.approx(255, abs=1e-3)
    made, _ = rendered(scene(), disc(), NEUTRAL, plain(FINETUNE))
    assert 0.8 < made.max() <= 1
