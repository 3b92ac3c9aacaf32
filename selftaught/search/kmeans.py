"""k-means on all the data: FAISS assigns, sums and inertia are float64."""

from typing import NamedTuple

import numpy as np
import torch

from selftaught.search.flat import Array, flat_search, map_blocks, matrix, squared_distances
from selftaught.search.neighbours import Rows, squared_knn


class KMeansResult(NamedTuple):
    """Centres and what belongs to them; tensors on the CPU.

    Attributes:
        centers: (k, D) float32, every one nearest to at least one sample.
        assignment: (N,) int64, the nearest centre of each sample (lowest number on ties).
        counts: (k,) int64, samples per centre.
        inertia: sum of squared distances to the nearest centre, by direct differences in float64.
    """

    centers: torch.Tensor
    assignment: torch.Tensor
    counts: torch.Tensor
    inertia: float


def _start(x: Array, k: int, generator: np.random.Generator) -> Array:
    """Greedy k-means++ start: up to k distinct rows of `x`, fewer if there are fewer (k', D).

    Each row is the best of 2 + log k drawn in proportion to the squared distance to the rows
    chosen before (Arthur and Vassilvitskii 2007, the trials as in its Sec. 5).
    """
    trials = 2 + int(np.log(k))
    nearest = np.full(len(x), np.inf)
    row, rows = int(generator.integers(len(x))), []

    def update(block: slice) -> None:
        # Direct differences: a repeated row is at 0 exactly and is never drawn again.
        difference = x[block] - x[row]
        squared = np.einsum("nd,nd->n", difference, difference, dtype=np.float64)
        np.minimum(nearest[block], squared, out=nearest[block])

    def potentials(block: slice) -> Array:
        squared = squared_distances(x[block], x[drawn])
        return np.minimum(squared, nearest[block, None]).sum(axis=0)

    while True:
        rows.append(row)
        for _ in map_blocks(update, len(x)):
            pass
        total = np.cumsum(nearest)
        if len(rows) == k or total[-1] == 0:
            return x[rows]
        drawn = np.searchsorted(total, generator.random(trials) * total[-1], side="right")
        drawn = np.minimum(drawn, np.flatnonzero(nearest)[-1])
        row = int(drawn[np.sum(list(map_blocks(potentials, len(x))), axis=0).argmin()])


def _nearest(x: Array, centers: Array) -> tuple[Array, Array]:
    """Approximate squared distance (N,) and number (N,) of the nearest centre."""
    search = flat_search(np.ascontiguousarray(centers, np.float32), 1)
    found = list(map_blocks(lambda block: search(x[block]), len(x)))
    squared, numbers = (np.concatenate(parts)[:, 0] for parts in zip(*found, strict=True))
    return squared, numbers


def _move(totals: Array, counts: Array, x: Array, clusters: Array, sign: int) -> None:
    """Add (sign 1) or take away (-1) the rows of `x` from their clusters' sums, in fixed order."""

    def partial(block: slice) -> tuple[Array, Array, Array]:
        order = np.argsort(clusters[block], kind="stable")
        found, first = np.unique(clusters[block][order], return_index=True)
        sums = np.add.reduceat(x[block][order], first, axis=0, dtype=np.float64)
        return found, sums, np.diff(first, append=len(order))

    for found, sums, numbers in map_blocks(partial, len(x)):
        totals[found] += sign * sums
        counts[found] += sign * numbers


def _lloyd(x: Array, centers: Array, iterations: int) -> Array:
    """Centres (k, D) float64 after at most `iterations`, fewer once no sample moves.

    A centre left empty moves to the sample farthest from its own centre.
    """
    k = len(centers)
    centers = centers.astype(np.float64)
    totals, counts = np.zeros_like(centers), np.zeros(k, np.int64)
    previous = np.full(len(x), -1)
    for _ in range(iterations):
        squared, assignment = _nearest(x, centers)
        empty = np.flatnonzero(np.bincount(assignment, minlength=k) == 0)
        assignment[np.argsort(-squared, kind="stable")[: len(empty)]] = empty
        # Few samples move after the first iterations: summing only those halves the time.
        moved = np.flatnonzero(assignment != previous)
        if not len(moved):
            break
        left = moved[previous[moved] >= 0]
        _move(totals, counts, x[left], previous[left], -1)
        _move(totals, counts, x[moved], assignment[moved], 1)
        filled = counts > 0
        centers[filled] = totals[filled] / counts[filled, None]
        previous = assignment
    return centers


def _finish(x: Array, centers: Array, shift: Array) -> KMeansResult:
    """Round the centres to what is returned, then assign exactly and drop empty ones."""
    centers = (centers + shift).astype(np.float32)
    while True:
        moved = centers.astype(np.float64) - shift
        squared, rows = squared_knn(x, moved, 1)
        counts = np.bincount(rows[:, 0], minlength=len(centers))
        if counts.all():
            break
        centers = centers[counts > 0]
    return KMeansResult(
        torch.from_numpy(centers),
        torch.from_numpy(rows[:, 0].copy()),
        torch.from_numpy(counts),
        float(squared.sum()),
    )


def kmeans(
    x: Rows,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 50,
    restarts: int = 1,
    initial: Rows | None = None,
    allow_fewer: bool = False,
) -> KMeansResult:
    """Lloyd's k-means from a k-means++ start, over every sample (no subsampling).

    The data are centred before FAISS sees them. The result depends on the data, `seed` and the
    device only, not on the number of threads. With fewer than k distinct samples, or when a
    centre owns no sample in the end, the result has fewer than k centres.

    Args:
        x: (N, D) floats, tensor on any device or array.
        k: number of centres.
        seed: of the starts.
        iterations: at most this many updates per start; stops early when no sample moves.
        restarts: starts; the one with the least inertia is returned.
        initial: (k, D) start to use instead of k-means++; `restarts` must then be 1.
        allow_fewer: accept N < k and return up to N centres.

    Returns:
        Centres, assignment, counts and inertia.

    Raises:
        ValueError: k, iterations or restarts below 1, N < k without `allow_fewer`, a start of
            another shape, data empty, not floating point or not finite.
        InputError: faiss is missing.
    """
    data = matrix(x, "x")
    counts = {"k": k, "iterations": iterations, "restarts": restarts}
    for name, value, least in [*((n, v, 1) for n, v in counts.items()), ("seed", seed, 0)]:
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if len(data) < k and not allow_fewer:
        raise ValueError(f"k={k}: only {len(data)} samples, must be at most their number")
    shift = data.mean(axis=0, dtype=np.float64).astype(data.dtype)
    data = np.ascontiguousarray(data - shift, np.float32)
    shift = shift.astype(np.float64)
    starts = []
    if initial is not None:
        start = matrix(initial, "initial")
        if start.shape != (k, data.shape[1]) or restarts != 1:
            raise ValueError(
                f"initial: shape {start.shape} with restarts={restarts}, "
                f"must be ({k}, {data.shape[1]}) with restarts=1"
            )
        starts = [start - shift]
    else:
        seeds = np.random.SeedSequence(seed).spawn(restarts)
        starts = [_start(data, min(k, len(data)), np.random.default_rng(s)) for s in seeds]
    results = [_finish(data, _lloyd(data, start, iterations), shift) for start in starts]
    return min(results, key=lambda result: result.inertia)
