"""k-means over ranks: the bits of one process, whatever each rank holds; errors on all of them."""

import numpy as np
import pytest
import torch

from selftaught.search import kmeans
from tests.search.ranks import on_ranks, part

ROWS = 611


def rows(seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    means = 3 * rng.standard_normal((9, 13))
    return (means[rng.integers(0, 9, ROWS)] + rng.standard_normal((ROWS, 13)) + offset).astype("f4")


def equal(found, wanted, mine):
    assert torch.equal(found.centers, wanted.centers)
    assert torch.equal(found.assignment, wanted.assignment[mine])
    assert torch.equal(found.counts, wanted.counts)
    assert found.inertia == wanted.inertia


def settings():
    """Name, data and options; weights are given for all rows."""
    x, rng = rows(offset=100.0), np.random.default_rng(4)
    far = np.concatenate([x[:5], np.full((3, 13), 1e4, "f4")])
    yield "own start", x, {"k": 15, "seed": 3, "restarts": 2}
    yield "weights", x, {"k": 8, "weights": rng.integers(0, 3, ROWS) * rng.random(ROWS)}
    yield "weights far apart", x, {"k": 8, "weights": 10.0 ** rng.integers(-25, 25, ROWS)}
    yield "tiny", (1e-30 * rows()).astype("f4"), {"k": 8}
    for empty in ("farthest", "split", "keep", "drop"):
        yield empty, x, {"k": 8, "initial": far, "empty": empty, "iterations": 6}
    yield "ties", np.round(rows(1)), {"k": 12, "iterations": 9}
    yield "duplicates", x[np.arange(ROWS) % 7], {"k": 12}
    yield "faiss", x, {"k": 10, "backend": "faiss", "iterations": 5}


def compare(ranks, rank, group):
    mine = part(ROWS, ranks, rank)
    for name, x, options in settings():
        print(f"{name} on {ranks}")  # named in the captured output where one fails
        wanted = kmeans(x, **options)
        if "weights" in options:
            options = options | {"weights": options["weights"][mine]}
        equal(kmeans(x[mine], **options, group=group), wanted, mine)
    if ranks == 3:
        two_kinds(rank, group)
        refusals(rank, group)


def two_kinds(rank, group):
    """Doubles on some ranks make all doubles, but those of an empty rank make none."""
    x = rows(offset=0.1).astype("f8") + 1e-9
    mine = part(ROWS, 3, rank)
    wanted = kmeans(np.where(np.arange(ROWS)[:, None] < ROWS // 2, x.astype("f4"), x), 9)
    equal(kmeans(x[mine].astype("f8" if rank == 2 else "f4"), 9, group=group), wanted, mine)
    wanted = kmeans(x.astype("f4"), 9)
    equal(kmeans(x[mine].astype("f8" if rank == 1 else "f4"), 9, group=group), wanted, mine)


def refusals(rank, group):
    """Every rank raises what is wrong on one."""
    bad = rows()[:50]
    if rank == 1:
        bad[7] = np.nan
    with pytest.raises(ValueError, match="rank 1: x: row 7"):
        kmeans(bad, 3, group=group)
    with pytest.raises(ValueError, match="widths and weights differ"):
        kmeans(rows()[:9, : 5 + (rank == 2)], 3, group=group)
    with pytest.raises(ValueError, match="k=40: only 39 samples"):
        kmeans(rows()[:13], 40, group=group)
    with pytest.raises(ValueError, match="on every rank, must hold a row"):
        kmeans(rows()[:0], 2, group=group)


def test_any_number_of_ranks_gives_the_same_bits():
    on_ranks(compare)
