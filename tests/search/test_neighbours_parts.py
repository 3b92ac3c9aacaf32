"""100-NN over parts and ranks: the scores of one array, bit for bit; inverted lists; errors."""

import numpy as np
import pytest
import torch

from selftaught.search import chunks, knn, knn_score, knn_score_with_report, partial_knn
from tests.search.ranks import on_ranks, part
from tests.search.test_neighbours import REGIMES, brute, data


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("backend", ["native", "faiss"])
def test_every_backend_finds_the_same_rows(regime, backend):
    x, q = data(1500, 24, regime=regime), data(60, 24, seed=1, regime=regime)
    distances, rows = knn(q, x, 40, backend=backend)
    wanted, wanted_rows = brute(q, x, 40)
    np.testing.assert_array_equal(rows.numpy(), wanted_rows)
    np.testing.assert_allclose(distances.numpy(), wanted, rtol=1e-6, atol=0)


@pytest.mark.parametrize("setting", ["highest", "high", "medium"])
def test_a_coarser_product_setting_changes_no_result(setting):
    x, q = data(1500, 24), data(60, 24, seed=1)
    wanted, before = knn(q, x, 40), torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(setting)
    try:
        found = knn(q, x, 40)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found[0], wanted[0]) and torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("regime", ["broad", "collapsed", "duplicates", "grid"])
def test_parts_of_any_size_give_the_same_bits(monkeypatch, regime, tmp_path):
    x, q = data(700, 9, regime=regime), data(30, 9, seed=1, regime=regime)
    scores, (distances, rows) = knn_score(q, x, 50), knn(q, x, 50)
    divided = [x[:3], x[3:3], torch.from_numpy(x[3:600]), x[600:]]
    assert torch.equal(knn_score(q, divided, 50), scores)
    assert torch.equal(knn_score(q, iter(divided), 50), scores)
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 100 * x[:1].nbytes)
    assert len(list(chunks.parts(mapped, 9))) == 7
    assert torch.equal(knn_score(q, mapped, 50), scores)
    found = knn(q, mapped, 50)
    assert torch.equal(found[0], distances) and torch.equal(found[1], rows)


def test_a_mapped_database_is_never_copied_whole(monkeypatch, tmp_path):
    x = data(900, 16)
    np.save(tmp_path / "x.npy", x)
    sizes, original = [], partial_knn.squared_knn

    def seen(queries, table, *arguments):
        sizes.append(len(table))
        return original(queries, table, *arguments)

    monkeypatch.setattr(partial_knn, "squared_knn", seen)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 128 * x[:1].nbytes)
    knn_score(x[:5], np.load(tmp_path / "x.npy", mmap_mode="r"), 10)
    assert max(sizes) == 128 and sum(sizes) == 900


def test_fewer_rows_than_k_in_every_part():
    x, q = data(40, 5), data(6, 5, seed=1)
    wanted = brute(q, x, 40)[0].mean(1)
    np.testing.assert_allclose(knn_score(q, [x[:7], x[7:]], 100).numpy(), wanted, rtol=1e-6)


def test_inverted_lists_report_what_they_miss():
    x, q = data(6000, 12, regime="collapsed"), data(300, 12, seed=1, regime="collapsed")
    exact = knn_score_with_report(q, x, 20)
    assert exact.method == "exact" and exact.recall == 1 and exact.largest_error == 0
    few = knn_score_with_report(q, x, 20, method="ivf", lists=60, probes=1, sample=100)
    all_lists = knn_score_with_report(q, x, 20, method="ivf", lists=60, probes=60)
    assert all_lists.recall == 1 and torch.equal(all_lists.scores, exact.scores)
    assert few.sampled == 100 and 0.1 < few.recall < 1
    chosen = np.unique(np.linspace(0, 299, 100).astype(int))
    error = ((few.scores - exact.scores).abs() / exact.scores)[chosen].max()
    assert few.largest_error == pytest.approx(float(error), rel=1e-3) and error > 0
    assert (few.scores >= exact.scores - 1e-6).all()  # missed neighbours only lie nearer


def test_inverted_lists_with_too_few_rows_search_exactly():
    x, q = data(200, 6), data(20, 6, seed=1)
    found = knn_score_with_report(q, x, 150, method="ivf", lists=40, probes=1)
    assert torch.equal(found.scores, knn_score(q, x, 150)) and found.recall == 1


ROWS, ASKED = 530, 47


def compare(ranks, rank, group):
    mine, own = part(ROWS, ranks, rank), part(ASKED, ranks, ranks - 1 - rank)
    partial_knn.BATCH = 8  # several rounds, the last of them with nothing from some ranks
    for regime in ("broad", "offset", "duplicates"):
        print(f"{regime} on {ranks}")  # named in the captured output where it fails
        x, q = data(ROWS, 11, regime=regime), data(ASKED, 11, seed=1, regime=regime)
        for k in (100, 1, 2 * ROWS):
            if len(q[own]) or ranks > 1:
                assert torch.equal(
                    knn_score(q[own], x[mine], k, group=group), knn_score(q, x, k)[own]
                )
    if ranks == 2:
        refusals(rank, group)


def refusals(rank, group):
    x = data(50, 4)
    bad = x.copy()
    bad[3] = np.nan
    with pytest.raises(ValueError, match="rank 1: database: row 3"):
        knn_score(x, bad if rank == 1 else x, 5, group=group)
    with pytest.raises(ValueError, match="no rows on any rank"):
        knn_score(x, x[:0], 5, group=group)
    with pytest.raises(ValueError, match="widths differ between ranks"):
        knn_score(x[:, : 3 + rank], x[:, : 3 + rank], 5, group=group)
    with pytest.raises(ValueError, match="rank 0: database: list, must be a tensor"):
        knn_score(x, [x], 5, group=group)


def test_any_number_of_ranks_gives_the_same_bits():
    on_ranks(compare)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "near"}, "method: got 'near'"),
        ({"backend": "gpu"}, "backend: got 'gpu'"),
        ({"method": "ivf", "lists": 31}, "lists=31: must be 1 to 30"),
        ({"method": "ivf", "lists": 3, "probes": 0}, "probes=0"),
        ({"method": "ivf", "sample": 0}, "sample=0"),
        ({"method": "ivf", "group": "world"}, "group: must be None"),
        ({"database": iter([np.zeros((0, 3), "f4")])}, "database: has no rows"),
        ({"database": [np.zeros((2, 4), "f4")]}, "width 3, must be .* 4"),
        ({"database": [np.zeros((2, 3), "f4"), np.full((2, 3), np.nan, "f4")]}, "database: row 2"),
        ({"database": iter([np.zeros((2, 3), "f4")]), "method": "ivf"}, "database: must be a"),
    ],
)
def test_wrong_input_is_named(options, message):
    database = options.pop("database", data(30, 3))
    with pytest.raises(ValueError, match=message):
        knn_score_with_report(data(3, 3), database, 5, **options)
