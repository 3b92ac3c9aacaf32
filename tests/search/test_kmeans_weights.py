"""k-means with weights, and with rows and weights of extreme size."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from selftaught.search import kmeans
from selftaught.search.lloyd import _AllSums, _levels
from selftaught.search.shards import Ranks, Shard
from tests.search.clusters import clusters


def test_weights_count_as_repetitions():
    x, rng = clusters(400, 6), np.random.default_rng(0)
    weights = rng.integers(0, 4, 400)
    start = x[weights > 0][:10]
    weighted = kmeans(x, 10, initial=start, weights=weights)
    repeated = kmeans(np.repeat(x, weights, axis=0), 10, initial=start)
    np.testing.assert_allclose(weighted.centers, repeated.centers, rtol=1e-5, atol=1e-6)
    assert weighted.inertia == pytest.approx(repeated.inertia, rel=1e-6)
    assert weighted.counts.sum() == 400
    halves = kmeans(x, 10, initial=start, weights=weights / 2)
    torch.testing.assert_close(halves.centers, weighted.centers)
    peer = KMeans(10, init=start.astype(np.float64), n_init=1, max_iter=50, tol=0)
    peer.fit(x.astype(np.float64), sample_weight=weights)
    assert weighted.inertia == pytest.approx(peer.inertia_, rel=1e-4)


@pytest.mark.parametrize("heavy", [1e6, 1e9, 1e13, 1e30])
def test_light_samples_count_beside_a_heavy_one(heavy):
    # Its grid is too coarse for the others' sums; at a centre, it adds nothing to the inertia.
    x = clusters(900, 8, spread=1.0)
    x[0] = 50
    weights = np.concatenate([[heavy], np.random.default_rng(0).random(899)])
    result = kmeans(x, 12, initial=x[:12], weights=weights, iterations=300)
    peer = KMeans(12, init=x[:12].astype(np.float64), n_init=1, max_iter=300, tol=0)
    light = peer.fit(x.astype(np.float64), sample_weight=np.minimum(weights, 1e3))
    np.testing.assert_array_equal(result.assignment.numpy(), light.labels_)
    np.testing.assert_allclose(result.centers, light.cluster_centers_, rtol=1e-4, atol=1e-5)
    assert result.inertia == pytest.approx(light.inertia_, rel=1e-5)


def test_a_light_sample_counts_the_same_in_the_mean_and_in_its_weight():
    # So many rows leave 11 bits to a weight 2^-10 of the heaviest; only the rows' own sums are off.
    x = 3 + torch.randn(2000, 5, generator=torch.Generator().manual_seed(0))
    weights = torch.full((2000,), 0.7 * 2**-9, dtype=torch.float64)
    weights[0] = 0.99
    scale = torch.ones(5, dtype=torch.float64)
    shard = Shard(x=x, scale=scale, weights=weights, first=0, rows=2**30 - 1, ranks=Ranks())
    levels = _levels(shard)
    assert len(levels) == 1
    many = replace(shard, weights=0.9 ** torch.arange(2000.0, dtype=torch.float64))
    kept = sum(level.weights for level in _levels(many))
    torch.testing.assert_close(kept, many.weights, rtol=2.0**-11, atol=0)
    sums, clusters = _AllSums(levels, 2), (torch.arange(2000) > 0).long()
    sums.move(torch.full_like(clusters, -1), clusters)
    means = sums.means(torch.zeros(2, 5).double())
    torch.testing.assert_close(means[1], x[1:].double().mean(0), rtol=0, atol=5e-5)


@pytest.mark.parametrize("power", [-1000, -200, 900])
def test_the_unit_of_weights_changes_only_that_of_the_inertia(power):
    x, weights = clusters(300, 5), np.random.default_rng(0).random(300)
    plain, other = (kmeans(x, 7, weights=w) for w in (weights, weights * 2.0**power))
    assert torch.equal(plain.centers, other.centers)
    assert other.inertia == plain.inertia * 2.0**power > 0


@pytest.mark.parametrize("backend", ["native", "faiss"])
@pytest.mark.parametrize("power", [-140, -90, -70, 45])
def test_the_unit_of_the_samples_changes_nothing(power, backend):
    # Squares of most of these are 0 in float32; as multiples of 1 / 8 none loses a bit itself.
    x = np.round(8 * clusters(500, 6, spread=1.0)) / 8
    start = x[:9]
    tiny, scaled = (x.astype("f8") * 2.0**power).astype("f4"), start.astype("f8") * 2.0**power
    plain = kmeans(x, 9, initial=start, iterations=200, backend=backend)
    other = kmeans(tiny, 9, initial=scaled, iterations=200, backend=backend)
    assert torch.equal(plain.assignment, other.assignment)
    step = 2.0**-149 if power == -140 else 0.0  # of float32 there
    np.testing.assert_allclose(
        other.centers.double(), plain.centers.double() * 2.0**power, rtol=2e-7, atol=step
    )
    assert other.inertia == pytest.approx(plain.inertia * 2.0**power * 2.0**power, rel=1e-3)


def test_a_start_far_from_tiny_samples_stays_as_it_is():
    x = (clusters(200, 4) * 1e-24).astype("f4")
    start = np.concatenate([x[:2], np.full((1, 4), 1e15, "f4")])
    result = kmeans(x, 3, initial=start, empty="keep")
    assert result.centers[2].tolist() == start[2].tolist() and result.counts[2] == 0
    start[2] = 50
    result, near = kmeans(x, 3, initial=start, empty="keep"), kmeans(x, 2, initial=x[:2])
    assert torch.equal(result.centers[:2], near.centers) and result.counts.min() == 0


def test_distances_beyond_float32_are_compared():
    x = torch.tensor([[-9e16], [9e16], [8e16], [-8e16]]).repeat(1, 20_000)
    result = kmeans(x, 2, initial=x[:2])
    assert result.assignment.tolist() == [0, 1, 1, 0]
    assert result.inertia == pytest.approx(4 * 20_000 * 0.25e32, rel=1e-5)


def test_samples_without_weight_start_nothing():
    x = np.concatenate([clusters(50, 4), np.full((50, 4), 900, "f4")])
    result = kmeans(x, 6, weights=np.repeat([1.0, 0.0], 50), restarts=5)
    assert result.centers.abs().max() < 100 and result.counts.sum() == 100
