"""Exact neighbours in a database that comes in parts, in one process or sharded over ranks."""

from collections.abc import Callable, Iterator

import numpy as np
import torch

from selftaught import distributed
from selftaught.search.exact_knn import squared_knn
from selftaught.search.flat import Array
from selftaught.search.shards import Ranks

BATCH = 1024

Parts = Callable[[], Iterator[tuple[int, Array]]]


def mean_distance(squared: Array) -> Array:
    """(Q,) float32 means of the square roots of (Q, k) squared distances in ascending order."""
    return np.sqrt(squared).astype(np.float32).astype(np.float64).mean(axis=1).astype(np.float32)


def squared_in_parts(queries: Array, parts: Parts, k: int, backend: str) -> tuple[Array, Array]:
    """Squared distances (Q, k) float64 and rows (Q, k) int64 of the k nearest of all parts.

    Fewer than k columns where the parts hold fewer rows. Equal distances are ordered by row.

    Args:
        queries: (Q, D) finite.
        parts: gives the parts anew, each with the number of its first row.
        k: at least 1.
        backend: what proposes candidates.
    """
    squared, rows = np.empty((len(queries), 0)), np.empty((len(queries), 0), np.int64)
    for first, table in parts():
        more, numbers = squared_knn(queries, table, min(k, len(table)), backend)
        squared = np.concatenate([squared, more], axis=1)
        rows = np.concatenate([rows, numbers + first], axis=1)
        # Rows ascend from part to part, so a stable sort keeps equal distances in their order.
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
    return squared, rows


def sharded_scores(
    queries: Array, parts: Parts, rows: int, k: int, ranks: Ranks, backend: str
) -> Array:
    """Mean distance (Q,) float32 of this rank's queries to the k nearest rows of all ranks.

    In each round every rank hands out at most `BATCH` queries, all search their own rows, and each
    list of k goes back to the rank that asked: a rank never holds more than that, whatever the
    number of queries.

    Args:
        queries: (Q, D) finite; ranks may have any number, or none.
        parts: this rank's part of the database.
        rows: rows of this rank's part; may be 0.
        k: at least 1, at most the rows of all ranks.
        ranks: who takes part.
        backend: what proposes candidates.
    """
    device = distributed.communication_device(ranks.group)
    numbers = ranks.everyone(len(queries))
    out = np.empty(len(queries), np.float32)
    for start in range(0, max(numbers), BATCH):
        own = queries[start : start + BATCH]
        padded = torch.zeros(BATCH, queries.shape[1], dtype=torch.float64)
        padded[: len(own)] = torch.from_numpy(own)
        asked = distributed.gather(padded.to(device), ranks.group).cpu().numpy()
        there = np.concatenate([np.arange(BATCH) < max(0, number - start) for number in numbers])
        lists = np.full((len(asked), k), np.inf)
        if rows:
            found = squared_in_parts(asked[there], parts, k, backend)[0]
            lists[there, : found.shape[1]] = found
        sent = torch.from_numpy(lists.reshape(ranks.count, BATCH, k)).to(device)
        arrived = distributed.exchange(sent, ranks.group).cpu().numpy()[:, : len(own)]
        mine = np.sort(arrived.transpose(1, 0, 2).reshape(len(own), ranks.count * k), axis=1)[:, :k]
        out[start : start + len(own)] = mean_distance(mine)
    return out
