"""Nearest neighbours and the mean distance to them: exact, over ranks, or through IVF."""

from typing import Any, NamedTuple

import numpy as np
import torch

from selftaught.search import candidates, ivf
from selftaught.search.chunks import Database, Rows, is_table, parts
from selftaught.search.exact_knn import squared_knn
from selftaught.search.flat import Array, matrix
from selftaught.search.partial_knn import mean_distance, sharded_scores, squared_in_parts
from selftaught.search.shards import Ranks, ranks_of

METHODS = ("exact", "ivf")
QUERIES = 16_384


class NeighbourScores(NamedTuple):
    """Scores, and how far they can be trusted.

    Attributes:
        scores: (Q,) float32 on the CPU.
        method: "exact" or "ivf".
        sampled: queries compared with the exact search; 0 for "exact", which is certain.
        recall: share of the sampled queries' k nearest rows that were found.
        largest_error: largest relative error of a sampled query's score.
    """

    scores: torch.Tensor
    method: str
    sampled: int
    recall: float
    largest_error: float


def knn(
    queries: Rows, database: Rows, k: int, *, backend: str = "auto"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The k nearest rows of `database` to each query, exactly.

    FAISS or matrix products propose candidates on centred data; the distances returned are direct
    differences in float64, and a query whose candidates could have missed a row is searched again
    in float64, in the end against all rows directly. So results depend neither on which queries
    are asked together, nor on threads, nor on a common offset of the data. Equal distances are
    ordered by row number.

    Args:
        queries: (Q, D) floats, tensor on any device or array.
        database: (N, D) floats, tensor or array, which may be memory-mapped.
        k: 1 to N.
        backend: what proposes candidates: "native" (torch), "faiss", or "auto": FAISS, but torch
            for few queries on a CPU and where faiss is missing. It changes the time only.

    Returns:
        Euclidean (not squared) distances (Q, k) float32 in ascending order, and row numbers
        (Q, k) int64; tensors on the CPU.

    Raises:
        ValueError: k outside 1..N, widths differ, no rows, not floating point, not finite.
        InputError: `backend="faiss"` and faiss is missing.
    """
    proposing, asked = candidates.available(backend), matrix(queries, "queries")
    if not 1 <= k <= max(1, len(database)):
        raise ValueError(f"k={k}: must be 1 to {len(database)}, the number of database rows")
    squared, rows = squared_in_parts(asked, lambda: parts(database, asked.shape[1]), k, proposing)
    return torch.from_numpy(np.sqrt(squared).astype(np.float32)), torch.from_numpy(rows)


def _exact_scores(asked: Array, database: Database, k: int, backend: str) -> Array:
    # An iterable is read once, so all queries meet each part; a table is read for each batch.
    step = QUERIES if is_table(database) else max(1, len(asked))
    batches = [
        squared_in_parts(
            asked[start : start + step], lambda: parts(database, asked.shape[1]), k, backend
        )[0]
        for start in range(0, len(asked), step)
    ]
    return np.concatenate([mean_distance(squared) for squared in batches])


def _over_ranks(queries: Rows, database: Database, k: int, backend: str, ranks: Ranks) -> Array:
    """`sharded_scores` with arguments checked on every rank before any of them goes on."""
    problem, asked, rows = "", np.empty((0, 0), np.float32), 0
    try:
        asked = matrix(queries, "queries", empty=True)
        if not is_table(database):
            raise ValueError(
                f"database: {type(database).__name__}, must be a tensor or an array with a group: "
                "it is read once for each batch of queries"
            )
        rows = sum(len(part) for _, part in parts(database, asked.shape[1], empty=True))
    except ValueError as error:
        problem = str(error)
    ranks.agree(problem)
    everyone = ranks.everyone((asked.shape[1], rows))
    if len({width for width, _ in everyone}) > 1:
        raise ValueError(f"queries: widths differ between ranks: {[one for one, _ in everyone]}")
    total = sum(number for _, number in everyone)
    if not total:
        raise ValueError("database: has no rows on any rank, must hold at least 1")

    def own() -> Any:
        return parts(database, asked.shape[1], empty=True)

    return sharded_scores(asked, own, rows, min(k, total), ranks, backend)


def _ivf_scores(
    asked: Array, database: Database, k: int, lists: int | None, probes: int | None, sample: int
) -> NeighbourScores:
    if not is_table(database):
        raise ValueError('database: must be a tensor or an array with method="ivf"')
    table = matrix(database, "database")
    if table.shape[1] != asked.shape[1]:
        raise ValueError(
            f"queries: width {asked.shape[1]}, must be the database's width {table.shape[1]}"
        )
    k = min(k, len(table))
    squared, rows = ivf.squared_ivf(asked, table, k, *ivf.check(lists, probes, len(table)))
    scores = mean_distance(squared)
    chosen = np.unique(np.linspace(0, len(asked) - 1, min(sample, len(asked))).astype(np.int64))
    certain, nearest = squared_knn(asked[chosen], table, k)
    pairs = zip(rows[chosen], nearest, strict=True)
    recall = float(np.mean([len(np.intersect1d(*pair)) / k for pair in pairs]))
    truth = mean_distance(certain)
    error = np.abs(scores[chosen] - truth) / np.maximum(truth, np.finfo(np.float32).tiny)
    return NeighbourScores(torch.from_numpy(scores), "ivf", len(chosen), recall, float(error.max()))


def knn_score_with_report(
    queries: Rows,
    database: Database,
    k: int = 100,
    *,
    method: str = "exact",
    backend: str = "auto",
    group: Any = None,
    lists: int | None = None,
    probes: int | None = None,
    sample: int = 256,
) -> NeighbourScores:
    """`knn_score`, and for "ivf" its recall and error against the exact search on some queries.

    Args:
        queries: as in `knn_score`.
        database: as in `knn_score`.
        k: as in `knn_score`.
        method: as in `knn_score`.
        backend: as in `knn_score`.
        group: as in `knn_score`.
        lists: for "ivf", cells of the database; None: about 4 sqrt(N).
        probes: for "ivf", cells searched for a query; None: 8 or 5 % of them.
        sample: for "ivf", queries, evenly spread, that are searched exactly too; at least 1.

    Returns:
        Scores and their report.

    Raises:
        ValueError: as in `knn_score`; lists, probes or sample out of range.
        InputError: as in `knn_score`.
    """
    for name, value in (("k", k), ("sample", sample)):
        if value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if method not in METHODS:
        raise ValueError(f"method: got {method!r}, allowed are {', '.join(METHODS)}")
    ranks, proposing = ranks_of(group), candidates.available(backend)
    if method == "ivf":
        if group is not None:
            raise ValueError('group: must be None with method="ivf"')
        return _ivf_scores(matrix(queries, "queries"), database, k, lists, probes, sample)
    if ranks.count > 1:
        scores = _over_ranks(queries, database, k, proposing, ranks)
    else:
        scores = _exact_scores(matrix(queries, "queries"), database, k, proposing)
    return NeighbourScores(torch.from_numpy(scores), "exact", 0, 1.0, 0.0)


def knn_score(
    queries: Rows,
    database: Database,
    k: int = 100,
    *,
    method: str = "exact",
    backend: str = "auto",
    group: Any = None,
) -> torch.Tensor:
    """Mean Euclidean distance to the k nearest rows: the paper's 100-NN ablation (Table 1).

    With fewer than k rows in the database, all of them count: the score then is the mean distance
    to every normal image and comparable only with scores against the same database. No list of
    neighbours outlives its batch of queries.

    Args:
        queries: (Q, D) floats, features `h` of the images to score; with a group this rank's part.
        database: (N, D) floats, features of normal training images: a tensor or an array, which may
            be memory-mapped, or an iterable of such; read in parts of 1 GiB. With a group this
            rank's part, of any size or empty, and no iterable.
        k: at least 1.
        method: "exact", or "ivf": FAISS's inverted lists, faster and not certain; see
            `knn_score_with_report`. Not with a group.
        backend: what proposes candidates of the exact search: "native", "faiss", or "auto".
        group: process group, or "world", whose ranks hold the database; None: this process alone.
            Scores do not depend on how the rows are divided.

    Returns:
        (Q,) float32 on the CPU, higher = more abnormal.

    Raises:
        ValueError: as for `knn`, k below 1, an unknown option. With a group every rank raises.
        InputError: as for `knn`; "ivf" without faiss.
    """
    found = knn_score_with_report(queries, database, k, method=method, backend=backend, group=group)
    return found.scores
