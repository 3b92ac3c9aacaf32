"""k-means against scikit-learn and float64, with offsets, duplicates, empties and bad input."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from torch.utils._python_dispatch import TorchDispatchMode

from selftaught.search import kmeans
from tests.search.clusters import clusters


def consistent(result, x):
    """Labels, counts and inertia are those of the returned centres, in float64."""
    centers = result.centers.double().numpy()
    squared = ((np.asarray(x, np.float64)[:, None] - centers[None]) ** 2).sum(-1)
    np.testing.assert_array_equal(result.labels.numpy(), squared.argmin(1))
    counts = np.bincount(squared.argmin(1), minlength=len(centers))
    np.testing.assert_array_equal(result.counts.numpy(), counts)
    assert (counts > 0).all()
    np.testing.assert_allclose(result.inertia, squared.min(1).sum(), rtol=1e-6)


@pytest.mark.parametrize(("n", "d", "k"), [(1200, 24, 30), (501, 3, 7), (5000, 1, 4)])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_equals_scikit_learn_from_the_same_start(n, d, k, dtype):
    x = clusters(n, d).astype(dtype)
    start = x[np.random.default_rng(1).choice(n, k, replace=False)]
    result = kmeans(x, k, initial=start, iterations=300)
    peer = KMeans(k, init=start.astype(np.float64), n_init=1, max_iter=300, tol=0)
    peer.fit(x.astype(np.float64))
    assert result.inertia == pytest.approx(peer.inertia_, rel=1e-6)
    np.testing.assert_array_equal(result.labels.numpy(), peer.labels_)
    atol = 1e-5 if dtype == "f4" else 1e-9
    np.testing.assert_allclose(result.centers.numpy(), peer.cluster_centers_, atol=atol)
    assert result.centers.dtype == (torch.float32 if dtype == "f4" else torch.float64)
    consistent(result, x)


@pytest.mark.parametrize("iterations", [1, 2, 3, 12])
def test_so_many_iterations_follow_the_definition(iterations):
    x = clusters(900, 10).astype(np.float64)
    start = x[:40].copy()
    result = kmeans(x, 40, initial=start, iterations=iterations)
    for _ in range(iterations):
        nearest = ((x[:, None] - start[None]) ** 2).sum(-1).argmin(1)
        start = np.stack([x[nearest == i].mean(0) for i in range(40)])
    np.testing.assert_allclose(result.centers.numpy(), start, rtol=1e-9, atol=1e-9)


def test_own_start_is_as_good_as_scikit_learns():
    x = clusters(2000, 16, groups=40)
    ours = np.median([kmeans(x, 40, seed=s).inertia for s in range(5)])
    peers = [KMeans(40, n_init=1, random_state=s, max_iter=50).fit(x).inertia_ for s in range(5)]
    assert ours < 1.25 * np.median(peers)


def test_all_rows_count_not_a_subsample():
    # 256 per centre is what FAISS would take by itself; the last rows alone hold the far group.
    x = np.zeros((3000, 2), np.float32)
    x[-3:] = 100
    result = kmeans(x, 2)
    assert sorted(result.centers[:, 0].tolist()) == [0, 100]
    assert sorted(result.counts.tolist()) == [3, 2997]


def test_an_offset_changes_nothing_but_the_centres():
    far = clusters(1500, 16, offset=1e4)
    # float32 at 1e4 keeps steps of 1e-3, so compare on the same rounded data.
    near = (far.astype(np.float64) - 1e4).astype(np.float32)
    a, b = kmeans(near, 20, seed=3), kmeans(far, 20, seed=3)
    assert torch.equal(a.labels, b.labels)
    assert a.inertia == pytest.approx(b.inertia, rel=1e-5)
    torch.testing.assert_close(a.centers + 1e4, b.centers)
    consistent(b, far)


@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e14])
def test_extreme_sizes_change_nothing_but_the_scale(factor):
    x = clusters(600, 8)
    wanted, found = kmeans(x, 9), kmeans(x.astype(np.float64) * factor, 9)
    assert torch.equal(found.labels, wanted.labels)
    assert found.inertia == pytest.approx(wanted.inertia * factor**2, rel=1e-5)
    single = kmeans((x * np.float32(factor)).astype(np.float32), 9)
    assert torch.equal(single.labels, wanted.labels)
    assert single.inertia == pytest.approx(wanted.inertia * factor**2, rel=1e-4)


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
            assert torch.get_num_threads() == number
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert torch.equal(other.centers, found[0].centers)
        assert torch.equal(other.labels, found[0].labels)
        assert other.inertia == found[0].inertia
    assert not torch.equal(kmeans(x, 25, seed=6, iterations=8).centers, found[0].centers)
    assert torch.equal(torch_state, torch.get_rng_state())
    assert (numpy_state == np.random.get_state()[1]).all()


def test_sums_do_not_depend_on_the_order_of_the_rows():
    x = clusters(3000, 7)
    x[:, 2] *= 1e6
    x[:, 3] *= 1e-6
    start, order = x[:20].copy(), np.random.default_rng(3).permutation(3000)
    # A mean that is its own rounding: the origin must not depend on the order either.
    x -= x.mean(0)
    found, shuffled = kmeans(x, 20, initial=start), kmeans(x[order], 20, initial=start)
    torch.testing.assert_close(found.centers, shuffled.centers, rtol=1e-6, atol=1e-6)
    assert torch.equal(found.labels[order], shuffled.labels)


class Waits(TorchDispatchMode):
    """Counts what the host would wait for on a GPU."""

    count = 0

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.count += op.overloadpacket.__name__ in ("_local_scalar_dense", "nonzero", "bincount")
        return op(*args, **(kwargs or {}))


def test_an_update_waits_for_the_device_twice():
    x = clusters(3000, 16, groups=100, spread=1.0)
    start, counts, found = x[:20].copy(), [], []
    for iterations in (2, 7):
        with Waits() as waits:
            found.append(kmeans(x, 20, initial=start, iterations=iterations).inertia)
        counts.append(waits.count)
    assert found[1] < found[0]
    assert counts[1] - counts[0] <= 2 * 5


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


def test_one_row_and_as_many_centres_as_rows():
    assert kmeans(np.array([[3.0, 4.0]], "f4"), 1).centers.tolist() == [[3, 4]]
    x = clusters(5, 3)
    result = kmeans(x, 5)
    assert result.centers.shape == (5, 3) and result.inertia == pytest.approx(0, abs=1e-9)
    assert sorted(result.labels.tolist()) == [0, 1, 2, 3, 4]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("offset", [0, 1e5])
def test_fewer_distinct_rows_than_centres_keep_the_distinct_ones(offset):
    distinct = clusters(50, 8, offset=offset)
    x = distinct[np.arange(1000) % 50]
    result = kmeans(x, 100)
    assert result.centers.shape == (50, 8)
    assert result.counts.tolist() == [20] * 50
    assert result.inertia == pytest.approx(0, abs=1e-6)
    given = kmeans(x[:40] * 0 + np.repeat(distinct[:2], 20, axis=0), 4, initial=distinct[:4])
    assert given.counts.tolist() == [20, 20]
    assert kmeans(np.full((30, 4), 7, np.float32), 3).centers.tolist() == [[7, 7, 7, 7]]


def test_an_empty_cluster_moves_to_the_farthest_row():
    x = clusters(400, 6, groups=4)
    start = np.concatenate([x[:3], np.full((2, 6), 1e3, np.float32)])
    result = kmeans(x, 5, initial=start)
    assert len(result.centers) == 5 and result.centers.abs().max() < 100
    consistent(result, x)
    repeated = kmeans(x, 4, initial=np.repeat(x[:1], 4, axis=0))
    assert len(repeated.centers) == 4
    consistent(repeated, x)


def test_ties_go_to_the_lowest_centre():
    x = np.array([[-1.0], [0], [1]] * 4, "f4")
    result = kmeans(x, 2, initial=np.array([[-1.0], [1]], "f4"), iterations=1)
    assert result.centers[:, 0].tolist() == [-0.5, 1] and result.labels[:3].tolist() == [0, 0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_tensors_that_need_gradients(dtype):
    x = torch.from_numpy(clusters(300, 6)).to(dtype).requires_grad_()
    result = kmeans(x, 4)
    assert result.centers.dtype == torch.float32 and not result.centers.requires_grad
    consistent(result, x.detach().float().numpy())


@pytest.mark.parametrize("kind", ["groups", "noise", "offset", "skewed", "collapsed", "duplicates"])
def test_inertia_is_at_most_that_of_faiss(kind):
    faiss = pytest.importorskip("faiss")
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
    peer = faiss.Clustering(12, 25)
    peer.niter, peer.max_points_per_centroid, peer.min_points_per_centroid = 25, 10**9, 1
    faiss.copy_array_to_vector(start.ravel(), peer.centroids)
    peer.train(x, faiss.IndexFlatL2(12))
    centers = faiss.vector_to_array(peer.centroids).reshape(start.shape).astype(np.float64)
    theirs = ((x.astype(np.float64)[:, None] - centers[None]) ** 2).sum(-1).min(1).sum()
    found = kmeans(x, 25, initial=start, iterations=25)
    consistent(found, x)
    assert found.inertia <= 1.01 * theirs + 1e-6


@pytest.mark.parametrize(
    ("x", "k", "options", "message"),
    [
        (np.zeros((5, 2), "f4"), 0, {}, "k=0"),
        (np.zeros((5, 2), "f4"), 6, {}, "k=6: only 5 rows"),
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
    with pytest.raises(ValueError, match=message) as caught:
        kmeans(x, k, **options)
    assert "\n" not in str(caught.value)
