"""Noise of methods: standard, and a function of seed, epoch and image alone."""

import numpy as np
import pytest
import torch
from scipy import stats

from selftaught.methods import noise


@pytest.mark.parametrize(
    ("draw", "law"), [(noise.normal, stats.norm), (noise.uniform, stats.uniform)]
)
def test_it_is_what_its_name_says(draw, law):
    values = draw(1, 2, torch.arange(40), (1, 16, 16))
    assert values.shape == (40, 1, 16, 16) and values.dtype == torch.float32
    assert stats.kstest(values.flatten().numpy(), law.cdf).pvalue > 0.001
    assert abs(np.corrcoef(values[:-1].flatten(), values[1:].flatten())[0, 1]) < 0.05


def test_an_image_has_the_same_whatever_batch_it_is_in():
    together = noise.normal(1, 2, [7, 3, 9], (4,))
    assert torch.equal(noise.normal(1, 2, torch.tensor([3]), (4,)), together[1:2])
    others = [noise.normal(2, 2, [3], (4,)), noise.normal(1, 3, [3], (4,)), together[:1]]
    assert all(not torch.equal(one, together[1:2]) for one in others)
    assert noise.uniform(1, 0, [], (2,)).shape == (0, 2)
