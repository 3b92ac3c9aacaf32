"""The tiled passes on the CUDA kernels.

Operands are halves of the rows times a power of two: one product of halves ("fp16", and "bf16",
whose range unit rows do not need), or, for "fp32", two halves per number and three products, which
together keep about 22 bits. Nothing here waits for the device.

Weights of the gradient pass become halves too, scaled by the largest gradient by a loss in the
call: weights below 2^-38 of that are lost, so rows whose loss is below 1e-10 or so get a rough
gradient, or none but their positive's.
"""

import torch
from torch import Tensor

from selftaught.kernels.cuda import library as native
from selftaught.kernels.cuda.library import address
from selftaught.kernels.cuda.passes import flat, padded, set_ranges, set_sides, walk, weigh
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side

UNIT_EXPONENT = 13  # unit rows times 2^13 stay far inside the range of halves


def is_split(dtype: torch.dtype, precision: str) -> bool:
    """Must products be as good as float32's? "auto" asks for the input's own precision."""
    return precision == "fp32" or (precision == "auto" and dtype == torch.float32)


def _scale(z: Tensor, normalize: bool) -> Tensor:
    """(1,) power of two that brings the rows' entries below 2^14."""
    if normalize:
        return torch.full((1,), 2.0**UNIT_EXPONENT, device=z.device)
    exponent = torch.frexp(z.abs().amax())[1].clamp(min=-100, max=100)
    return torch.ldexp(torch.ones((), device=z.device), UNIT_EXPONENT + 1 - exponent).view(1)


class CudaTiles:
    """`selftaught.kernels.tiles.Tiles` on the kernels of `csrc/cuda`."""

    def prepare(self, z: Tensor, normalize: bool, precision: str) -> Embeddings:
        """See `Tiles`. Operands: halves (N, 1 or 2 padded), lengths (N,), scale (N,)."""
        split = is_split(z.dtype, precision)
        z = z.float().contiguous()
        count, width = z.shape
        many = padded(width) * (2 if split else 1)
        halves = torch.empty(count, many, dtype=torch.float16, device=z.device)
        lengths = torch.empty(count, device=z.device)
        unit = torch.empty_like(z) if normalize else None
        inverse = torch.empty(count, 1, device=z.device) if normalize else None
        scale = _scale(z, normalize) if count else lengths.new_ones(1)
        if count:
            arguments = native.Prepare(
                raw=address(z),
                scale=address(scale),
                unit=address(unit),
                inverse=address(inverse),
                length=address(lengths),
                operands=address(halves),
                count=count,
                width=width,
                padded=padded(width),
                split=split,
            )
            native.loaded().call("prepare", arguments, z.device)
        operands = (halves, lengths, scale.expand(count))
        return Embeddings(unit=z if unit is None else unit, inverse=inverse, operands=operands)

    def dots(self, x: Embeddings, y: Embeddings) -> Tensor:
        """See `Tiles`."""
        one, other = x.unit.contiguous(), y.unit.contiguous()
        count, width = one.shape
        result = torch.empty(count, device=one.device)
        if count:
            arguments = native.Dots(
                x=address(one),
                y=address(other),
                result=address(result),
                count=count,
                width=width,
            )
            native.loaded().call("dots", arguments, one.device)
        return result

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
        rows, others = x.unit.shape[0], y.unit.shape[0]
        if not rows or not others:
            nothing = x.unit.new_full((rows,), float("-inf"))
            return nothing, x.unit.new_full((others,), float("-inf")) if columns else None
        ranges = set_ranges(x, y, temperature)
        of_rows, walked = walk(x, y, ranges, excluded, columns and y is not x)
        return of_rows, of_rows if columns and y is x else walked

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
        rows, width = x.unit.shape
        slope = slope and row is not None
        if not rows or not y.unit.shape[0]:
            return x.unit.new_zeros(rows, width), x.unit.new_zeros(rows) if slope else None
        ranges = set_ranges(x, y, temperature, row, column)
        sides = (
            set_sides(row, ranges, rows),
            set_sides(column, ranges, y.unit.shape[0]),
        )
        positive = None
        if slope:
            assert row is not None and row.positive is not None
            positive = flat(row.positive)
        return weigh(x, y, ranges, excluded, sides, classes, positive)

    def finish(
        self,
        sums: Tensor,
        x: Embeddings,
        temperature: Tensor,
        partner: Embeddings | None = None,
        coefficient: Tensor | None = None,
    ) -> Tensor:
        """See `Tiles`."""
        count, width = sums.shape
        result = torch.empty(count, width, device=sums.device)
        if not count:
            return result
        sums, unit, temperature = flat(sums), flat(x.unit), flat(temperature)
        inverse = None if x.inverse is None else flat(x.inverse)
        other = scaled_by = None
        if partner is not None:
            assert coefficient is not None
            other, scaled_by = flat(partner.unit), flat(coefficient)
        arguments = native.Finish(
            sums=address(sums),
            unit=address(unit),
            inverse=address(inverse),
            temperature=address(temperature),
            partner=address(other),
            coefficient=address(scaled_by),
            gradient=address(result),
            count=count,
            width=width,
        )
        native.loaded().call("finish", arguments, sums.device)
        return result


TILES = CudaTiles()
