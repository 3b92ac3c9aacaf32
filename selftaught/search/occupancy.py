"""How rows spread over centres: counts, pruning, radii and a report of it. Pure functions.

Counts of several ranks are to be added up (`distributed.sum_over_ranks`) before they come here, so
that every rank decides the same.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class Occupancy(NamedTuple):
    """How unevenly rows spread over the centres left.

    Attributes:
        total: rows counted.
        active: centres left.
        dead: centres left without a row.
        largest: share of the rows at the fullest centre, 0 without rows.
        smallest: rows at the least full centre left.
        effective: exponential of the entropy of the shares: how many equally full centres would
            be as uneven; 0 without rows.
    """

    total: int
    active: int
    dead: int
    largest: float
    smallest: int
    effective: float


def _check_active(counts: Tensor, active: Tensor) -> None:
    if counts.ndim != 1 or active.shape != counts.shape or active.dtype != torch.bool:
        raise ValueError(
            f"active: must be booleans shaped as counts {tuple(counts.shape)}, got "
            f"{tuple(active.shape)}, {active.dtype}"
        )


def count(index: Tensor, centers: int, counted: Tensor | None = None) -> Tensor:
    """Rows at each centre.

    Args:
        index: (N,) int64, nearest centre of each row; -1 (no finite distance) is left out.
        centers: K.
        counted: (N,) booleans, rows that count; None: all do.

    Returns:
        (K,) int64, on the device of `index`, without waiting for it.
    """
    kept = index >= 0 if counted is None else (index >= 0) & counted
    counts = torch.zeros(centers, dtype=torch.int64, device=index.device)
    return counts.scatter_add_(0, index.clamp(min=0), kept.long())


def prune(counts: Tensor, active: Tensor, gamma: float) -> Tensor:
    """Centres that stay: those with at least gamma times the fullest centre's rows.

    Where no active centre has a row, nothing is known and all stay. So at least one centre stays
    wherever one was.

    Args:
        counts: (K,) rows of all ranks at each centre.
        active: (K,) booleans, centres left so far; one removed never returns.
        gamma: 0 to 1.

    Returns:
        (K,) booleans, on the device of `counts`, without waiting for it.

    Raises:
        ValueError: gamma outside 0 to 1, or `active` does not fit.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma:g}: must be 0 to 1")
    _check_active(counts, active)
    held = torch.where(active, counts, 0)
    # float64 holds every count; float32 would move the threshold beyond 16.7 million rows.
    return active & (held.double() >= gamma * held.max().double())


def occupancy(counts: Tensor, active: Tensor) -> Occupancy:
    """Figures of how rows spread over the centres left.

    Args:
        counts: (K,) rows of all ranks at each centre.
        active: (K,) booleans.

    Raises:
        ValueError: `active` does not fit.
    """
    _check_active(counts, active)
    held = counts[active].tolist()
    total = sum(held)
    shares = [number / total for number in held if number]
    return Occupancy(
        total=total,
        active=len(held),
        dead=held.count(0),
        largest=max(shares, default=0.0),
        smallest=min(held, default=0),
        effective=math.exp(-sum(p * math.log(p) for p in shares)) if shares else 0.0,
    )


def describe(figures: Occupancy) -> str:
    """`figures` in a sentence."""
    return (
        f"{figures.total} images at {figures.active} centres, as uneven as "
        f"{figures.effective:.1f} equally full ones; the fullest has "
        f"{figures.largest:.1%}, the least full {figures.smallest}, {figures.dead} have none"
    )


def radii(distances: Tensor, index: Tensor, centers: int, gamma: float, least: int = 2) -> Tensor:
    """The (1 - gamma) quantile of each centre's distances, safe for centres with few rows.

    A quantile of one row is that row, and of none does not exist; a centre with fewer than `least`
    rows gets the median of the other centres' radii instead, or, where no centre has as many, the
    quantile of all rows.

    Args:
        distances: (N,) distances to the nearest centre, not squared.
        index: (N,) int64 nearest centres; -1 is left out.
        centers: K.
        gamma: 0 to 1.
        least: rows that a radius of its own takes, at least 1.

    Returns:
        (K,) float64 radii, interpolated linearly between the two rows beside the quantile.

    Raises:
        ValueError: gamma outside 0 to 1, least below 1, shapes differ, no row has a centre.
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma:g}: must be 0 to 1")
    if least < 1:
        raise ValueError(f"least={least}: must be at least 1")
    if distances.shape != index.shape or distances.ndim != 1:
        raise ValueError(
            f"distances: shape {tuple(distances.shape)}, must be (N,) as index {tuple(index.shape)}"
        )
    kept = index >= 0
    values, owners = distances[kept].double(), index[kept]
    if not len(values):
        raise ValueError("distances: no row has a centre")
    # Sorted by centre, then by distance: two stable sorts.
    order = torch.argsort(values, stable=True)
    order = order[torch.argsort(owners[order], stable=True)]
    counts = torch.bincount(owners, minlength=centers)
    place = (1 - gamma) * (counts - 1).clamp(min=0).double()
    first = (counts.cumsum(0) - counts).clamp(max=len(values) - 1)
    low = first + place.floor().long()
    high = torch.minimum(low + 1, first + (counts - 1).clamp(min=0))
    values = values[order]
    own = torch.lerp(values[low], values[high], place - place.floor())
    enough = counts >= least
    if not bool(enough.any()):
        return torch.full_like(own, float(torch.quantile(distances[kept].double(), 1 - gamma)))
    return torch.where(enough, own, torch.quantile(own[enough], 0.5))
