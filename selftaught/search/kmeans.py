"""k-means on all the rows, on one device or sharded over ranks."""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.search import assign
from selftaught.search.chunks import Rows
from selftaught.search.direct import squared_to
from selftaught.search.exact_knn import squared_knn
from selftaught.search.exact_sums import (
    limits,
    mean_of_rows,
    moved_to_grid,
    peak,
    scale_for,
    summing_dtype,
    total_of,
)
from selftaught.search.flat import Array, checked
from selftaught.search.lloyd import EMPTY_POLICIES, counted, lloyd
from selftaught.search.seeding import plus_plus
from selftaught.search.shards import Ranks, Shard, ranks_of

BLOCK = 1 << 16
FINE = 40  # numbers from 2^-40 to 2^40 have squares and sums of them that float32 holds


class KMeansResult(NamedTuple):
    """Centres and what belongs to them, on the device of the rows.

    Attributes:
        centers: (k, D) float32, every one nearest to at least one sample unless `empty="keep"`.
        assignment: (N,) int64, the nearest centre of each sample of this rank (lowest number on
            ties).
        counts: (k,) int64, samples of all ranks per centre.
        inertia: weighted sum over all ranks of squared distances to the nearest centre, by direct
            differences in float64.
    """

    centers: Tensor
    assignment: Tensor
    counts: Tensor
    inertia: float


class _Data(NamedTuple):
    """A shard, its rows before they were moved, and the common origin (D,) float64.

    Rows, origin and weights are in the units of the caller times powers of two, `unit` and
    `weight_unit`.
    """

    shard: Shard
    original: Tensor
    origin: Tensor
    unit: float
    weight_unit: float


def _check_options(k: int, iterations: int, restarts: int, seed: int, empty: str) -> None:
    counts = {"k": k, "iterations": iterations, "restarts": restarts}
    for name, value, least in [*((n, v, 1) for n, v in counts.items()), ("seed", seed, 0)]:
        if value < least:
            raise ValueError(f"{name}={value}: must be at least {least}")
    if empty not in EMPTY_POLICIES:
        raise ValueError(f"empty: got {empty!r}, allowed are {', '.join(EMPTY_POLICIES)}")


def _check_weights(weights: Tensor | Array | None, rows: int, device: torch.device) -> Any:
    if weights is None:
        return None
    values = torch.as_tensor(weights).detach().to(device)
    if values.shape != (rows,):
        raise ValueError(f"weights: shape {tuple(values.shape)}, must be ({rows},), one for a row")
    values = values.double()
    good = values.isfinite() & (values >= 0)
    if not bool(good.all()):
        row = int((~good).int().argmax())
        raise ValueError(
            f"weights: row {row} is {float(values[row]):g}, must be finite and not negative"
        )
    return values


def _unit(largest: Tensor, dtype: torch.dtype) -> float:
    """Power of two that brings `largest` near 1 where squares might leave the range, else 1."""
    exponent = int(torch.frexp(largest.max())[1])
    if abs(exponent) <= FINE:
        return 1.0
    return 2.0 ** min(-exponent, round(-math.log2(torch.finfo(dtype).tiny)))


def _open(
    x: Rows,
    weights: Any,
    device: torch.device | None,
    ranks: Ranks,
    start: Tensor | None = None,
) -> _Data:
    """This rank's rows checked and moved to their common mean; raises on all ranks or on none."""
    problem, original, weight = "", torch.empty(0, 0), None
    try:
        original = checked(x, "x", empty=ranks.count > 1, device=device)
        weight = _check_weights(weights, len(original), original.device)
    except ValueError as error:
        problem = str(error)
    ranks.agree(problem)
    double = original.dtype == torch.float64
    kinds = ranks.everyone((original.shape[1], weight is not None, len(original), double))
    if len({kind[:2] for kind in kinds}) > 1:
        raise ValueError(f"x: widths and weights differ between ranks: {kinds}")
    if any(kind[2] and kind[3] for kind in kinds):
        original = original.double()  # as other ranks' rows are
    elif double and ranks.count > 1:
        original = original.float()  # an empty part
    numbers = [kind[2] for kind in kinds]
    rows = sum(numbers)
    if not rows:
        raise ValueError(f"x: shape {tuple(original.shape)} on every rank, must hold a row")
    weight_unit = 1.0
    if weight is not None:
        heaviest = peak(weight[:, None], ranks)
        if not bool(heaviest > 0):
            raise ValueError("weights: all are 0, at least one must be positive")
        weight_unit = _unit(heaviest, weight.dtype)
        weight = weight * weight_unit
    low, high = limits(original, ranks)
    unit = _unit(high - low, original.dtype)
    if start is not None and unit > 1:  # but a start far from the rows must stay in the range
        unit = max(1.0, min(unit, 2.0 ** (FINE - int(torch.frexp(start.abs().max())[1]))))
    if unit != 1:
        original, low, high = original * unit, low * unit, high * unit
    largest = torch.maximum(high, -low)
    # Rounded to the rows' dtype, so that moving small integers moves them exactly.
    origin = mean_of_rows(original, largest, rows, ranks).to(original.dtype).double()
    scale = scale_for(
        torch.maximum(high - origin, origin - low), rows, summing_dtype(original.device)
    )
    shard = Shard(
        x=moved_to_grid(original, origin, scale),
        scale=scale,
        weights=weight,
        first=sum(numbers[: ranks.own]),
        rows=rows,
        ranks=ranks,
    )
    return _Data(shard, original, origin, unit, weight_unit)


def _exactly(data: _Data, rows: Tensor, centers: Tensor, backend: str) -> Tensor:
    """Nearest of the moved float64 `centers` to some original `rows`, in float64 if possible."""
    parts = []
    for part in rows.split(BLOCK):
        moved = part.double() - data.origin
        if backend == "faiss" and len(part):
            numbers = squared_knn(moved.numpy(), centers.numpy(), 1, backend)[1][:, 0]
            parts.append(torch.from_numpy(numbers.copy()))
        elif part.device.type == "cpu":
            parts.append(assign.native(moved, centers))
        else:  # GPUs are slow in float64, and the kernels there have none
            parts.append(assign.native(moved.float(), centers))
    return torch.cat(parts)


def _nearest(data: _Data, centers: Tensor, backend: str, again: assign.Assign) -> Tensor:
    """Nearest of the float64 `centers` to the original rows, as `_exactly` finds them.

    Where float32 leaves no doubt its answer is taken: a row and a centre are each off by at most
    half a unit of it, and a row by half a step of the grid, so a gap of twice that is one.
    """
    moved = centers - data.origin
    if not isinstance(again, assign.Again):
        return _exactly(data, data.original, moved, backend)
    index, gap = again.with_gaps(moved.float())
    x, scale = data.shard.x, data.shard.scale
    lengths = torch.linalg.vector_norm(x, dim=1).double() + moved.norm(dim=1).max()
    # Four times over for the rounding of lengths; what is as small as the last term may underflow.
    margin = 2.0**-22 * lengths + 2 * (1 / scale).norm() + 2.0**-60 * x.shape[1]
    unsure = torch.nonzero(~(gap > margin))[:, 0]
    if len(unsure):
        index[unsure] = _exactly(data, data.original[unsure], moved, backend)
    return index


def _finish(
    data: _Data, centers: Tensor, backend: str, empty: str, again: assign.Assign
) -> KMeansResult:
    """Round the centres to what is returned, then assign exactly and drop empty ones."""
    shard = data.shard
    centers = ((centers + data.origin) / data.unit).float()
    while True:
        places = centers.double() * data.unit
        index = _nearest(data, places, backend, again)
        filled = counted(shard, index, len(centers)) > 0
        if empty == "keep" or bool(filled.all()):
            break
        centers = centers[filled]
    squared = squared_to(data.original, places, index)
    if shard.weights is not None:
        squared = squared * shard.weights
    counts = shard.ranks.total(torch.bincount(index, minlength=len(centers)))
    inertia = total_of(squared, shard.rows, shard.ranks) / data.unit / data.unit / data.weight_unit
    return KMeansResult(centers, index, counts, inertia)


def _starts(data: _Data, k: int, seed: int, restarts: int, start: Tensor | None) -> list[Tensor]:
    if start is None:
        seeds = np.random.SeedSequence(seed).spawn(restarts)
        return [plus_plus(data.shard, k, np.random.default_rng(s)) for s in seeds]
    if start.shape != (k, data.shard.x.shape[1]) or restarts != 1:
        raise ValueError(
            f"initial: shape {tuple(start.shape)} with restarts={restarts}, "
            f"must be ({k}, {data.shard.x.shape[1]}) with restarts=1"
        )
    return [start.double() * data.unit - data.origin]


@torch.no_grad()
def kmeans(
    x: Rows,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 50,
    restarts: int = 1,
    initial: Rows | None = None,
    allow_fewer: bool = False,
    weights: Tensor | Array | None = None,
    empty: str = "farthest",
    backend: str = "auto",
    group: Any = None,
) -> KMeansResult:
    """Lloyd's k-means from a greedy k-means++ start, over every sample (no subsampling).

    The result depends on the data, `seed`, `backend` and the kind of device only: neither on the
    number of threads nor, with a `group`, on how the rows are divided over its ranks. With fewer
    than k distinct samples, or when a centre owns no sample in the end, it has fewer than k
    centres.

    Args:
        x: (N, D) floats, tensor on any device or array; with a group this rank's part of the rows,
            which may be of any size or empty. The work is done where the rows are.
        k: number of centres.
        seed: of the starts.
        iterations: at most this many updates per start; stops early when no sample moves.
        restarts: starts; the one with the least inertia is returned.
        initial: (k, D) start to use instead of k-means++; `restarts` must then be 1.
        allow_fewer: accept N < k and return up to N centres.
        weights: (N,) how much each sample counts, at least 0; None: all count 1.
        empty: what becomes of a centre that no sample is nearest to during the iterations.
            "farthest": it moves to the sample farthest from its own centre; "split": it halves the
            largest cluster; "keep": it stays, in the result too; "drop": it goes.
        backend: "native", the fused nearest-centre op; "faiss", on the CPU; "auto", the faster.
        group: process group, or "world", whose ranks hold the rows; None: this process alone.

    Returns:
        Centres, counts and inertia, the same on every rank; assignment of this rank's samples.

    Raises:
        ValueError: k, iterations or restarts below 1, N < k without `allow_fewer`, a start of
            another shape, weights negative or all 0, data empty, not floating point or not finite.
            With a group every rank raises.
        InputError: `backend="faiss"` and faiss is missing.
    """
    _check_options(k, iterations, restarts, seed, empty)
    asked = torch.as_tensor(x)
    kind = assign.choose(backend, asked.device, asked.shape[-1] if asked.ndim else 0)
    ranks = ranks_of(group)
    keep_there = kind == "native" and asked.device.type in ("cpu", "cuda")
    device = asked.device if keep_there else torch.device("cpu")
    given = None if initial is None else checked(initial, "initial", device=device)
    data = _open(x, weights, device, ranks, given)
    if data.shard.rows < k and not allow_fewer:
        raise ValueError(f"k={k}: only {data.shard.rows} samples, must be at most their number")
    best: KMeansResult | None = None
    for start in _starts(data, k, seed, restarts, given):
        again = assign.repeated(kind, data.shard.x, len(start))
        centers = lloyd(data.shard, start, iterations, again, empty)
        found = _finish(data, centers, kind, empty, again)
        if best is None or found.inertia < best.inertia:
            best = found
    assert best is not None
    centers, assignment, counts = (t.to(asked.device) for t in best[:3])
    return KMeansResult(centers, assignment, counts, best.inertia)
