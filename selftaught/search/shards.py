"""Rows that several ranks hold between them, in the order of the ranks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from selftaught import distributed


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """The processes that share the rows; one process alone sends nothing.

    Attributes:
        group: process group, None for the default one.
        count: number of processes.
        own: this process's rank among them.
    """

    group: Any = None
    count: int = 1
    own: int = 0

    def total(self, values: Tensor) -> Tensor:
        """Sum over the ranks; the same bits on each."""
        return self._reduced(values, distributed.sum_over_ranks)

    def largest(self, values: Tensor) -> Tensor:
        """Elementwise maximum over the ranks."""
        return self._reduced(values, distributed.max_over_ranks)

    def _reduced(self, values: Tensor, reduce: Any) -> Tensor:
        if self.count == 1:
            return values
        # A copy: the reduction works in place, and the caller's tensor may be a running sum.
        sent = values.to(distributed.communication_device(self.group), copy=True).contiguous()
        return reduce(sent, self.group).to(values.device)

    def everyone(self, value: Any) -> list[Any]:
        """Every rank's `value`, in rank order."""
        return distributed.gather_objects(value, self.group) if self.count > 1 else [value]

    def agree(self, problem: str) -> None:
        """Raise on every rank what is wrong on one, so that none is left waiting.

        Args:
            problem: what is wrong here; "" where nothing is.

        Raises:
            ValueError: something is wrong on a rank, named where there are several.
        """
        for rank, told in enumerate(self.everyone(problem)):
            if told:
                raise ValueError(told if self.count == 1 else f"rank {rank}: {told}")


def ranks_of(group: Any) -> Ranks:
    """The ranks that a `group` argument means.

    Args:
        group: None for this process alone, "world" for all, or a process group.

    Raises:
        ValueError: this process is not one of the group's ranks.
    """
    if group is None:
        return Ranks()
    group = None if group == "world" else group
    own = distributed.rank(group)
    if own < 0:
        raise ValueError("group: this process is not one of its ranks")
    return Ranks(group=group, count=distributed.world_size(group), own=own)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """This rank's rows among all.

    Attributes:
        x: (N, D) float32 rows of this rank, about a common origin, on a grid.
        scale: (D,) float64 powers of two; the columns of `x` are multiples of 1 / scale on every
            rank, so that their sums are exact (`exact_sums`).
        weights: (N,) float64, or None where every row counts once.
        first: global number of its first row.
        rows: number of rows on all ranks.
        ranks: who holds the others.
    """

    x: Tensor
    scale: Tensor
    weights: Tensor | None
    first: int
    rows: int
    ranks: Ranks

    def fetch(self, numbers: list[int]) -> Tensor:
        """(M, D) rows with these global numbers, on every rank."""
        out = self.x.new_zeros(len(numbers), self.x.shape[1])
        local = torch.tensor(numbers, device=self.x.device) - self.first
        mine = (local >= 0) & (local < len(self.x))
        out[mine] = self.x[local[mine]]
        return self.ranks.total(out)
