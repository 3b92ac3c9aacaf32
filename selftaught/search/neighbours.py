"""Exact nearest neighbours: candidates through FAISS, distances by direct differences."""

import numpy as np
import torch

from selftaught.search.flat import BLOCK, Array, Search, flat_search, map_blocks, matrix

Rows = torch.Tensor | Array

DOUBLE_BLOCK, DIRECT_BLOCK = 512, 64
EXACT_BYTES = 32 << 20


def _exact(queries: Array, rows: Array, database: Array) -> Array:
    """Squared distances (Q, M) in float64 of each query to its `rows` (Q, M) or (M,), directly."""
    out = np.empty((len(queries), rows.shape[-1]))
    step = max(1, EXACT_BYTES // (8 * rows.shape[-1] * queries.shape[1]))
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        near = database[rows[part] if rows.ndim == 2 else rows].astype(np.float64)
        difference = near - queries[part, None]
        np.einsum("qmd,qmd->qm", difference, difference, out=out[part])
    return out


def _best(squared: Array, rows: Array, k: int) -> tuple[Array, Array]:
    """The k smallest per query, ordered by distance and then by row number."""
    order = np.lexsort((rows, squared), axis=1)[:, :k]
    return np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)


def _all_rows(queries: Array, database: Array, k: int) -> tuple[Array, Array]:
    """The k nearest rows without any shortcut; memory grows with the block, not with N."""
    squared = np.empty((len(queries), 0))
    rows = np.empty((len(queries), 0), np.int64)
    for start in range(0, len(database), BLOCK):
        numbers = np.arange(start, min(start + BLOCK, len(database)))
        squared = np.concatenate([squared, _exact(queries, numbers, database)], axis=1)
        rows = np.concatenate([rows, np.broadcast_to(numbers, (len(rows), len(numbers)))], axis=1)
        # Row numbers ascend among equal distances, so a stable sort keeps them in order.
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
    return squared, rows


def _double_search(database: Array, shift: Array, k: int) -> Search:
    """`flat_search` in float64, for data whose groups lie farther apart than they are wide."""

    def search(queries: Array) -> tuple[Array, Array]:
        squared = np.empty((len(queries), 0))
        rows = np.empty((len(queries), 0), np.int64)
        for start in range(0, len(database), BLOCK):
            part = database[start : start + BLOCK] - shift
            distances = np.einsum("nd,nd->n", part, part) - 2 * (queries @ part.T)
            numbers = np.broadcast_to(np.arange(start, start + len(part)), distances.shape)
            squared = np.concatenate([squared, distances], axis=1)
            rows = np.concatenate([rows, numbers], axis=1)
            if squared.shape[1] > k:
                order = np.argpartition(squared, k - 1, axis=1)[:, :k]
                squared = np.take_along_axis(squared, order, 1)
                rows = np.take_along_axis(rows, order, 1)
        return squared + np.einsum("qd,qd->q", queries, queries)[:, None], rows

    return search


def _certified(
    queries: Array, database: Array, k: int, kind: type, pending: Array, out: tuple[Array, Array]
) -> Array:
    """Fill `out` for those `pending` queries that k and some candidates settle; return the rest.

    A row outside the candidates has an approximate squared distance of at least the farthest
    candidate's. Rounding in |q|^2 + |x|^2 - 2qx is at most (D + 16) u (|q| + |x|)^2 with u half
    the spacing of `kind` at 1 (the 16 covers the centring and the sums), and only rows with
    |x| <= |q| + r can lie within the k-th distance r. So if the farthest candidate beats r^2 by
    more than that bound, nothing is missing.
    """
    # Any shift is correct; the median of some rows stays amid the data when a few are far out.
    shift = np.median(database[:: -(-len(database) // BLOCK)], axis=0).astype(np.float64)
    candidates = k + max(4, k // 4)
    if kind is np.float32:
        centred = np.empty(database.shape, np.float32)
        for start in range(0, len(database), BLOCK):
            centred[start : start + BLOCK] = database[start : start + BLOCK] - shift
        search = flat_search(centred, candidates)
    else:
        search = _double_search(database, shift, candidates)
    rounding = (queries.shape[1] + 16) * np.finfo(kind).eps / 2

    def settle(block: slice) -> Array:
        ids = pending[block]
        moved = (queries[ids] - shift).astype(kind)
        approximate, rows = search(moved)
        squared, best = _best(_exact(queries[ids], rows, database), rows, k)
        reach = 2 * np.linalg.norm(moved.astype(np.float64), axis=1) + np.sqrt(squared[:, -1])
        sure = approximate.max(axis=1) - rounding * reach**2 > squared[:, -1]
        out[0][ids[sure]], out[1][ids[sure]] = squared[sure], best[sure]
        return ids[~sure]

    block = BLOCK if kind is np.float32 else DOUBLE_BLOCK
    return np.concatenate(list(map_blocks(settle, len(pending), block)))


def squared_knn(queries: Array, database: Array, k: int) -> tuple[Array, Array]:
    """`knn` on checked arrays, returning squared distances (Q, k) in float64 and rows int64."""
    out = np.empty((len(queries), k)), np.empty((len(queries), k), np.int64)
    pending = np.arange(len(queries))
    for kind in (np.float32, np.float64):
        if len(pending) and k + max(4, k // 4) < len(database):
            pending = _certified(queries, database, k, kind, pending, out)

    def settle(block: slice) -> None:
        ids = pending[block]
        out[0][ids], out[1][ids] = _all_rows(queries[ids], database, k)

    for _ in map_blocks(settle, len(pending), DIRECT_BLOCK):
        pass
    return out


def knn(queries: Rows, database: Rows, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest rows of `database` to each query, exactly.

    FAISS proposes candidates on centred data; the distances returned are direct differences in
    float64, and a query whose candidates could have missed a row is searched again in float64,
    in the end against all rows directly. So results depend neither on which queries are asked
    together, nor on threads, nor on a common offset of the data. Equal distances are ordered by
    row number.

    Args:
        queries: (Q, D) floats, tensor on any device or array.
        database: (N, D) floats.
        k: 1 to N.

    Returns:
        Euclidean (not squared) distances (Q, k) float32 in ascending order, and row numbers
        (Q, k) int64; tensors on the CPU.

    Raises:
        ValueError: k outside 1..N, widths differ, no rows, not floating point, not finite.
        InputError: faiss is missing (small databases do without).
    """
    asked, known = matrix(queries, "queries"), matrix(database, "database")
    if asked.shape[1] != known.shape[1]:
        raise ValueError(
            f"queries: width {asked.shape[1]}, must be the database's width {known.shape[1]}"
        )
    if not 1 <= k <= len(known):
        raise ValueError(f"k={k}: must be 1 to {len(known)}, the number of database rows")
    squared, rows = squared_knn(asked, known, k)
    return torch.from_numpy(np.sqrt(squared).astype(np.float32)), torch.from_numpy(rows)


def knn_score(queries: Rows, database: Rows, k: int = 100) -> torch.Tensor:
    """Mean Euclidean distance to the k nearest rows: the paper's 100-NN ablation (Table 1).

    With fewer than k rows in the database, all of them count: the score then is the mean distance
    to every normal image and comparable only with scores against the same database.

    Args:
        queries: (Q, D) floats, features `h` of the images to score.
        database: (N, D) floats, features of normal training images.
        k: at least 1.

    Returns:
        (Q,) float32 on the CPU, higher = more abnormal.

    Raises:
        ValueError: as for `knn`, and k below 1.
    """
    if k < 1:
        raise ValueError(f"k={k}: must be at least 1")
    distances, _ = knn(queries, database, min(k, len(database)))
    return distances.double().mean(dim=1).float()
