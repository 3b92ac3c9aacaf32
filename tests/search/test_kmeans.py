"""k-means against scikit-learn and float64, with offsets, duplicates, empties and bad input."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from selftaught.search import assign, kmeans
from selftaught.search.kmeans import _open as open_rows
from selftaught.search.lloyd import lloyd
from selftaught.search.shards import Ranks
from tests.search.clusters import clusters


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
