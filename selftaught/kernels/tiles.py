"""The two tiled passes every contrastive loss is made of, as a backend has to provide them.

Notation: l_ij = <x_i, y_j> / temperature for rows x (R, D) and columns y (C, D). No pass ever holds
the (R, C) matrix; memory is O((R + C) D). Everything else about the losses (positives,
reductions, gradients by temperature) is written once, in `contrastive`, on these.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Embeddings made ready for the passes.

    Attributes:
        unit: (N, D) float32 or float64, rows of length 1 (or 0) where they were normalised.
        inverse: (N, 1) inverse lengths of the raw rows, 0 for a zero row; None: not normalised.
        operands: what the backend's matrix products read, such as half-precision copies; tensors
            of N rows.
    """

    unit: Tensor
    inverse: Tensor | None
    operands: tuple[Tensor, ...] = ()

    def part(self, first: int, count: int) -> "Embeddings":
        """`count` rows from `first` on, as views."""
        chosen = slice(first, first + count)
        inverse = None if self.inverse is None else self.inverse[chosen]
        return Embeddings(
            unit=self.unit[chosen],
            inverse=inverse,
            operands=tuple(operand[chosen] for operand in self.operands),
        )


class Excluded(NamedTuple):
    """The entries of the (R, C) matrix that a pass leaves out.

    Row i leaves out column `offset + i`. With `half` > 0 the rows are `half` first views and then
    the `half` second views of the same images, and row i leaves out its other view as well, column
    `offset + (i + half if i < half else i - half)`. Columns outside 0..C-1 mean nothing.
    """

    offset: int
    half: int = 0


class Side(NamedTuple):
    """What the gradient pass knows about the losses of the rows, or of the columns.

    Attributes:
        weight: (N,) gradient by the loss.
        total: (N,) log-sum of the whole denominator, so exp(l - total) is the softmax.
        positive: (N,) l of the positive, or the mean over positives; for the slope only.
        share: (N,) `weight` / number of positives; with classes only.
    """

    weight: Tensor
    total: Tensor
    positive: Tensor | None = None
    share: Tensor | None = None


class Classes(NamedTuple):
    """(R,) and (C,) int64 classes of rows and columns."""

    rows: Tensor
    columns: Tensor


class Tiles(Protocol):
    """The passes of one backend.

    `temperature` is a 0-d tensor of the rows' dtype on their device; it is never read by the host.
    Vectors are of the rows' dtype. Two runs give equal bits.
    """

    def prepare(self, z: Tensor, normalize: bool, precision: str) -> Embeddings:
        """(N, D) embeddings of any dtype -> `Embeddings`.

        A row whose largest entry is below the smallest normal number becomes zero, with inverse
        length 0.
        """
        ...

    def dots(self, x: Embeddings, y: Embeddings) -> Tensor:
        """(N,) products <x_i, y_i>, from `unit`, in full precision."""
        ...

    def log_sums(
        self,
        x: Embeddings,
        y: Embeddings,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        columns: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Log of the sum of exp(l_ij) over j for every row and, if `columns`, over i for columns.

        -inf where nothing is left to sum. With `y is x` (then offset is 0) the matrix is
        symmetric, and so is what is excluded: one tile may serve both its rows and its columns.

        Returns:
            (R,) and (C,) or None.
        """
        ...

    def weighted_sums(
        self,
        x: Embeddings,
        y: Embeddings,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        row: Side | None,
        column: Side | None,
        classes: Classes | None = None,
        slope: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Sums over j of w_ij y_j, the gradient by rows of both sides' losses.

        w_ij is 0 where excluded and else

            row.weight_i exp(l_ij - row.total_i) + column.weight_j exp(l_ij - column.total_j)
            - [classes.rows_i == classes.columns_j] (row.share_i + column.share_j)

        with the terms of an absent side left out.

        Returns:
            (R, D) sums, and, if `slope`, (R,) sums over j of
            row.weight_i exp(l_ij - row.total_i) (l_ij - row.positive_i), without the term of
            classes; else None.
        """
        ...

    def finish(
        self,
        sums: Tensor,
        x: Embeddings,
        temperature: Tensor,
        partner: Embeddings | None = None,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """(R, D) gradient by the raw rows.

        g = (sums + coefficient * partner.unit) / temperature, taken back through the division by
        the length: (g - <g, unit> unit) * inverse.
        """
        ...
