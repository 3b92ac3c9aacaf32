"""k-means against scikit-learn and float64, with offsets, duplicates, empties and bad input."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from selftaught.search import assign, kmeans
from selftaught.search.kmeans import _open as open_rows
from selftaught.search.lloyd import _AllSums, _levels, lloyd
from selftaught.search.shards import Ranks, Shard


def clusters(n=1200, d=24, groups=12, spread=6.0, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    means = spread * rng.standard_normal((groups, d))
    x = means[rng.integers(0, groups, n)] + rng.standard_normal((n, d)) + offset
    return x.astype(np.float32)


def consistent(result, x):
    """Assignment, counts and inertia are those of the returned centres, in float64."""
    centers = result.centers.double().numpy()
    squared = ((np.asarray(x, np.float64)[:, None] - centers[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(result.assignment.numpy(), squared.argmin(1))
    counts = np.bincount(squared.argmin(1), minlength=len(centers))
    np.testing.assert_array_equal(result.counts.numpy(), counts)
    assert (counts > 0).all()
    np.testing.assert_allclose(result.inertia, squared.min(1).sum(), rtol=1e-6)


@pytest.mark.parametrize(("n", "d", "k"), [(1200, 24, 30), (501, 3, 7), (5000, 1, 4)])
def test_equals_scikit_learn_from_the_same_start(n, d, k):
    x = clusters(n, d)
    start = x[np.random.default_rng(1).choice(n, k, replace=False)]
    result = kmeans(x, k, initial=start, iterations=300)
    peer = KMeans(k, init=start.astype(np.float64), n_init=1, max_iter=300, tol=0)
    peer.fit(x.astype(np.float64))
    assert result.inertia == pytest.approx(peer.inertia_, rel=1e-4)
    np.testing.assert_array_equal(result.assignment.numpy(), peer.labels_)
    np.testing.assert_allclose(result.centers.numpy(), peer.cluster_centers_, atol=1e-4)
    consistent(result, x)


def test_fixed_number_of_iterations_follows_the_definition():
    x = clusters(900, 10).astype(np.float64)
    start = x[:40].copy()
    result = kmeans(x, 40, initial=start, iterations=3)
    for _ in range(3):
        nearest = ((x[:, None] - start[None]) ** 2).sum(-1).argmin(1)
        start = np.stack([x[nearest == i].mean(0) for i in range(40)])
    np.testing.assert_allclose(result.centers.numpy(), start, rtol=1e-5, atol=1e-5)


def test_own_start_is_as_good_as_scikit_learns():
    x = clusters(2000, 16, groups=40)
    ours = np.median([kmeans(x, 40, seed=s).inertia for s in range(5)])
    peers = [KMeans(40, n_init=1, random_state=s, max_iter=50).fit(x).inertia_ for s in range(5)]
    assert ours < 1.25 * np.median(peers)


def test_all_samples_count_not_a_subsample():
    # 256 per centre is what FAISS would take by itself; the last rows alone hold the far group.
    x = np.zeros((3000, 2), np.float32)
    x[-3:] = 100
    result = kmeans(x, 2)
    assert sorted(result.centers[:, 0].tolist()) == [0, 100]
    assert sorted(result.counts.tolist()) == [3, 2997]


def test_an_offset_changes_nothing_but_the_centres():
    near, far = clusters(1500, 16), clusters(1500, 16, offset=1e4)
    # float32 at 1e4 keeps steps of 1e-3, so compare on the same rounded data.
    near = (far.astype(np.float64) - 1e4).astype(np.float32)
    a, b = kmeans(near, 20, seed=3), kmeans(far, 20, seed=3)
    assert torch.equal(a.assignment, b.assignment)
    assert a.inertia == pytest.approx(b.inertia, rel=1e-5)
    torch.testing.assert_close(a.centers + 1e4, b.centers)
    consistent(b, far)


def test_collapsed_groups_keep_their_own_centres():
    rng = np.random.default_rng(0)
    groups = 100 * rng.standard_normal((10, 64))
    x = (groups[np.arange(1000) % 10] + 1e-3 * rng.standard_normal((1000, 64))).astype(np.float32)
    result = kmeans(x, 10, restarts=3)
    assert result.counts.tolist() == [100] * 10
    assert result.inertia == pytest.approx(1000 * 64 * 1e-6, rel=0.1)


def test_same_seed_same_result_and_threads_change_nothing():
    x = clusters(9000, 20)
    threads, found = torch.get_num_threads(), []
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    try:
        for number in (1, 2, 1):
            torch.set_num_threads(number)
            found.append(kmeans(x, 25, seed=5, iterations=8))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other.centers, found[0].centers)
        assert torch.equal(other.assignment, found[0].assignment)
        assert other.inertia == found[0].inertia
    assert not torch.equal(kmeans(x, 25, seed=6, iterations=8).centers, found[0].centers)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_restarts_return_the_best():
    x = clusters(600, 8, groups=30, spread=0.5)
    single = kmeans(x, 30, seed=2)
    several = kmeans(x, 30, seed=2, restarts=6)
    assert several.inertia < single.inertia
    consistent(several, x)


def test_one_centre_is_the_mean():
    x = clusters(777, 5, offset=1e4)
    result = kmeans(x, 1)
    np.testing.assert_allclose(result.centers[0].numpy(), x.astype(np.float64).mean(0), rtol=1e-7)
    assert result.counts.tolist() == [777]
    consistent(result, x)


def test_more_centres_than_samples():
    x = clusters(5, 3)
    with pytest.raises(ValueError, match="k=6: only 5 samples"):
        kmeans(x, 6)
    result = kmeans(x, 6, allow_fewer=True)
    assert result.centers.shape == (5, 3) and result.inertia == pytest.approx(0, abs=1e-9)
    assert sorted(result.assignment.tolist()) == [0, 1, 2, 3, 4]
    assert kmeans(x, 5).centers.shape == (5, 3)


@pytest.mark.timeout(60)
def test_fewer_distinct_samples_than_centres_keep_the_distinct_ones():
    distinct = clusters(50, 8)
    x = distinct[np.arange(1000) % 50]
    result = kmeans(x, 100)
    assert result.centers.shape == (50, 8)
    assert result.counts.tolist() == [20] * 50
    assert result.inertia == pytest.approx(0, abs=1e-6)
    given = kmeans(x[:40] * 0 + np.repeat(distinct[:2], 20, axis=0), 4, initial=distinct[:4])
    assert given.counts.tolist() == [20, 20]
    assert kmeans(np.full((30, 4), 7, np.float32), 3).centers.tolist() == [[7, 7, 7, 7]]


def test_an_empty_cluster_moves_to_the_farthest_sample():
    x = clusters(400, 6, groups=4)
    start = np.concatenate([x[:3], np.full((2, 6), 1e3, np.float32)])
    result = kmeans(x, 5, initial=start)
    assert len(result.centers) == 5 and result.centers.abs().max() < 100
    consistent(result, x)
    repeated = kmeans(x, 4, initial=np.repeat(x[:1], 4, axis=0))
    assert len(repeated.centers) == 4
    consistent(repeated, x)


def test_bfloat16_and_tensors_that_need_gradients():
    x = torch.from_numpy(clusters(300, 6)).bfloat16().requires_grad_()
    consistent(kmeans(x, 4), x.detach().float().numpy())


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (np.zeros((5, 2), "f4"), 0, {}, "k=0"),
        (np.zeros((5, 2), "f4"), 1, {"iterations": 0}, "iterations=0"),
        (np.zeros((5, 2), "f4"), 1, {"restarts": 0}, "restarts=0"),
        (np.zeros((5, 2), "f4"), 1, {"seed": -1}, "seed=-1"),
        (np.zeros((0, 2), "f4"), 1, {}, r"x: shape \(0, 2\)"),
        (np.zeros((5, 2), int), 1, {}, "x: torch.int64"),
        (np.array([[0.0], [np.nan]]), 1, {}, "x: row 1"),
        (np.array([[0.0], [-np.inf]]), 1, {}, "x: row 1"),
        (np.zeros((5, 2), "f4"), 2, {"initial": np.zeros((3, 2), "f4")}, "initial: shape"),
        (np.zeros((5, 2), "f4"), 2, {"initial": np.zeros((2, 2), "f4"), "restarts": 2}, "initial"),
    ],
)
def test_wrong_input_is_named(x, k, options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(x, k, **options)


def faiss_inertia(x, start, iterations):
    """FAISS's own k-means from `start`, over all rows, inertia in float64."""
    import faiss

    peer = faiss.Clustering(x.shape[1], len(start))
    peer.niter, peer.max_points_per_centroid, peer.min_points_per_centroid = iterations, 10**9, 1
    faiss.copy_array_to_vector(start.astype(np.float32).ravel(), peer.centroids)
    peer.train(x, faiss.IndexFlatL2(x.shape[1]))
    centers = faiss.vector_to_array(peer.centroids).reshape(start.shape).astype(np.float64)
    squared = ((x.astype(np.float64)[:, None] - centers[None]) ** 2).sum(-1)
    return squared.min(1).sum()


@pytest.mark.parametrize("backend", ["native", "faiss"])
@pytest.mark.parametrize("kind", ["groups", "noise", "offset", "skewed", "collapsed", "duplicates"])
def test_inertia_is_at_most_that_of_faiss(kind, backend):
    rng = np.random.default_rng(7)
    x = clusters(900, 12, groups=25, spread=1.0)
    if kind == "noise":
        x = rng.standard_normal((900, 12)).astype("f4")
    elif kind == "offset":
        x = x + np.float32(50)
    elif kind == "skewed":
        x = np.concatenate([x[:20] * 30, 0.1 * x[20:]])
    elif kind == "collapsed":
        x = clusters(900, 12, groups=25, spread=5000.0)
    elif kind == "duplicates":
        x = x[np.arange(900) % 60]
    start = x[rng.choice(900, 25, replace=False)]
    found = kmeans(x, 25, initial=start, iterations=25, backend=backend)
    consistent(found, x)
    assert found.inertia <= 1.01 * faiss_inertia(x, start, 25) + 1e-6


def test_splitting_from_starts_that_leave_centres_empty_is_as_good_as_faiss():
    ratios = []
    for seed in range(9):
        rng, x = np.random.default_rng(seed), clusters(900, 12, groups=25, spread=1.0, seed=seed)
        start = x[rng.choice(900, 25, replace=False)]
        start[5:] = start[4] + 1e-3 * rng.standard_normal((20, 12)).astype("f4")
        found = kmeans(x, 25, initial=start, iterations=25, empty="split")
        ratios.append(found.inertia / faiss_inertia(x, start, 25))
    # Which of many optima a start falls into is chance: 0.97 to 1.03 over 30 seeds.
    assert np.median(ratios) <= 1.01 and max(ratios) < 1.05


@pytest.mark.parametrize("kind", ["groups", "near ties"])
def test_backends_agree(kind):
    x = clusters(700, 9)
    if kind == "near ties":
        x = np.round(2 * x) / 2 + np.float32(1000)
    native, through_faiss = (kmeans(x, 20, seed=1, backend=b) for b in ("native", "faiss"))
    assert native.inertia == pytest.approx(through_faiss.inertia, rel=1e-2)
    if kind == "groups":
        assert torch.equal(native.assignment, through_faiss.assignment)


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


@pytest.mark.parametrize(
    ("empty", "left"), [("farthest", 5), ("split", 5), ("keep", 5), ("drop", 3)]
)
@pytest.mark.parametrize("backend", ["native", "faiss"])
def test_policies_for_an_empty_cluster(empty, left, backend):
    x = clusters(400, 6, groups=4)
    far = np.full((2, 6), 1e3, np.float32)
    start = np.concatenate([x[:3], far])
    result = kmeans(x, 5, initial=start, empty=empty, iterations=30, backend=backend)
    assert len(result.centers) == left and result.counts.sum() == 400
    if empty == "keep":
        assert torch.equal(result.centers[3:], torch.from_numpy(far))
        assert result.counts[3:].tolist() == [0, 0]
    else:
        consistent(result, x)
    if empty == "drop":
        assert result.inertia == pytest.approx(kmeans(x, 3, initial=x[:3], iterations=30).inertia)


def test_splitting_repeated_samples_ends():
    x = clusters(4, 3)[np.arange(40) % 4]
    result = kmeans(x, 9, initial=np.repeat(x[:1], 9, axis=0), empty="split", iterations=500)
    assert 1 <= len(result.centers) <= 4 and result.counts.sum() == 40


def test_sums_do_not_depend_on_the_order_of_the_samples():
    rng = np.random.default_rng(3)
    x = clusters(3000, 7)
    x[:, 2] *= 1e6
    x[:, 3] *= 1e-6
    # More bits between the values than float64 has, and a mean of 0 that leaves them as they are.
    x[:1500, 4] *= 10 ** rng.uniform(-12, 0, 1500)
    x[1500:, 4] = -x[:1500, 4]
    start, order = x[:20].copy(), rng.permutation(3000)
    found, shuffled = kmeans(x, 20, initial=start), kmeans(x[order], 20, initial=start)
    assert torch.equal(found.centers, shuffled.centers) and found.inertia == shuffled.inertia
    assert torch.equal(found.assignment[order], shuffled.assignment)
    for weights in (None, rng.random(3000)):
        centers = []
        for rows in (np.arange(3000), order):
            held = None if weights is None else weights[rows]
            data = open_rows(torch.from_numpy(x[rows]), held, None, Ranks())
            begin = torch.from_numpy(start) - data.origin
            centers.append(lloyd(data.shard, begin, 8, assign.native, "farthest"))
        assert torch.equal(*centers)  # in float64, where a rounded sum would show


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"empty": "merge"}, "empty: got 'merge'"),
        ({"backend": "gpu"}, "backend: got 'gpu'"),
        ({"weights": np.ones(4)}, r"weights: shape \(4,\), must be \(5,\)"),
        ({"weights": np.array([1, 1, -1, 1, 1])}, "weights: row 2 is -1"),
        ({"weights": np.array([1, np.inf, 1, 1, 1])}, "weights: row 1 is inf"),
        ({"weights": np.zeros(5)}, "weights: all are 0"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        kmeans(np.arange(10, dtype="f4").reshape(5, 2), 2, **options)


def test_faiss_assigns_near_ties_as_float64_does_in_any_batch():
    rng = np.random.default_rng(0)
    centers = np.repeat(100 * rng.standard_normal((20, 40)), 3, axis=0)
    centers = torch.from_numpy(centers + 1e-3 * rng.standard_normal(centers.shape)).float()
    x = centers[torch.from_numpy(rng.integers(0, 60, 4096))]  # as many as FAISS multiplies
    x = x + 1e-2 * torch.from_numpy(rng.standard_normal(x.shape)).float()
    squared = (x.double()[:, None] - centers.double()[None]).square().sum(-1)
    assert torch.equal(assign.faiss(x, centers), squared.argmin(1))
    assert torch.equal(assign.faiss(x[:7], centers), squared[:7].argmin(1))
