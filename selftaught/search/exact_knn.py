"""The k nearest rows in float64: candidates, a certificate that nothing is missing, a fall-back."""

import numpy as np

from selftaught.search import candidates
from selftaught.search.flat import BLOCK, Array, map_blocks

DIRECT_BLOCK = 64
EXACT_BYTES = 1 << 20  # stays in the cache; 32 times as much took twice the time


def exact(queries: Array, rows: Array, database: Array) -> Array:
    """Squared distances (Q, M) in float64 of each query to its `rows` (Q, M) or (M,), directly."""
    out = np.empty((len(queries), rows.shape[-1]))
    step = max(1, EXACT_BYTES // (8 * rows.shape[-1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        near = database[rows[part] if rows.ndim == 2 else rows].astype(np.float64)
        difference = near - queries[part, None]
        np.einsum("qmd,qmd->qm", difference, difference, out=out[part])
    return out


def best(squared: Array, rows: Array, k: int) -> tuple[Array, Array]:
    """The k smallest per query, ordered by distance and then by row number."""
    order = np.lexsort((rows, squared), axis=1)[:, :k]
    return np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)


def _all_rows(queries: Array, database: Array, k: int) -> tuple[Array, Array]:
    """The k nearest rows without any shortcut; memory grows with the block, not with N."""
    squared = np.empty((len(queries), 0))
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(database), BLOCK):
        numbers = np.arange(start, min(start + BLOCK, len(database)))
        squared = np.concatenate([squared, exact(queries, numbers, database)], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(numbers, (len(rows), len(numbers)))], axis=1)
        # Row numbers ascend among equal distances, so a stable sort keeps them in order.
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
    return squared, rows


def moved(database: Array, kind: type) -> tuple[Array, Array]:
    """The rows about their median, in `kind`, and that median (D,) float64."""
    # Any shift is correct; the median of some rows stays amid the data when a few are far out.
    shift = np.median(database[:: -(-len(database) // BLOCK)], axis=0).astype(np.float64)
    out: Array = np.empty(database.shape, kind)
    for start in range(0, len(database), BLOCK):
        out[start : start + BLOCK] = database[start : start + BLOCK] - shift
    return out, shift


def _certified(
    queries: Array,
    database: Array,
    k: int,
    kind: type,
    pending: Array,
    out: tuple[Array, Array],
    backend: str,
) -> Array:
    """Fill `out` for those `pending` queries that k and some candidates settle; return the rest.

    A row outside the candidates has an approximate squared distance of at least the farthest
    candidate's. Only rows with |x| <= |q| + r can lie within the k-th distance r, and for those the
    error is at most `candidates.rounding` times (|q| + |x|)^2. So if the farthest candidate beats
    r^2 by more than that bound, nothing is missing.
    """
    backend = candidates.settled(backend, len(pending) * queries.shape[1])
    table, shift = moved(database, kind)
    search, shared = candidates.proposer(table, k + max(4, k // 4), kind, backend)
    error = candidates.rounding(queries.shape[1], kind, backend)

    def settle(ids: Array, near: Array, rows: Array, approximate: Array) -> Array:
        squared, found = best(exact(queries[ids], rows, database), rows, k)
        reach = 2 * np.linalg.norm(near.astype(np.float64), axis=1) + np.sqrt(squared[:, -1])
        sure = approximate.max(axis=1) - error * reach**2 > squared[:, -1]
        out[0][ids[sure]], out[1][ids[sure]] = squared[sure], found[sure]
        return ids[~sure]

    def whole(block: slice) -> Array:
        ids = pending[block]
        near = (queries[ids] - shift).astype(kind)
        approximate, rows = search(near)
        if shared:
            return settle(ids, near, rows, approximate)
        parts = map_blocks(
            lambda b: settle(ids[b], near[b], rows[b], approximate[b]), len(ids), DIRECT_BLOCK
        )
        return np.concatenate(list(parts))

    if shared:
        left = list(map_blocks(whole, len(pending), BLOCK))
    else:
        starts = range(0, len(pending), candidates.QUERIES)
        left = [whole(slice(start, start + candidates.QUERIES)) for start in starts]
    return np.concatenate(left)


def squared_knn(
    queries: Array, database: Array, k: int, backend: str = "native"
) -> tuple[Array, Array]:
    """Squared distances (Q, k) in float64 and rows (Q, k) int64 of the k nearest, exactly.

    Args:
        queries: (Q, D) finite, float32 or float64.
        database: (N, D) likewise.
        k: 1 to N.
        backend: what proposes candidates: "native", "faiss" or "auto" (`candidates.settled`).
    """
    out: tuple[Array, Array] = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    pending = np.arange(len(queries))
    for kind in (np.float32, np.float64):
        if len(pending) and k + max(4, k // 4) < len(database):
            pending = _certified(queries, database, k, kind, pending, out, backend)

    def settle(block: slice) -> None:
        ids = pending[block]
        out[0][ids], out[1][ids] = _all_rows(queries[ids], database, k)

    for _ in map_blocks(settle, len(pending), DIRECT_BLOCK):
        pass
    return out
