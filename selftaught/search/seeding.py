"""Greedy k-means++ start over sharded rows, the same rows for any number of ranks.

Squared distances are float64 by direct difference, sums are exact, and draws name global rows. A
matrix product only rules out rows that a candidate cannot come nearer to than what is chosen, with
a bound on its rounding: what it leaves out would have added exactly nothing.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.search.direct import squared_to
from selftaught.search.exact_sums import on_grid, peak, scale_for
from selftaught.search.shards import Shard

BLOCK = 1 << 16
# Half the spacing at 1 of what a float32 product may be computed in, by torch's own setting.
UNIT = {"highest": 2.0**-24, "high": 2.0**-11, "medium": 2.0**-8}


class _Gains(NamedTuple):
    """What candidates would bring: pairs of local row and candidate that come nearer.

    Attributes:
        row: (P,) int64 local rows.
        candidate: (P,) int64.
        squared: (P,) float64 distances of the pairs.
    """

    row: Tensor
    candidate: Tensor
    squared: Tensor


def _draw(
    weight: Tensor, scale: Tensor, total: int, shard: Shard, trials: int, rng: np.random.Generator
) -> list[int]:
    """Global numbers of `trials` rows, drawn in proportion to `weight` (N,) float64.

    `total` is the sum over all ranks of the weights on the grid of `scale`.
    """
    running = on_grid(weight, scale, torch.int64).cumsum(0)
    own = int(running[-1]) if len(running) else 0
    before = sum(shard.ranks.everyone(own)[: shard.ranks.own])
    # Not rng.integers, which may reject draws: a rounding of `total` must not shift the stream.
    marks = np.minimum((rng.random(trials) * total).astype(np.int64), total - 1)
    targets = torch.from_numpy(marks).to(weight.device) - before
    found = torch.searchsorted(running, targets, right=True) + shard.first
    mine = (targets >= 0) & (targets < own)
    return shard.ranks.total(torch.where(mine, found, 0)).tolist()


def _gains(shard: Shard, norms: Tensor, candidates: Tensor, nearest: Tensor) -> _Gains:
    """Pairs whose squared distance is less than the row's `nearest`; `norms` (N,) are |x|."""
    unit = UNIT[torch.get_float32_matmul_precision()]
    lengths = candidates.double().norm(dim=1)
    parts = []
    for start in range(0, max(len(shard.x), 1), BLOCK):
        x = shard.x[start : start + BLOCK]
        own = norms[start : start + BLOCK, None]
        rough = own.square() + lengths.square() - 2 * (x @ candidates.T).double()
        # Inputs and D products are rounded to `unit`; the sums behind them to 2^-24.
        bound = (x.shape[1] * 2.0**-24 + 4 * unit) * (own + lengths).square()
        row, candidate = torch.nonzero(
            rough - bound < nearest[start : start + BLOCK, None], as_tuple=True
        )
        squared = squared_to(x[row], candidates, candidate)
        better = squared < nearest[start + row]
        parts.append(_Gains(start + row[better], candidate[better], squared[better]))
    return _Gains(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _best(shard: Shard, gains: _Gains, nearest: Tensor, scale: Tensor, trials: int) -> int:
    """The candidate that takes most off the sum of `nearest`; the first of equals."""
    gain = nearest[gains.row] - gains.squared
    if shard.weights is not None:
        gain = gain * shard.weights[gains.row]
    sums = torch.zeros(trials, dtype=torch.int64, device=gain.device)
    sums.index_add_(0, gains.candidate, on_grid(gain, scale, torch.int64))
    return int(shard.ranks.total(sums).argmax())


def plus_plus(shard: Shard, k: int, rng: np.random.Generator) -> Tensor:
    """Up to k distinct rows (k', D) float32, fewer only where fewer are distinct.

    Each row is the best of 2 + log k drawn in proportion to weight times squared distance to the
    rows chosen before (Arthur and Vassilvitskii 2007, the trials as in its Sec. 5).

    Args:
        shard: this rank's rows; those of weight 0 are never chosen.
        k: number of rows wanted.
        rng: in the same state on every rank.
    """
    ranks, trials = shard.ranks, 2 + int(np.log(k))
    ones = torch.ones(len(shard.x), dtype=torch.float64, device=shard.x.device)
    weights = ones if shard.weights is None else shard.weights
    norms = torch.cat([part.double().norm(dim=1) for part in shard.x.split(BLOCK)])
    chosen: list[Tensor] = []
    nearest, weighted = torch.full_like(ones, torch.inf), weights
    while True:
        scale = scale_for(peak(weighted, ranks), shard.rows, torch.int64)
        total = int(ranks.total(on_grid(weighted, scale, torch.int64).sum()))
        if total == 0:
            break
        numbers = _draw(weighted, scale, total, shard, trials if chosen else 1, rng)
        candidates = shard.fetch(numbers)
        gains = _gains(shard, norms, candidates, nearest)
        best = _best(shard, gains, nearest, scale, len(numbers)) if chosen else 0
        chosen.append(candidates[best])
        if len(chosen) == k:
            break
        taken = gains.candidate == best
        nearest[gains.row[taken]] = gains.squared[taken]
        weighted = weights * nearest
    return torch.stack(chosen)
