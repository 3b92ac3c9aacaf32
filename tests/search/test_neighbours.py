"""Mean distance to the nearest rows: float64, offsets, ties, outliers, extremes, company."""

import sys

import numpy as np
import pytest
import torch

from selftaught.search import knn_score, neighbours


def brute(queries, database, k):
    """The score by the definition, in float64."""
    q, x = np.asarray(queries, np.float64), np.asarray(database, np.float64)
    squared = ((q[:, None] - x[None]) ** 2).sum(-1)
    return np.sqrt(np.sort(squared, axis=1)[:, :k]).mean(1)


def data(n, d, seed=0, regime="broad"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    groups = np.random.default_rng(99).standard_normal((7, d))
    if regime == "offset":
        x = 1e4 + x
    elif regime == "collapsed":
        x = 100 * groups[rng.integers(0, 7, n)] + 0.01 * x
    elif regime == "collapsed to rounding":
        x = 1e4 * groups[rng.integers(0, 7, n)] + 0.01 * x
    elif regime == "outlier":
        x[3] *= 1e6
    elif regime == "duplicates":
        x = np.random.default_rng(99).standard_normal((3, d))[rng.integers(0, 3, n)]
    elif regime == "grid":
        x = np.round(x)
    elif regime in ("tiny", "huge"):
        x = x * (1e-25 if regime == "tiny" else 1e15)
    elif regime == "constant":
        x[:] = 3
    return x.astype(np.float32)


REGIMES = [
    *("broad", "offset", "collapsed", "collapsed to rounding", "outlier", "duplicates", "grid"),
    *("tiny", "huge", "constant"),
]


@pytest.mark.parametrize("faiss", [True, False])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("n", "d", "k"), [(1500, 17, 100), (1300, 1, 5), (400, 130, 1)])
def test_equals_the_definition(regime, n, d, k, faiss, monkeypatch):
    if not faiss:
        monkeypatch.setitem(sys.modules, "faiss", None)
        assert neighbours.load_faiss() is None
    x = data(n, d, regime=regime)
    q = np.concatenate([data(40, d, seed=1, regime=regime), x[:10]])
    found = knn_score(q, x, k)
    assert found.dtype == torch.float32 and found.shape == (50,)
    np.testing.assert_allclose(found.numpy(), brute(q, x, k), rtol=1e-6, atol=0)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_query_scores_the_same_in_any_company(regime):
    x, q = data(1500, 64, regime=regime), data(2010, 64, seed=1, regime=regime)
    together = knn_score(q, x, 20)
    np.testing.assert_allclose(together[:50], brute(q[:50], x, 20), rtol=1e-6)
    assert torch.equal(together[:3], knn_score(q[:3], x, 20))
    assert torch.equal(together[1999:2000], knn_score(q[1999:2000], x, 20))
    assert torch.equal(together[1000:].flip(0), knn_score(q[:999:-1].copy(), x, 20))


def test_threads_change_nothing_and_the_callers_are_left_alone():
    faiss = pytest.importorskip("faiss")
    x, q = data(3000, 32, regime="offset"), data(9000, 32, seed=1, regime="offset")
    threads, found = torch.get_num_threads(), []
    before = faiss.omp_get_max_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            faiss.omp_set_num_threads(4)
            found.append(knn_score(q, x, 10))
            assert faiss.omp_get_max_threads() == 4
    finally:
        torch.set_num_threads(threads)
        faiss.omp_set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_a_row_that_a_proposer_hides_is_found_by_the_next(monkeypatch):
    """Products in float32 so far off that the nearest rows are not proposed at all."""
    x, q = data(1500, 24, regime="collapsed"), data(20, 24, seed=1, regime="collapsed")

    def wrong(queries, table, m, *, direct, kind=torch.float64):
        if kind != torch.float32:
            return by_torch(queries, table, m, direct=direct)
        squared = ((queries[:, None] - table[None]) ** 2).sum(-1)
        rows = np.argsort(squared, axis=1)[:, 30 : 30 + m]
        return np.take_along_axis(squared, rows, 1), np.ascontiguousarray(rows)

    by_torch = neighbours._by_torch
    monkeypatch.setattr(neighbours, "_by_torch", wrong)
    np.testing.assert_allclose(knn_score(q, x, 20).numpy(), brute(q, x, 20), rtol=1e-6)


def test_broad_data_need_no_second_search(monkeypatch):
    kinds, by_torch = [], neighbours._by_torch

    def noted(*arguments, kind=torch.float64, **named):
        kinds.append(kind)
        return by_torch(*arguments, kind=kind, **named)

    monkeypatch.setattr(neighbours, "_by_torch", noted)
    knn_score(data(500, 64, seed=1), data(5000, 64), 100)
    assert kinds == [torch.float32]


def test_fewer_rows_than_k_use_all_of_them():
    x, q = data(30, 5), data(4, 5, seed=1)
    for k in (29, 30, 100):
        np.testing.assert_allclose(knn_score(q, x, k).numpy(), brute(q, x, k), rtol=1e-6)
    assert knn_score(x[:1], x[:1]).tolist() == [0]


def test_equals_scikit_learn_with_the_default_k():
    from sklearn.neighbors import NearestNeighbors

    x, q = data(700, 33), data(50, 33, seed=1)
    peer = NearestNeighbors(n_neighbors=100).fit(x.astype(np.float64))
    wanted = peer.kneighbors(q.astype(np.float64))[0].mean(1)
    np.testing.assert_allclose(knn_score(q, x).numpy(), wanted, rtol=1e-6)


def test_tensors_half_precision_and_float64_are_accepted():
    x, q = data(600, 16), data(7, 16, seed=1)
    half = [torch.from_numpy(rows).half() for rows in (q, x)]
    wanted = brute(*(rows.double().numpy() for rows in half), 10)
    np.testing.assert_allclose(knn_score(*half, 10).numpy(), wanted, rtol=1e-6)
    far = x.astype(np.float64) + 1e9
    for rows in (far, far.astype(np.float32)):
        wanted = brute(rows[:7], far, 10)
        np.testing.assert_allclose(knn_score(rows[:7], far, 10).numpy(), wanted, rtol=1e-6)


@pytest.mark.parametrize(
    ("queries", "database", "k", "message"),
    [
        (np.zeros((2, 3), "f4"), np.zeros((2, 4), "f4"), 1, "width 3, must be .* 4"),
        (np.zeros((0, 3), "f4"), np.zeros((2, 3), "f4"), 1, r"queries: shape \(0, 3\)"),
        (np.zeros((1, 3), "f4"), np.zeros((0, 3), "f4"), 1, r"database: shape \(0, 3\)"),
        (np.zeros(3, "f4"), np.zeros((2, 3), "f4"), 1, r"queries: shape \(3,\)"),
        (np.zeros((1, 3), int), np.zeros((2, 3), "f4"), 1, "queries: torch.int64"),
        (np.zeros((1, 3), "f4"), np.full((2, 3), np.nan, "f4"), 1, "database: row 0"),
        (np.full((1, 3), np.inf, "f4"), np.zeros((2, 3), "f4"), 1, "queries: row 0"),
        (np.full((1, 3), 1e18, "f4"), np.zeros((2, 3), "f4"), 1, "queries: row 0 .* within"),
        (np.zeros((1, 3), "f4"), np.zeros((2, 3), "f4"), 0, "k=0"),
    ],
)
def test_wrong_input_is_named(queries, database, k, message):
    with pytest.raises(ValueError, match=message) as caught:
        knn_score(queries, database, k)
    assert "\n" not in str(caught.value)
