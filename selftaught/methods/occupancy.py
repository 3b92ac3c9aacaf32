"""How images spread over centres, and which centres stay."""

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

    def __str__(self) -> str:
        return (
            f"{self.total} images at {self.active} centres, as uneven as "
            f"{self.effective:.1f} equally full ones; the fullest has "
            f"{self.largest:.1%}, the least full {self.smallest}, {self.dead} have none"
        )


def occupancy(counts: Tensor, active: Tensor) -> Occupancy:
    """Figures of how rows spread over the centres left.

    Args:
        counts: (K,) rows of all ranks at each centre.
        active: (K,) booleans, centres left.
    """
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
    """
    held = torch.where(active, counts, 0)
    # float64 holds every count; float32 would move the threshold beyond 16.7 million rows.
    return active & (held.double() >= gamma * held.max().double())
