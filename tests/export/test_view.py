"""The view in tensor operations is the pipeline's own, at every size and both depths."""

import numpy as np
import pytest
import torch

from selftaught.data.augment import Augment
from selftaught.data.images.contrast import autocontrast
from selftaught.data.pipeline import composed
from selftaught.data.pipeline.sample import Sample
from selftaught.data.plan import PARAMETERS, draw
from selftaught.export.view import View

S = 24
# Growing, blocks of 2 x 2, 3 x 3 and 4 x 4, quarters of pixels (whose sums are often a level and a
# half), other shares of pixels, one pixel wide.
SHAPES = [(17, 9), (24, 20), (48, 36), (72, 72), (96, 96), (32, 24), (31, 57), (101, 77), (90, 1)]


def expected(image, mask, augment):
    base = Sample(autocontrast(image, augment.autocontrast), mask)
    base = composed.canvas(base, S, frame=True)
    plan = draw(augment, seed=0, stage="plain", views=1, epoch=0, samples=np.array([0]))
    row = dict(zip(PARAMETERS, plan[0, 0].astype(float).tolist(), strict=True))
    view, region = np.empty((S, S), np.float32), np.empty((S, S), np.float32)
    composed.render(base, row, augment, view, region, masked=mask is not None)
    return view, region


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_views_are_those_of_the_pipeline(kind):
    random = np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        image = random.integers(0, np.iinfo(kind).max + 1, shape).astype(kind)
        image //= kind(1 + 2 * (number % 3))  # films that do not reach white
        masks = None
        if number % 2:
            masks = np.where(random.random(shape) < 0.7, 255, 0).astype(np.uint8)
        scale = 1 + 254 * (number % 2)
        augment = Augment(autocontrast=(1.0, 0.0, 2.5)[number % 3], mask_scale=scale)
        check(image, masks, augment)


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_film_whose_contrast_cannot_be_stretched(kind):
    """A pixel that is cut off: what the range is divided by has more than the range in it."""
    image = np.full((S, S), 100, kind)
    image[3, 4] += 1
    check(image, None, Augment())


def check(image, masks, augment):
    """Compare view and mask of one film."""
    view, region = expected(image, masks, augment)
    deep = image.dtype == np.uint16
    made, covered = View(augment, S)(
        torch.from_numpy(image.astype(np.int64))[None],
        torch.tensor([deep]),
        None if masks is None else torch.from_numpy(masks.astype(np.int64))[None],
    )
    # Deep films: OpenCV's sums between pixels differ by a level where the processor fuses them.
    allowed = 2e-5 * augment.mask_scale if deep or masks is not None else 0.0
    assert np.abs(made[0, 0].numpy() - view).max() <= allowed, image.shape
    assert np.abs(covered[0, 0].numpy() - region).max() <= 1e-7, image.shape
