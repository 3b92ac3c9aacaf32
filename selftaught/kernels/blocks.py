"""The passes over the rows of all ranks of a group; a process alone is a group of one rank.

Rows are ordered rank by rank. They are gathered on every rank, or travel around a ring, which
never holds more than two ranks' rows. Shapes: n rows of this rank, N of all ranks, D width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from selftaught import distributed
from selftaught.kernels.reference.common import compute_dtype
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side, Tiles


class Peers(NamedTuple):
    """The `ranks` processes of `group` whose rows are compared, this one the `rank`th."""

    rank: int = 0
    ranks: int = 1
    group: Any = None

    def gather(self, tensor: Tensor) -> Tensor:
        """All ranks' rows."""
        return tensor if self.ranks == 1 else distributed.gather(tensor, self.group)

    def gather_all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """All ranks' rows of each of several tensors of one shape, in one exchange."""
        if self.ranks == 1:
            return list(tensors)
        return [part.contiguous() for part in self.gather(torch.stack([*tensors], 1)).unbind(1)]

    def add(self, log_sums: Tensor) -> Tensor:
        """Log of the sum over ranks of exp(log_sums)."""
        return log_sums if self.ranks == 1 else distributed.log_sum_over_ranks(log_sums, self.group)


@dataclass(frozen=True, kw_only=True)
class Call:
    """What a loss is computed with, beside its tensors.

    Attributes:
        tiles: passes of a backend.
        fixed_temperature: the temperature where it is no tensor.
        normalize: divide rows by their length first.
        precision: lowest precision of matrix products.
        peers: whose rows are compared.
        travel: rows go around a ring of two ranks or more.
        paired: SupCon's rows are first views, then second views.
        symmetric: InfoNCE of keys against queries too.
        in_batch: InfoNCE's negatives are the other keys too.
    """

    tiles: Tiles
    fixed_temperature: float
    normalize: bool
    precision: str
    peers: Peers = Peers()
    travel: bool = False
    paired: bool = True
    symmetric: bool = False
    in_batch: bool = True

    def rows(self, z: Tensor) -> Embeddings:
        """Rows made ready for the passes."""
        return self.tiles.prepare(z, self.normalize, self.precision)

    def scale(self, temperature: Tensor | None, z: Tensor) -> Tensor:
        """The temperature as a 0-d tensor in the dtype of the arithmetic, on the device of `z`."""
        if temperature is None:
            dtype = compute_dtype(z)
            return torch.full((), self.fixed_temperature, dtype=dtype, device=z.device)
        return temperature.detach().to(compute_dtype(z))

    def first(self, count: int) -> int:
        """Where this rank's `count` rows begin among those that it holds."""
        return 0 if self.travel else self.peers.rank * count

    def part(self, held: Any, count: int) -> Any:
        """This rank's `count` rows of a tensor or `Embeddings`; the same object where it is all."""
        if self.travel or self.peers.ranks == 1:
            return held
        first = self.first(count)
        return held[first : first + count] if isinstance(held, Tensor) else held.part(first, count)

    def columns(self, rows: Sequence[Side]) -> list[Side]:
        """The sides of all rows that are held, from those of this rank's rows; for columns."""
        if self.travel or self.peers.ranks == 1:
            return list(rows)
        parts = self.peers.gather_all([part for s in rows for part in (s.weight, s.total)])
        return [Side(*parts[place : place + 2]) for place in range(0, len(parts), 2)]


class Block(NamedTuple):
    """Columns of a pass, their side, and what the pass leaves out."""

    y: Embeddings
    column: Side | None
    excluded: Excluded | None


def blocks(
    call: Call, held: Embeddings, z: Tensor, excluded: Excluded, column: Side | None = None
) -> Iterator[Block]:
    """All columns at once where they were gathered, else rank by rank.

    Args:
        call: settings.
        held: columns that this rank holds.
        z: (n, D) embeddings of this rank, which travel.
        excluded: what this rank's rows leave out of `held`.
        column: side of `held`.
    """
    if not call.travel:
        yield Block(held, column, excluded)
        return
    vectors = () if column is None else (column.weight, column.total)
    for source, (other, *parts) in distributed.ring((z, *vectors), call.peers.group):
        side = Side(*parts) if parts else None
        here = source == call.peers.rank
        yield Block(held if here else call.rows(other), side, excluded if here else None)


def log_sums(call: Call, x: Embeddings, columns: Iterable[Block], tau: Tensor) -> Tensor:
    """(n,) log-sums of rows over the columns of all blocks."""
    total: Tensor | None = None
    for y, _, excluded in columns:
        more, _ = call.tiles.log_sums(x, y, tau, excluded)
        total = more if total is None else torch.logaddexp(total, more)
    assert total is not None
    return total


def weighted_sums(
    call: Call,
    x: Embeddings,
    columns: Iterable[Block],
    tau: Tensor,
    row: Side | None,
    *,
    classes: Classes | None = None,
    slope: bool,
) -> tuple[Tensor, Tensor | None]:
    """(n, D) sums and, if asked for, (n,) slopes of rows over all blocks; see `Tiles`."""
    sums: Tensor | None = None
    slopes: Tensor | None = None
    for y, column, excluded in columns:
        more, more_slopes = call.tiles.weighted_sums(
            x, y, tau, excluded, row=row, column=column, classes=classes, slope=slope
        )
        sums = more if sums is None else sums + more
        slopes = more_slopes if slopes is None or more_slopes is None else slopes + more_slopes
    assert sums is not None
    return sums, slopes
