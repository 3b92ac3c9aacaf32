"""The contrastive passes of `kernels.tiles.Tiles` by Triton kernels."""

from torch import Tensor

from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side
from selftaught.kernels.triton import rows
from selftaught.kernels.triton.log_sums import log_sums, symmetric_log_sums
from selftaught.kernels.triton.pairs import make_pair, on
from selftaught.kernels.triton.weighted_sums import weighted_sums


class TritonTiles:
    """`selftaught.kernels.tiles.Tiles` on a GPU, or in Triton's interpreter.

    `Embeddings.operands` are the high part, the low part of split operands, and (N, 2) equal rows:
    the power of two that operands were multiplied by, and a bound of the rows' lengths.
    """

    def prepare(self, z: Tensor, normalize: bool, precision: str) -> Embeddings:
        """See `Tiles`."""
        return rows.prepare(z, normalize, precision)

    def dots(self, x: Embeddings, y: Embeddings) -> Tensor:
        """See `Tiles`."""
        return rows.dots(x, y)

    def log_sums(
        self,
        x: Embeddings,
        y: Embeddings,
        temperature: Tensor,
        excluded: Excluded | None,
        *,
        columns: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """See `Tiles`."""
        pair = make_pair(x, y, temperature, excluded)
        if not pair.rows or not pair.columns:
            nothing = x.unit.new_full((pair.rows + pair.columns,), float("-inf"))
            return nothing[: pair.rows], nothing[pair.rows :] if columns else None
        with on(x.unit):
            if y is not x:
                return log_sums(pair, columns)
            of_rows = symmetric_log_sums(pair)
            return of_rows, of_rows.clone() if columns else None

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
        """See `Tiles`."""
        pair = make_pair(x, y, temperature, excluded)
        slope = slope and row is not None
        if not pair.rows or not pair.columns:
            sums = x.unit.new_zeros(x.unit.shape)
            return sums, x.unit.new_zeros(pair.rows) if slope else None
        with on(x.unit):
            return weighted_sums(pair, x.unit.shape[1], row, column, classes, slope)

    def finish(
        self,
        sums: Tensor,
        x: Embeddings,
        temperature: Tensor,
        partner: Embeddings | None = None,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """See `Tiles`."""
        return rows.finish(sums, x, temperature, partner, coefficient)


TILES = TritonTiles()
