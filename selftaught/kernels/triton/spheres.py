"""The nearest centre and the loss on its distance on Triton: what the kernels are launched with.

A forward is two launches (three above `DIRECT_MEAN` centres, one for K = 1), a backward by x is
one. Nothing waits for the device, and a row's result depends neither on N nor on other rows.
Shapes: N rows, K centres, D width.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from selftaught.kernels.spheres import Mad, Nearest
from selftaught.kernels.triton import nearest_center as kernels
from selftaught.kernels.triton import nearest_gradient as gradients
from selftaught.kernels.triton.tuning import generation

DIRECT_MEAN = 1024  # centres up to which every program of `prepare` sums all of them by itself
SUMMED = 256  # centres summed by one program above that
SPLITS = 4096  # programs that share the rows of all centres in the gradient by centers
FUSED = {"enable_fp_fusion": True}  # said at every launch: Triton's default is about to change
HELD_WIDTH = 128  # widest row that stays on chip during the search


class _Tier(NamedTuple):
    """How the scores are made.

    Attributes:
        number: TIER of the kernels.
        operand: dtype of the operands in memory.
        error: of a product of two vectors, relative to the product of their lengths.
        error_per_column: of the accumulation.
    """

    number: int
    operand: torch.dtype
    error: float
    error_per_column: float


_TIERS = {
    torch.float32: _Tier(3, torch.float32, 2.0**-20, 2.0**-25),
    torch.float16: _Tier(2, torch.float32, 2.0**-20, 2.0**-25),
    torch.bfloat16: _Tier(1, torch.bfloat16, 2.0**-16, 2.0**-25),
}


class _Blocks(NamedTuple):
    """Tile sizes, under the names of the kernels' constants.

    Attributes:
        HELD: do the rows stay on chip during the search.
        BN: rows of a program.
        BK: centres of a tile.
        BD: columns of a tile.
        BW: columns at once in direct differences.
    """

    HELD: bool
    BN: int
    BK: int
    BD: int
    BW: int


class _Moved(NamedTuple):
    """Centres about their mean, as `kernels.prepare` leaves them."""

    origin: Tensor
    high: Tensor
    low: Tensor
    length: Tensor


def blocks(count: int, width: int, number: int, vectors: bool, generation: int) -> _Blocks:
    """Tile sizes for K centres of width D in a tier; the same at every N.

    `vectors` says whether rows can be read 16 entries at a time; where they cannot, they take more
    addresses. A tile of 64 centres would then spill on sm_80, and in tier 3 spills there always.
    """
    padded = max(16, triton.next_power_of_2(width))
    short = number == 1
    held = short and padded <= HELD_WIDTH
    wide = vectors and (number < 3 or generation > 8)
    return _Blocks(
        HELD=held,
        BN=64,
        BK=min(64 if wide else 32, max(16, triton.next_power_of_2(count))),
        BD=padded if held else min(padded, 64 if short and vectors else 32),
        BW=min(padded, 32),
    )


def options(shape: _Blocks, vectors: bool) -> dict[str, bool | int]:
    """What `kernels.assign` is compiled with; `vectors` as in `blocks`."""
    # Left alone, ptxas spills at 128 registers on sm_100; 168 still let three programs share a
    # multiprocessor.
    registers = 168 if vectors else 255
    return dict(num_warps=4, num_stages=2 if shape.HELD else 3, maxnreg=registers, **FUSED)


def _in_vectors(z: Tensor) -> bool:
    """Whether Triton finds every row of `z` to start at a multiple of 16 entries and bytes."""
    return not (z.shape[1] % 16 or z.stride(0) % 16 or z.data_ptr() % 16)


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _packed(z: Tensor) -> Tensor:
    """The tensor with entries of a row side by side."""
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def _prepare(centers: Tensor, active: Tensor | None, level: _Tier, shape: _Blocks) -> _Moved:
    count, width = centers.shape
    rows = triton.cdiv(count, shape.BK) * shape.BK
    columns = triton.cdiv(width, shape.BD) * shape.BD
    origin = centers.new_empty(columns, dtype=torch.float32)
    high = centers.new_empty(rows, columns, dtype=level.operand)
    low = torch.empty_like(high)
    length = centers.new_empty(rows, dtype=torch.float32)
    summed = count > DIRECT_MEAN
    parts = triton.cdiv(count, SUMMED) if summed else 0
    sums = centers.new_empty(parts, width, dtype=torch.float32) if summed else origin
    flags = centers if active is None else active
    if summed:
        kernels.sum_centers[(parts, triton.cdiv(width, 64))](
            centers, flags, sums, count, width, centers.stride(0),
            ACTIVE=active is not None, BC=SUMMED, **FUSED,
        )  # fmt: skip
    kernels.prepare[(rows // 16,)](
        centers, flags, sums, origin, high, low, length,
        count, width, columns, centers.stride(0), parts,
        ACTIVE=active is not None, SUMMED=summed, TIER=level.number, BC=16,
        BD=min(shape.BD, 64), **FUSED,
    )  # fmt: skip
    return _Moved(origin, high, low, length)


def _by_rows(grad: Tensor, x: Tensor, centers: Tensor, nearest: Nearest, mad: Mad | None) -> Tensor:
    (many, width), labels = x.shape, nearest.center if mad is None else mad.labels
    result = x.new_empty(many, width)
    columns = min(128, max(16, triton.next_power_of_2(width)))
    rows = 4096 // columns
    gradients.gradient_rows[(triton.cdiv(many, rows), triton.cdiv(width, columns))](
        grad, x, centers, labels, nearest.squared, nearest.center, result,
        many, width, x.stride(0), centers.stride(0), grad.stride(0), labels.stride(0),
        0.0 if mad is None else mad.eta, 0.0 if mad is None else mad.eps,
        MAD=mad is not None, BN=rows, BD=columns, **FUSED,
    )  # fmt: skip
    return result


def _by_centers(
    grad: Tensor, x: Tensor, centers: Tensor, nearest: Nearest, mad: Mad | None
) -> Tensor:
    """The rows sorted by centre, then sums in a fixed order: equal bits in every run."""
    (count, width), labels = centers.shape, nearest.center if mad is None else mad.labels
    place, order = nearest.center.clamp(min=0).sort(stable=True)
    bounds = torch.searchsorted(place, torch.arange(count + 1, device=x.device))
    splits = min(256, triton.next_power_of_2(triton.cdiv(SPLITS, count)))
    parts = torch.empty(splits, count, width, dtype=torch.float32, device=x.device)
    columns = min(128, max(16, triton.next_power_of_2(width)))
    gradients.gradient_centers[(count, splits, triton.cdiv(width, columns))](
        grad, x, centers, labels, nearest.squared, nearest.center, order, bounds, parts,
        count, width, x.stride(0), centers.stride(0), grad.stride(0), labels.stride(0),
        0.0 if mad is None else mad.eta, 0.0 if mad is None else mad.eps,
        MAD=mad is not None, SPLITS=splits, BN=32, BD=columns, **FUSED,
    )  # fmt: skip
    return parts.sum(0).to(centers.dtype)


class TritonSpheres:
    """`selftaught.kernels.spheres.Spheres` on a GPU, or in Triton's interpreter.

    Rows are float32, float16 or bfloat16, centres of any float dtype.
    """

    def search(
        self,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        mad: Mad | None = None,
        counts: Tensor | None = None,
    ) -> Nearest:
        """See `Spheres`."""
        x, centers = _packed(x), _packed(centers)
        active = None if active is None else active.contiguous()
        (many, width), count = x.shape, centers.shape[0]
        level = _TIERS[x.dtype]
        vectors = _in_vectors(x) and _in_vectors(centers)
        shape = blocks(count, width, level.number, vectors, generation(x.device))
        squared = x.new_empty(many, dtype=torch.float32)
        index = x.new_empty(many, dtype=torch.int64)
        loss = squared if mad is None else torch.empty_like(squared)
        labels = index if mad is None else mad.labels
        with _device(x):
            if count > 1:
                moved = _prepare(centers, active, level, shape)
            else:
                moved = _Moved(squared, squared, squared, squared)
            kernels.assign[(triton.cdiv(many, shape.BN),)](
                x, centers, centers if active is None else active, *moved, labels, loss, squared,
                index, index if counts is None else counts,
                many, count, width, moved.length.shape[0], moved.origin.shape[0],
                x.stride(0), centers.stride(0), labels.stride(0),
                0.0 if mad is None else mad.eta, 0.0 if mad is None else mad.eps,
                level.error + level.error_per_column * width,
                ACTIVE=active is not None, TIER=level.number if count > 1 else 0,
                MAD=mad is not None, COUNTED=counts is not None,
                **shape._asdict(), **options(shape, vectors),
            )  # fmt: skip
        return Nearest(squared, index, None if mad is None else loss)

    def gradients(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        nearest: Nearest,
        mad: Mad | None,
        needs: list[bool],
    ) -> list[Tensor]:
        """See `Spheres`."""
        x, centers, none = _packed(x), _packed(centers), grad.new_empty(0)
        with _device(x):
            return [
                _by_rows(grad, x, centers, nearest, mad) if needs[0] else none,
                _by_centers(grad, x, centers, nearest, mad) if needs[1] else none,
            ]
