"""k-means on all rows: greedy k-means++, then Lloyd's iterations on the nearest-centre op."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught import host
from selftaught.arguments import numbers_in, whole
from selftaught.kernels import ops

LARGEST = 1e17  # float32 holds the square of this times any usual width
BLOCK = 1024  # rows in float64 at a time, which stay in the cache
Points = Tensor | np.ndarray | Sequence[Sequence[float]]


class KMeansResult(NamedTuple):
    """Centres and what belongs to them, on the device of the rows.

    Attributes:
        centers: (K', D) in the dtype of the rows, float32 for half precision; K' <= K, because a
            centre that no row is nearest to is left out.
        labels: (N,) int64, the nearest centre of each row (lowest number on ties).
        counts: (K',) int64, rows per centre, at least 1.
        inertia: sum of squared distances to the nearest centre.
    """

    centers: Tensor
    labels: Tensor
    counts: Tensor
    inertia: float


def checked(values: Points, name: str) -> Tensor:
    """`values` as a finite (N, D) float32 or float64 tensor, contiguous, where they are.

    Raises:
        ValueError: not a matrix, no rows or columns, not floating point, masked, sparse, not
            finite, or so large that squares overflow in float32.
    """
    x = numbers_in(name, values)
    if type(_first(values)) is float:
        x = x.float()  # as torch takes Python's numbers
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{name}: shape {tuple(x.shape)}, must be (N, D), both at least 1")
    if not x.is_floating_point():
        raise ValueError(f"{name}: {x.dtype}, must be floating point")
    x = (x if x.dtype in (torch.float32, torch.float64) else x.float()).contiguous()
    low, high = torch.aminmax(x)
    if not (low >= -LARGEST and high <= LARGEST):  # false for NaN too
        row = int((~(x.abs() <= LARGEST)).any(dim=1).int().argmax())
        raise ValueError(
            f"{name}: row {row} holds a value that is not finite or not within +-{LARGEST:g}"
        )
    return x


def _first(values: Any) -> Any:
    """The first of the things in a nested list."""
    while isinstance(values, list | tuple) and len(values):
        values = values[0]
    return values


def _centred(x: Tensor) -> tuple[Tensor, Tensor, float]:
    """(x - origin) * unit within +-1, the origin (D,) and the unit, a power of two.

    The values are rounded to multiples of 2^-b, b = 52 - log2 N, so fine that float32 loses next
    to nothing and so coarse that float64 adds N of them exactly: in any order, on any device.
    """
    origin = x.mean(0)
    moved = x - origin
    largest = max(-float(moved.min()), float(moved.max()))
    unit = 2.0 ** min(-math.frexp(largest)[1], 126) if largest else 1.0
    steps = 2.0 ** (52 - len(x).bit_length())
    return moved.mul_(unit).mul_(steps).round_().div_(steps), origin, unit


def _plus_plus(x: Tensor, k: int, rng: np.random.Generator) -> Tensor:
    """Up to k distinct rows (k', D) of `x`; fewer only where fewer are distinct.

    Each is the best of 2 + log k drawn in proportion to the squared distance to the rows chosen
    before (Arthur and Vassilvitskii 2007, the trials as in its Sec. 5).
    """
    x, trials = x.double(), 2 + int(math.log(k))
    norms = x.square().sum(1)
    nearest = torch.ones_like(norms)
    chosen: list[int] = []
    while len(chosen) < k:
        running = np.cumsum(nearest.cpu().numpy())
        if running[-1] == 0:
            break
        marks = rng.random(trials if chosen else 1) * running[-1]
        drawn = torch.from_numpy(np.searchsorted(running, marks, side="right")).to(x.device)
        lengths = norms[:, None] + norms[drawn]
        squared = torch.addmm(lengths, x, x[drawn].T, alpha=-2)
        # What rounding alone could leave of equal rows is no distance.
        squared[squared < x.shape[1] * 2.0**-52 * lengths] = 0
        if chosen:
            squared = torch.minimum(squared, nearest[:, None])
        best = int(squared.sum(0).argmin())
        chosen.append(int(drawn[best]))
        nearest = squared[:, best]
    return x[chosen]


def _nearest(x: Tensor, centers: Tensor, active: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Squared distance (N,) to the nearest of the `active` centres (None: of all), its index."""
    return ops.nearest_center(x, centers, active, "auto", "auto")


def _nearest_again(
    x: Tensor, centers: Tensor, changed: Tensor, squared: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Nearest centre of every row, where `squared` and `labels` were so before some `changed`.

    Only those are compared, and all of them for rows whose own centre went farther away.
    """
    near, index = _nearest(x, centers, changed)
    unsure = torch.nonzero(changed[labels] & (near >= squared))[:, 0]
    nearer = (near < squared) | ((near == squared) & (index < labels))
    squared, labels = torch.where(nearer, near, squared), torch.where(nearer, index, labels)
    if len(unsure):
        squared[unsure], labels[unsure] = _nearest(x.index_select(0, unsure), centers)
    return squared, labels


def _counts(labels: Tensor, k: int) -> Tensor:
    """Rows of each of k centres; unlike bincount, without waiting for the device."""
    return labels.new_zeros(k).index_add_(0, labels, torch.ones_like(labels))


def _move(sums: Tensor, x: Tensor, rows: Tensor, before: Tensor, now: Tensor) -> None:
    """Take `rows` (M,) of `x` out of the `sums` (K, D) of labels `before` and into those `now`."""
    threads = torch.get_num_threads()
    # torch wakes threads for every small block, which then spin against those of the op.
    torch.set_num_threads(1)
    try:
        for part in rows.split(BLOCK):
            values = x.index_select(0, part).double()
            sums.index_add_(0, now[part], values)
            sums.index_add_(0, before[part], values, alpha=-1)
    finally:
        torch.set_num_threads(threads)


def _lloyd(x: Tensor, centers: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """At most `iterations` updates from `centers` (K, D) float64, fewer once no row moves.

    A centre that loses its last row takes the row farthest from its own centre, as scikit-learn's.
    An update waits for the device twice, and once more near the end, where few rows move.

    Returns:
        Centres (K, D) float64, and every row's squared distance to, and index of, the nearest.
    """
    k = len(centers)
    sums = x.new_zeros(k + 1, x.shape[1], dtype=torch.float64)  # last: rows without a centre yet
    before = torch.full((len(x),), k, device=x.device)
    places = centers.to(x.dtype)
    squared, labels = _nearest(x, places)
    for _ in range(iterations):
        now, counts = labels, _counts(labels, k)
        if not counts.all():
            empty = torch.nonzero(counts == 0)[:, 0]
            farthest = squared.argsort(descending=True, stable=True)[: len(empty)]
            farthest = farthest[squared[farthest] > 0]
            now = labels.index_copy(0, farthest, empty[: len(farthest)])
            counts = _counts(now, k)
        moved = torch.nonzero(now != before)[:, 0]
        if not len(moved):
            break
        _move(sums, x, moved, before, now)
        centers = torch.where(counts[:, None] > 0, sums[:k] / counts[:, None], centers)
        last, places, before = places, centers.to(x.dtype), now
        if 4 * len(moved) > k:  # a row changes two centres, so it may be more than half of them
            squared, labels = _nearest(x, places)
        else:
            squared, labels = _nearest_again(x, places, (places != last).any(1), squared, labels)
    return centers, squared, labels


@host.defaults()
def kmeans(
    x: Points,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 50,
    restarts: int = 1,
    initial: Points | None = None,
) -> KMeansResult:
    """Lloyd's k-means from a greedy k-means++ start, over every row (no subsampling).

    The same rows and seed give the same bits on the same kind of device, whatever the number of
    threads. Where fewer than k rows are distinct, there are only so many centres.

    Args:
        x: (N, D) floats: a tensor on any device, an array, a table or a list of rows; the work is
            done where the rows are.
        k: number of centres, 1 to N.
        seed: of the starts, 0 or more.
        iterations: at most this many updates per start; stops early when no row moves.
        restarts: starts; the one with the least inertia is returned.
        initial: (k, D) start to use instead of k-means++; `restarts` must then be 1.

    Raises:
        ValueError: k, iterations or restarts no whole number or below 1, no seed, N < k, a start
            of another shape, data empty, not floating point, masked, sparse or not finite.
    """
    k, seed = whole("k", k), whole("seed", seed, 0)
    iterations, restarts = whole("iterations", iterations), whole("restarts", restarts)
    rows = checked(x, "x")
    if len(rows) < k:
        raise ValueError(f"k={k}: only {len(rows)} rows, must be at most their number")
    moved, origin, unit = _centred(rows)
    if initial is None:
        seeds = np.random.SeedSequence(seed).spawn(restarts)
        starts = [_plus_plus(moved, k, np.random.default_rng(one)) for one in seeds]
    else:
        start = checked(initial, "initial").to(rows.device)
        if start.shape != (k, rows.shape[1]) or restarts != 1:
            raise ValueError(
                f"initial: shape {tuple(start.shape)} with restarts={restarts}, "
                f"must be ({k}, {rows.shape[1]}) with restarts=1"
            )
        starts = [(start.double() - origin.double()) * unit]
    best: KMeansResult | None = None
    for start in starts:
        centers, squared, labels = _lloyd(moved, start, iterations)
        inertia = float(squared.sum(dtype=torch.float64)) / unit / unit
        if best is None or inertia < best.inertia:
            filled, labels, counts = labels.unique(return_inverse=True, return_counts=True)
            placed = (centers[filled] / unit + origin.double()).to(rows.dtype)
            best = KMeansResult(placed, labels, counts, inertia)
    assert best is not None
    return best
