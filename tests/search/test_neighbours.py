"""Exact neighbours: float64 formula, offsets, ties, outliers, batch and thread independence."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from selftaught.errors import InputError
from selftaught.search import exact_knn, flat, knn, knn_score


def brute(queries, database, k):
    """Distances and rows by the definition, in float64, ties by row number."""
    q, x = np.asarray(queries, np.float64), np.asarray(database, np.float64)
    squared = ((q[:, None] - x[None]) ** 2).sum(-1)
    rows = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.sqrt(np.take_along_axis(squared, rows, 1)), rows


def data(n, d, seed=0, regime="broad"):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d))
    if regime == "offset":
        x = 1e4 + x
    elif regime == "collapsed":
        groups = 100 * np.random.default_rng(99).standard_normal((7, d))
        x = groups[rng.integers(0, 7, n)] + 0.01 * x
    elif regime == "outlier":
        x[3] *= 1e6
    elif regime == "duplicates":
        distinct = np.random.default_rng(99).standard_normal((20, d))
        x = distinct[rng.integers(0, 20, n)]
    elif regime == "grid":
        x = np.round(x)
    return x.astype(np.float32)


REGIMES = ["broad", "offset", "collapsed", "outlier", "duplicates", "grid"]


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(("n", "d", "k"), [(1500, 17, 100), (1300, 1, 5), (400, 130, 1)])
def test_equals_the_definition(regime, n, d, k):
    x = data(n, d, regime=regime)
    q = np.concatenate([data(40, d, seed=1, regime=regime), x[:10]])
    distances, rows = knn(q, x, k)
    wanted, wanted_rows = brute(q, x, k)
    assert distances.dtype == torch.float32 and rows.dtype == torch.int64
    np.testing.assert_allclose(distances.numpy(), wanted, rtol=1e-6, atol=0)
    np.testing.assert_array_equal(rows.numpy(), wanted_rows)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_query_scores_the_same_in_any_company(regime):
    # FAISS switches from differences to a matrix product at 128,000 numbers asked at once.
    x, q = data(1500, 64, regime=regime), data(2010, 64, seed=1, regime=regime)
    together = knn_score(q, x, 20)
    np.testing.assert_allclose(together[:50], brute(q[:50], x, 20)[0].mean(1), rtol=1e-6)
    assert torch.equal(together[:3], knn_score(q[:3], x, 20))
    assert torch.equal(together[1999:2000], knn_score(q[1999:2000], x, 20))
    assert torch.equal(together[1000:].flip(0), knn_score(q[:999:-1].copy(), x, 20))


def test_threads_change_nothing():
    x, q = data(3000, 32, regime="offset"), data(9000, 32, seed=1, regime="offset")
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(knn(q, x, 10))
    finally:
        torch.set_num_threads(threads)
    for distances, rows in found[1:]:
        assert torch.equal(distances, found[0][0]) and torch.equal(rows, found[0][1])


def test_the_callers_faiss_threads_are_left_alone():
    import faiss

    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(2)
    try:
        knn(data(5, 8), data(500, 8), 3)
        assert faiss.omp_get_max_threads() == 2
    finally:
        faiss.omp_set_num_threads(before)


def test_few_candidates_and_all_rows_agree(monkeypatch):
    x, q = data(1500, 9, regime="collapsed"), data(30, 9, seed=1, regime="collapsed")
    wanted = knn(q, x, 20)
    monkeypatch.setattr(exact_knn, "_certified", lambda *arguments: arguments[4])
    found = knn(q, x, 20)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


def test_equal_distances_are_ordered_by_row():
    squared, rows = exact_knn.best(np.array([[1.0, 1, 0, 1]]), np.array([[7, 3, 5, 4]]), 3)
    assert rows.tolist() == [[5, 3, 4]] and squared.tolist() == [[0, 1, 1]]


def test_broad_data_need_no_second_search(monkeypatch):
    searches = []
    original = exact_knn._certified

    def counted(*arguments):
        left = original(*arguments)
        searches.append(len(left))
        return left

    monkeypatch.setattr(exact_knn, "_certified", counted)
    knn(data(500, 64, seed=1), data(5000, 64), 100)
    assert searches[0] == 0


def test_scores_are_the_mean_of_the_k_distances():
    x, q = data(700, 33), data(50, 33, seed=1)
    wanted = brute(q, x, 100)[0].mean(1)
    np.testing.assert_allclose(knn_score(q, x).numpy(), wanted, rtol=1e-6)


def test_fewer_rows_than_k_use_all_of_them():
    x, q = data(30, 5), data(4, 5, seed=1)
    np.testing.assert_allclose(knn_score(q, x, 100).numpy(), brute(q, x, 30)[0].mean(1), rtol=1e-6)
    with pytest.raises(ValueError, match="k=31: must be 1 to 30"):
        knn(q, x, 31)


def test_tensors_half_precision_and_float64_are_accepted():
    x, q = data(600, 16), data(7, 16, seed=1)
    wanted = knn_score(q, x, 10)
    half = knn_score(torch.from_numpy(q).half(), torch.from_numpy(x).half(), 10)
    torch.testing.assert_close(half, wanted, rtol=2e-3, atol=0)
    far = x.astype(np.float64) + 1e9
    for rows in (far, far.astype(np.float32)):
        wanted = brute(rows[:7], far, 10)[0].mean(1)
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
    for function in (knn, knn_score):
        with pytest.raises(ValueError, match=message):
            function(queries, database, k)


def test_missing_faiss_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"pip install selftaught\[train\]"):
        flat.load_faiss()


def test_importing_the_package_does_not_load_faiss():
    code = "import selftaught.search, sys; print('faiss' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
