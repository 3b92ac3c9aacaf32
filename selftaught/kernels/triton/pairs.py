"""What every contrastive launch over rows x and columns y is given."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from selftaught.kernels.tiles import Embeddings, Excluded
from selftaught.kernels.triton.pieces import GRADIENT_EXPONENTS, SUM_EXPONENTS


def on(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's device the one that kernels are launched on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Operands of both sides and what is left out between them.

    Attributes:
        operands: high and low parts of rows and of columns; twice the same if not `split`.
        stats: the two numbers of `pieces` of rows and of columns.
        temperature: 0-d tensor on the device.
        rows: number of rows R.
        columns: number of columns C.
        width: columns of the operands.
        split: operands have two parts.
        mode: 0: nothing is left out, 1: the row itself, 2: its other view as well.
        half: see `Excluded`.
        row_shift: added to row numbers before they are compared.
        column_shift: added to column numbers before they are compared.
        reach: bound of the logits in units of log 2, where the host knows one.
    """

    operands: tuple[Tensor, Tensor, Tensor, Tensor]
    stats: tuple[Tensor, Tensor]
    temperature: Tensor
    rows: int
    columns: int
    width: int
    split: bool
    mode: int
    half: int
    row_shift: int
    column_shift: int
    reach: float = float("inf")

    @property
    def bits(self) -> int:
        """Twice this power of two is more than the number of rows, and of columns."""
        return (max(self.rows, self.columns) - 1).bit_length()

    @property
    def safe_sums(self) -> bool:
        """The host knows that one shift serves all logits; see `pieces.fixed_shift`."""
        return 2 * self.reach + self.bits <= 2 * SUM_EXPONENTS.value

    @property
    def safe_gradient(self) -> bool:
        """The host knows that no exponential of a logit leaves float32's range."""
        return self.reach <= GRADIENT_EXPONENTS.value

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """First arguments of the kernels."""
        return (*self.operands, *self.stats, self.temperature)

    @property
    def exclusion(self) -> tuple[int, int, int]:
        """Arguments about what is left out."""
        return self.half, self.row_shift, self.column_shift

    def swapped(self) -> "Pair":
        """Columns as rows, with the same entries left out."""
        return replace(
            self,
            operands=self.operands[2:] + self.operands[:2],
            stats=self.stats[::-1],
            rows=self.columns,
            columns=self.rows,
            row_shift=self.column_shift,
            column_shift=self.row_shift,
        )

    def empty(self, *size: int) -> Tensor:
        """float32 memory on the device."""
        return self.operands[0].new_empty(size, dtype=torch.float32)


def make_pair(x: Embeddings, y: Embeddings, temperature: Tensor, excluded: Excluded | None) -> Pair:
    """The pair of rows x and columns y, both from `TritonTiles.prepare`.

    Raises:
        ValueError: they were prepared for different precisions.
    """
    high, other = x.operands[0], y.operands[0]
    if high.dtype != other.dtype:
        raise ValueError(f"precision: rows are {high.dtype}, columns {other.dtype}, must be equal")
    offset, half = excluded or (0, 0)
    return Pair(
        operands=(high, x.operands[-2], other, y.operands[-2]),
        stats=(x.operands[-1], y.operands[-1]),
        temperature=temperature,
        rows=high.shape[0],
        columns=other.shape[0],
        width=high.shape[1],
        split=min(len(x.operands), len(y.operands)) == 3,
        mode=0 if excluded is None else 2 if half else 1,
        half=half,
        row_shift=0,
        column_shift=-offset,
    )
