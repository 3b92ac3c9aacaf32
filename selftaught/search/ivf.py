"""Neighbours through FAISS's inverted lists: faster in a large database, and not certain."""

import math

import numpy as np

from selftaught.search.exact_knn import best, exact, moved, squared_knn
from selftaught.search.flat import BLOCK, Array, load_faiss, map_blocks, one_thread

PROBED = 0.05


def default_lists(rows: int) -> int:
    """About 4 sqrt(N) lists, and no fewer than FAISS's 39 rows in each to train on."""
    return max(1, min(int(4 * math.sqrt(rows)), rows // 39))


def check(lists: int | None, probes: int | None, rows: int) -> tuple[int, int]:
    """Numbers of lists and of lists searched, with defaults filled in.

    Raises:
        ValueError: lists outside 1 to N, or probes outside 1 to lists.
    """
    lists = default_lists(rows) if lists is None else lists
    if not 1 <= lists <= rows:
        raise ValueError(f"lists={lists}: must be 1 to {rows}, the number of database rows")
    probes = max(8, round(PROBED * lists)) if probes is None else probes
    probes = min(probes, lists) if probes >= 1 else probes
    if probes < 1:
        raise ValueError(f"probes={probes}: must be at least 1")
    return lists, probes


def squared_ivf(
    queries: Array, database: Array, k: int, lists: int, probes: int
) -> tuple[Array, Array]:
    """Squared distances (Q, k) float64 and rows (Q, k) of near rows, nearest first.

    The rows found may not be the nearest; their distances are direct differences. A query whose
    lists hold fewer than k rows is searched exactly.

    Args:
        queries: (Q, D) finite.
        database: (N, D) finite.
        k: 1 to N.
        lists: cells that k-means divides the database into.
        probes: cells searched for a query.

    Raises:
        InputError: faiss is missing.
    """
    faiss = load_faiss()
    table, shift = moved(database, np.float32)
    more = min(k + max(4, k // 4), len(table))  # FAISS's own order is rounded
    with one_thread(faiss):
        index = faiss.IndexIVFFlat(faiss.IndexFlatL2(table.shape[1]), table.shape[1], lists)
        index.train(table)
        index.add(table)
        index.nprobe = probes
    out = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)

    def settle(block: slice) -> None:
        asked = queries[block]
        with one_thread(faiss):
            rows = index.search((asked - shift).astype(np.float32), more)[1]
        found = rows >= 0
        squared = np.where(found, exact(asked, np.maximum(rows, 0), database), np.inf)
        squared, rows = best(squared, rows, k)
        short = found.sum(axis=1) < k
        if short.any():
            squared[short], rows[short] = squared_knn(asked[short], database, k)
        out[0][block], out[1][block] = squared, rows

    for _ in map_blocks(settle, len(queries), BLOCK // 8):
        pass
    return out
