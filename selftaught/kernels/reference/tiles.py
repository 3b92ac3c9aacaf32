"""The tiled passes as eager PyTorch on whole matrices: what other backends' passes must equal."""

import torch
from torch import Tensor

from selftaught.kernels.reference.common import compute_dtype
from selftaught.kernels.reference.contrastive import unit_rows
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side

MINUS_INFINITY = float("-inf")


def left_out(rows: int, columns: int, excluded: Excluded, device: torch.device) -> Tensor:
    """(R, C) bool, True where `excluded` says so."""
    row = torch.arange(rows, device=device)
    column = torch.arange(columns, device=device)
    mask = column == (row + excluded.offset)[:, None]
    if excluded.half:
        partner = torch.where(row < excluded.half, row + excluded.half, row - excluded.half)
        mask |= column == (partner + excluded.offset)[:, None]
    return mask


def _logits(x: Embeddings, y: Embeddings, temperature: Tensor, excluded: Excluded | None) -> Tensor:
    logits_RC = x.unit @ y.unit.T / temperature
    if excluded is None:
        return logits_RC
    mask = left_out(x.unit.shape[0], y.unit.shape[0], excluded, x.unit.device)
    return logits_RC.masked_fill(mask, MINUS_INFINITY)


class EagerTiles:
    """`selftaught.kernels.tiles.Tiles` in plain formulas."""

    def prepare(self, z: Tensor, normalize: bool, precision: str) -> Embeddings:
        """See `Tiles`."""
        del precision
        z = z.to(compute_dtype(z))
        unit, inverse = unit_rows(z) if normalize else (z, None)
        return Embeddings(unit=unit, inverse=inverse)

    def dots(self, x: Embeddings, y: Embeddings) -> Tensor:
        """See `Tiles`."""
        return (x.unit * y.unit).sum(1)

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
        logits_RC = _logits(x, y, temperature, excluded)
        return logits_RC.logsumexp(1), logits_RC.logsumexp(0) if columns else None

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
        logits_RC = _logits(x, y, temperature, excluded)
        weights_RC = torch.zeros_like(logits_RC)
        slopes = None
        if row is not None:
            row_RC = row.weight[:, None] * torch.exp(logits_RC - row.total[:, None])
            weights_RC = weights_RC + row_RC
            if slope:
                assert row.positive is not None
                above = logits_RC - row.positive[:, None]
                slopes = (row_RC * above.masked_fill(row_RC == 0, 0)).sum(1)
        if column is not None:
            weights_RC = weights_RC + column.weight * torch.exp(logits_RC - column.total)
        if classes is not None:
            share_RC = torch.zeros_like(logits_RC)
            for side, shape in ((row, (-1, 1)), (column, (1, -1))):
                if side is not None and side.share is not None:
                    share_RC = share_RC + side.share.view(shape)
            same = classes.rows[:, None] == classes.columns
            same &= logits_RC != MINUS_INFINITY
            weights_RC = weights_RC - share_RC * same
        return weights_RC @ y.unit, slopes

    def finish(
        self,
        sums: Tensor,
        x: Embeddings,
        temperature: Tensor,
        partner: Embeddings | None = None,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """See `Tiles`."""
        return finish(sums, x, temperature, partner, coefficient)


def finish(
    sums: Tensor,
    x: Embeddings,
    temperature: Tensor,
    partner: Embeddings | None,
    coefficient: Tensor | None,
) -> Tensor:
    """`Tiles.finish` in plain formulas, for any backend."""
    grad_RD = sums
    if partner is not None:
        assert coefficient is not None
        grad_RD = torch.addcmul(sums, coefficient[:, None], partner.unit)
    grad_RD = grad_RD / temperature
    if x.inverse is None:
        return grad_RD
    along_R1 = (grad_RD * x.unit).sum(1, keepdim=True)
    return torch.addcmul(grad_RD, along_R1, x.unit, value=-1) * x.inverse


TILES = EagerTiles()
