"""Lloyd's iterations over sharded rows: exact sums, four policies for a cluster left empty."""

from dataclasses import replace

import torch
from torch import Tensor

from selftaught.kernels.cpp import clusters
from selftaught.search.assign import Assign
from selftaught.search.direct import block_rows, compiled, serial, squared_to
from selftaught.search.exact_sums import BITS, on_grid, peak, scale_for, summing_dtype
from selftaught.search.shards import Shard

EMPTY_POLICIES = ("farthest", "split", "keep", "drop")
SPLIT = 2.0**-10


class _Sums:
    """Weighted sums of the rows of each cluster, kept up to date by the rows that move.

    They are exact, so taking rows away and adding them leaves the bits that summing all would.
    """

    def __init__(self, shard: Shard, clusters: int) -> None:
        self.shard = shard
        self.dtype = summing_dtype(shard.x.device)
        ones = torch.ones_like(shard.scale)
        self.scale = ones if self.dtype == torch.float64 else shard.scale
        self.weight_scale = ones[0]
        if shard.weights is not None:
            heaviest = peak(shard.weights[:, None], shard.ranks)
            largest = peak(shard.x, shard.ranks) * heaviest
            self.scale = scale_for(largest, shard.rows, self.dtype)
            self.weight_scale = scale_for(heaviest, shard.rows, self.dtype)[0]
        self.totals = shard.x.new_zeros(clusters, shard.x.shape[1], dtype=self.dtype)
        self.masses = shard.x.new_zeros(clusters, dtype=self.dtype)

    def _move_compiled(self, before: Tensor, now: Tensor) -> int:
        weighted = self.shard.weights is not None
        return clusters.cluster_sums(
            self.shard.x,
            self.totals,
            self.masses,
            now,
            before,
            weights=self.shard.weights,
            scale=self.scale if weighted else None,
            weight_scale=float(self.weight_scale),
        )

    def _add(self, x: Tensor, weights: Tensor | None, clusters: Tensor, sign: int) -> None:
        values = x.double()
        mass = torch.ones_like(values[:, 0])
        if weights is not None:
            values = values.mul_(weights[:, None]).mul_(self.scale).round_()
            mass = on_grid(weights, self.weight_scale, torch.float64)
        elif self.dtype == torch.int64:
            values *= self.scale
        self.totals.index_add_(0, clusters, values.to(self.dtype), alpha=sign)
        self.masses.index_add_(0, clusters, mass.to(self.dtype), alpha=sign)

    def move(self, before: Tensor, now: Tensor) -> bool:
        """Take up assignments `now` (N,) after `before`, -1 for none; whether any rank's differ."""
        if compiled(now.device):
            return bool(self.shard.ranks.total(torch.tensor(self._move_compiled(before, now))))
        moved = torch.nonzero(now != before)[:, 0]
        if not int(self.shard.ranks.total(torch.tensor(len(moved)))):
            return False
        with serial():
            self._update(moved, before, now)
        return True

    def _update(self, moved: Tensor, before: Tensor, now: Tensor) -> None:
        x, weights = self.shard.x, self.shard.weights
        block = block_rows(x)
        if 2 * len(moved) > len(now):
            self.totals.zero_()
            self.masses.zero_()
            for first in range(0, len(now), block):
                part = slice(first, first + block)
                self._add(x[part], None if weights is None else weights[part], now[part], 1)
            return
        for rows in moved.split(block):
            held = None if weights is None else weights[rows]
            self._add(x[rows], held, before[rows], -1)
            self._add(x[rows], held, now[rows], 1)

    def in_all(self) -> tuple[Tensor, Tensor]:
        """Sums of the rows (K, D) and of their weights (K,) over all ranks, float64."""
        ranks = self.shard.ranks
        totals, masses = ranks.total(self.totals).double(), ranks.total(self.masses).double()
        return totals / self.scale, masses / self.weight_scale


def _levels(shard: Shard) -> list[Shard]:
    """`shard` once for every range of weights that share a grid; those out of it become 0.

    A grid coarse enough for the heaviest row's sum would round far lighter ones away. A range is
    half as many powers of two as a grid has bits to spare, so a weight keeps the other half.
    """
    if shard.weights is None:
        return [shard]
    room = BITS[summing_dtype(shard.x.device)] - shard.rows.bit_length()
    level = torch.div(-torch.frexp(shard.weights)[1], max(room // 2, 1), rounding_mode="floor")
    here = level[shard.weights > 0].unique().tolist()
    found = []
    for number in sorted({n for part in shard.ranks.everyone(here) for n in part}):
        weights = shard.weights.where(level == number, 0.0)
        # On the grid that the sum of weights has, so that it and the sum of rows count the same.
        scale = scale_for(
            peak(weights[:, None], shard.ranks), shard.rows, summing_dtype(shard.x.device)
        )
        found.append(replace(shard, weights=on_grid(weights, scale, torch.float64) / scale))
    return found


class _AllSums:
    """`_Sums` of all ranges of weights."""

    def __init__(self, levels: list[Shard], clusters: int) -> None:
        self.parts = [_Sums(level, clusters) for level in levels]

    def move(self, before: Tensor, now: Tensor) -> bool:
        """`_Sums.move`."""
        return any([part.move(before, now) for part in self.parts])  # a list: all are to move

    def means(self, otherwise: Tensor) -> Tensor:
        """(K, D) float64 means of the clusters, `otherwise` where a cluster weighs nothing."""
        (totals, masses), *others = [part.in_all() for part in self.parts]
        for more, mass in others:
            totals, masses = totals + more, masses + mass
        return torch.where(masses[:, None] > 0, totals / masses[:, None], otherwise)


def counted(shard: Shard, assignment: Tensor, clusters: int) -> Tensor:
    """Rows of positive weight in each cluster (K,) int64, over all ranks."""
    held = assignment if shard.weights is None else assignment[shard.weights > 0]
    return shard.ranks.total(torch.bincount(held, minlength=clusters))


def _farthest(shard: Shard, centers: Tensor, assignment: Tensor, empty: Tensor) -> Tensor:
    """`assignment` with each empty cluster given one of the rows farthest from their centres."""
    squared = squared_to(shard.x, centers, assignment)
    if shard.weights is not None:
        squared = squared.masked_fill(shard.weights <= 0, -1)
    # A stable order: of equal distances the lowest row comes first, here and over the ranks.
    order = torch.argsort(-squared, stable=True)[: len(empty)]
    mine = zip((-squared[order]).tolist(), (order + shard.first).tolist(), strict=True)
    found = sorted(pair for part in shard.ranks.everyone(list(mine)) for pair in part)
    assignment = assignment.clone()
    for (negative, row), cluster in zip(found, empty.tolist(), strict=False):
        if negative <= 0 and 0 <= row - shard.first < len(assignment):
            assignment[row - shard.first] = cluster
    return assignment


def _split(centers: Tensor, counts: Tensor) -> Tensor:
    """Centres with each empty one put beside that of the largest cluster, whose rows they share."""
    centers, counts = centers.clone(), counts.clone()
    signs = torch.ones_like(centers[0])
    signs[1::2] = -1
    for cluster in torch.nonzero(counts == 0)[:, 0].tolist():
        donor = int(counts.argmax())
        centers[cluster] = centers[donor] * (1 + SPLIT * signs)
        centers[donor] *= 1 - SPLIT * signs
        counts[cluster] = counts[donor] // 2
        counts[donor] -= counts[cluster]
    return centers


def lloyd(shard: Shard, centers: Tensor, iterations: int, assign: Assign, empty: str) -> Tensor:
    """Centres (K, D) float64 after at most `iterations` updates, fewer once no row moves.

    Args:
        shard: this rank's rows.
        centers: (K, D) start, the same on every rank.
        iterations: at least 1.
        assign: finds the nearest centre of rows.
        empty: one of `EMPTY_POLICIES`.
    """
    centers, levels = centers.double(), _levels(shard)
    sums = _AllSums(levels, len(centers))
    previous = torch.full((len(shard.x),), -1, device=shard.x.device)
    for _ in range(iterations):
        now = assign(shard.x, centers.float())
        counts = counted(shard, now, len(centers))
        gaps = torch.nonzero(counts == 0)[:, 0]
        if len(gaps) and empty == "farthest":
            now = _farthest(shard, centers, now, gaps)
        elif len(gaps) and empty == "drop":
            now = (torch.cumsum(counts > 0, 0) - 1)[now]
            centers, previous = centers[counts > 0], torch.full_like(now, -1)
            sums = _AllSums(levels, len(centers))
        if not sums.move(previous, now) and not (len(gaps) and empty == "split"):
            break
        centers = sums.means(centers)
        if len(gaps) and empty == "split":
            centers = _split(centers, counts)
        previous = now
    return centers
