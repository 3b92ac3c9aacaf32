"""Counts, pruning and radii against loops over centres, with empty and tiny clusters."""

import numpy as np
import pytest
import torch

from selftaught.search import occupancy


def test_counts_leave_out_rows_without_a_centre_and_rows_not_counted():
    index = torch.tensor([2, 0, -1, 2, 2, 1])
    assert occupancy.count(index, 5).tolist() == [1, 1, 3, 0, 0]
    counted = torch.tensor([True, False, True, True, False, True])
    assert occupancy.count(index, 5, counted).tolist() == [0, 1, 2, 0, 0]
    assert occupancy.count(index[:0], 2).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("counts", "active", "gamma", "stay"),
    [
        ([100, 5, 4, 0], [1, 1, 1, 1], 0.05, [1, 1, 0, 0]),  # exactly gamma times the most stays
        ([100, 5, 4, 0], [0, 1, 1, 1], 0.05, [0, 1, 1, 0]),  # a removed centre sets no threshold
        ([7, 7, 6, 0], [1, 1, 1, 1], 1.0, [1, 1, 0, 0]),
        ([0, 0, 0], [1, 0, 1], 0.05, [1, 0, 1]),  # nothing counted: nothing known
        ([9, 0, 3], [1, 1, 1], 0.0, [1, 1, 1]),
        ([3, 90], [1, 0], 0.5, [1, 0]),  # the last one stays
        ([2**40, 2**40 - 1], [1, 1], 1.0, [1, 0]),  # beyond float32's integers
    ],
)
def test_pruning(counts, active, gamma, stay):
    found = occupancy.prune(torch.tensor(counts), torch.tensor(active).bool(), gamma)
    assert found.int().tolist() == stay


def test_pruning_keeps_a_centre_whatever_the_counts():
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        counts = torch.randint(0, 4, (6,), generator=generator)
        active = torch.rand(6, generator=generator) < 0.4
        gamma = float(torch.rand((), generator=generator))
        stay = occupancy.prune(counts, active, gamma)
        assert stay.any() == active.any() and not (stay & ~active).any()


def test_figures():
    counts = torch.tensor([30, 10, 0, 60, 7])
    figures = occupancy.occupancy(counts, torch.tensor([1, 1, 1, 1, 0]).bool())
    shares = np.array([0.3, 0.1, 0.6])
    assert figures[:3] == (100, 4, 1) and figures.smallest == 0
    assert figures.largest == pytest.approx(0.6)
    assert figures.effective == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
    assert "1 have none" in occupancy.describe(figures)
    even = occupancy.occupancy(torch.full((8,), 5), torch.ones(8).bool())
    assert even.effective == pytest.approx(8)
    nothing = occupancy.occupancy(torch.zeros(3, dtype=torch.int64), torch.ones(3).bool())
    assert nothing == (0, 3, 3, 0.0, 0, 0.0)


@pytest.mark.parametrize("gamma", [0.0, 0.05, 0.5, 1.0])
def test_radii_are_the_quantiles_of_each_centre(gamma):
    rng = np.random.default_rng(0)
    distances, index = rng.random(400), rng.integers(0, 6, 400)
    index[:9] = -1
    found = occupancy.radii(torch.from_numpy(distances), torch.from_numpy(index), 6, gamma)
    wanted = [np.quantile(distances[index == i], 1 - gamma) for i in range(6)]
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-12)


def test_radii_of_empty_and_single_clusters():
    distances = torch.tensor([1.0, 3.0, 5.0, 0.1, 2.0, 4.0])
    index = torch.tensor([0, 0, 0, 2, 4, 4])
    found = occupancy.radii(distances, index, 6, 0.5)
    # Centres 0 and 4 have radii 3 and 3; 1, 2, 3 and 5 take their median.
    assert found.tolist() == [3.0] * 6
    own = occupancy.radii(distances, index, 6, 0.5, least=1)
    assert own[[0, 2, 4]].tolist() == pytest.approx([3.0, 0.1, 3.0])
    assert own[[1, 3, 5]].tolist() == [3.0] * 3
    alone = occupancy.radii(torch.tensor([2.0, 6.0]), torch.tensor([0, 1]), 3, 0.5)
    assert alone.tolist() == [4.0] * 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: occupancy.prune(torch.ones(2), torch.ones(2).bool(), 1.5), "gamma=1.5"),
        (lambda: occupancy.prune(torch.ones(2), torch.ones(3).bool(), 0.5), "active: must be"),
        (lambda: occupancy.occupancy(torch.ones(2), torch.ones(2)), "active: must be"),
        (lambda: occupancy.radii(torch.ones(2), torch.zeros(2).long(), 1, -1), "gamma=-1"),
        (lambda: occupancy.radii(torch.ones(2), torch.zeros(3).long(), 1, 0), "distances: shape"),
        (lambda: occupancy.radii(torch.ones(2), torch.zeros(2).long(), 1, 0, 0), "least=0"),
        (lambda: occupancy.radii(torch.ones(1), -torch.ones(1).long(), 1, 0), "no row"),
    ],
)
def test_wrong_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
