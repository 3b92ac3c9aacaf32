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
from selftaught.kernels.triton.tuning import FUSED, generation, processors

DIRECT_MEAN = 1024  # centres up to which every program of `prepare` sums all of them by itself
SUMMED = 256  # centres summed by one program above that
SPLITS = 4096  # programs that share the rows of all centres in the gradient by centers
WHOLE_WIDTH = 128  # widest row that is read at once
KEPT_CENTERS = 128  # most centres whose parts a program keeps in shared memory
ERRORS = (0.0, 5 * 2.0**-20, 13 * 2.0**-20)  # of a product of vectors by PARTS, over their lengths
ERROR_PER_COLUMN = 2.0**-25  # of the accumulation


class Shape(NamedTuple):
    """Tile sizes and how programs are run; the names in capitals are the kernel's.

    Attributes:
        WHOLE: pieces of BD columns in which a row is read at once; 0: it is too wide.
        KEPT: do the centres stay on chip.
        BN: rows of a program at a time.
        BK: centres of a tile.
        BD: columns of a tile.
        warps: of a program.
        stages: tiles in flight.
        programs: that share a multiprocessor: their registers and shared memory suffice.
    """

    WHOLE: int
    KEPT: bool
    BN: int
    BK: int
    BD: int
    warps: int
    stages: int
    programs: int

    def settings(self) -> dict[str, bool | int]:
        """What `kernels.assign` is compiled with."""
        constants = {name: value for name, value in self._asdict().items() if name.isupper()}
        # Left alone, ptxas may stop at 128 registers and spill.
        limits = dict(num_warps=self.warps, num_stages=self.stages, maxnreg=255)
        return constants | limits | FUSED


class _Moved(NamedTuple):
    """Centres about their mean, as `kernels.prepare` leaves them."""

    origin: Tensor
    high: Tensor
    low: Tensor
    length: Tensor


def parts_of(dtype: torch.dtype, count: int) -> int:
    """Bfloat16 parts that a row of this type is multiplied in; 0 where K = 1 leaves no choice."""
    return 0 if count == 1 else 1 if dtype == torch.bfloat16 else 2


def shape_for(count: int, width: int, vectors: bool, generation: int) -> Shape:
    """Tile sizes for K centres of width D; the same at every N.

    `vectors` says whether rows can be read 16 entries at a time; where they cannot, they take more
    addresses, and what is not held and smaller tiles leave registers for them.
    """
    columns = max(16, triton.next_power_of_2(width))
    centers = max(16, triton.next_power_of_2(count))
    piece = min(columns, 32 if vectors else 16)
    whole = columns // piece if vectors and columns <= WHOLE_WIDTH else 0
    # Before sm_90 products take centres from registers, and on sm_100 a tile of all of them spills.
    if whole and 1 < count <= KEPT_CENTERS and generation == 9:
        return Shape(whole, True, 64, centers, piece, warps=4, stages=1, programs=2)
    tile = min(centers, 64 if vectors else 32)
    stages = 1 if generation > 9 else 2  # two spill for bfloat16 rows on sm_100
    return Shape(whole, False, 128, tile, piece, warps=8, stages=stages, programs=1)


def _in_vectors(z: Tensor) -> bool:
    """Whether Triton finds every row of `z` to start at a multiple of 16 entries and bytes."""
    return not (z.shape[1] % 16 or z.stride(0) % 16 or z.data_ptr() % 16)


def _device(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _packed(z: Tensor) -> Tensor:
    """The tensor with entries of a row side by side."""
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def _prepare(centers: Tensor, active: Tensor | None, parts: int, shape: Shape) -> _Moved:
    count, width = centers.shape
    rows = triton.cdiv(count, shape.BK) * shape.BK
    columns = triton.cdiv(width, shape.BD) * shape.BD
    origin = centers.new_empty(columns, dtype=torch.float32)
    high = centers.new_empty(rows, columns, dtype=torch.bfloat16)
    low = torch.empty_like(high)
    length = centers.new_empty(rows, dtype=torch.float32)
    summed = count > DIRECT_MEAN
    blocks = triton.cdiv(count, SUMMED) if summed else 0
    sums = centers.new_empty(blocks, width, dtype=torch.float32) if summed else origin
    flags = centers if active is None else active
    if summed:
        kernels.sum_centers[(blocks, triton.cdiv(width, 64))](
            centers, flags, sums, count, width, centers.stride(0),
            ACTIVE=active is not None, BC=SUMMED, **FUSED,
        )  # fmt: skip
    kernels.prepare[(rows // 16,)](
        centers, flags, sums, origin, high, low, length,
        count, width, columns, centers.stride(0), blocks,
        ACTIVE=active is not None, SUMMED=summed, PARTS=parts, BC=16,
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
        parts = parts_of(x.dtype, count)
        vectors = _in_vectors(x) and _in_vectors(centers)
        shape = shape_for(count, width, vectors, generation(x.device))
        squared = x.new_empty(many, dtype=torch.float32)
        index = x.new_empty(many, dtype=torch.int64)
        loss = squared if mad is None else torch.empty_like(squared)
        labels = index if mad is None else mad.labels
        programs = min(triton.cdiv(many, shape.BN), shape.programs * processors(x.device))
        with _device(x):
            if parts > 0:
                moved = _prepare(centers, active, parts, shape)
            else:
                moved = _Moved(squared, squared, squared, squared)
            kernels.assign[(programs,)](
                x, centers, centers if active is None else active, *moved, labels, loss, squared,
                index, index if counts is None else counts,
                many, width, moved.length.shape[0], moved.origin.shape[0],
                x.stride(0), centers.stride(0), labels.stride(0),
                0.0 if mad is None else mad.eta, 0.0 if mad is None else mad.eps,
                ERRORS[parts] + ERROR_PER_COLUMN * width,
                ACTIVE=active is not None, PARTS=parts,
                MAD=mad is not None, COUNTED=counts is not None,
                **shape.settings(),
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
