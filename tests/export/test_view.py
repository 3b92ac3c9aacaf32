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
# Growing, blocks of 2 x 2 and of 3 x 3, blocks in one axis alone, shares of pixels, one pixel wide.
SHAPES = [(17, 9), (24, 20), (48, 48), (72, 72), (48, 36), (31, 57), (101, 77), (90, 1), (3, 5)]


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
        augment = Augment(
            autocontrast=(1.0, 0.0, 2.5)[number % 3], mask_scale=1 + 254 * (number % 2)
        )
        view, region = expected(image, masks, augment)
        made, covered = View(augment, S)(
            torch.from_numpy(image.astype(np.int64))[None],
            torch.tensor([kind is np.uint16]),
            None if masks is None else torch.from_numpy(masks.astype(np.int64))[None],
        )
        # Deep films: OpenCV's sums between pixels differ by a level where the processor fuses them.
        allowed = 0.0 if kind is np.uint8 and masks is None else 2e-5 * augment.mask_scale
        assert np.abs(made[0, 0].numpy() - view).max() <= allowed, shape
        assert np.abs(covered[0, 0].numpy() - region).max() <= 1e-7, shape
