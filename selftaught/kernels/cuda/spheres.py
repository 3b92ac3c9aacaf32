"""The nearest centre and the MAD loss on the CUDA kernels.

A forward is two launches (three above `DIRECT_MEAN` centres), a backward by x is one. Nothing waits
for the device, and a row's result depends neither on N nor on other rows. The index is that of the
smallest distance, but for ties within rounding, whatever the dtype; `precision` changes nothing.
Shapes: N rows, K centres, D width.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from selftaught.kernels.cuda import library as native
from selftaught.kernels.cuda.library import address
from selftaught.kernels.cuda.passes import flat
from selftaught.kernels.cuda.plan import ceil_div
from selftaught.kernels.spheres import Mad, Nearest

NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}  # as library.cu counts them
DIRECT_MEAN = 256  # centres up to which every block of `move_centers` adds all of them by itself
SUMMED = 256  # SUMMED_CENTERS of centers.cuh
BLOCKS = 4  # of the search for each multiprocessor, so that one loads while others compute
SPLITS = 4096  # blocks that share the rows of all centres in the gradient by centers
MOST_SPLITS = 256
WIDEST = 4096  # WIDEST_MOVED of centers.cuh
ALIGNMENT = 16  # bytes that kernels read at once


class _Moved(NamedTuple):
    """Centres about their mean; see struct MoveCenters."""

    origin: Tensor
    moved: Tensor
    added: Tensor


def _rows(z: Tensor) -> Tensor:
    """The matrix with entries of a row side by side."""
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def _whole(z: Tensor) -> bool:
    """May the rows be read 16 bytes at a time?"""
    bytes_ = (z.data_ptr(), z.stride(0) * z.element_size(), z.shape[1] * z.element_size())
    return all(place % ALIGNMENT == 0 for place in bytes_)


def _loss_settings(mad: Mad | None) -> tuple[dict[str, int | float | None], Tensor | None]:
    """The loss's fields of a struct, and the labels, which must outlive it."""
    if mad is None:
        return {"labels": None, "eta": 0.0, "eps": 0.0}, None
    labels = mad.labels.to(torch.int64).contiguous()
    return {"labels": address(labels), "eta": mad.eta, "eps": mad.eps}, labels


class CudaSpheres:
    """`selftaught.kernels.spheres.Spheres` on the kernels of `csrc/cuda`."""

    def _sums(self, centers: Tensor, active: Tensor | None) -> Tensor | None:
        """(parts, D + 1) sums of the centres and how many they are; None for few centres."""
        count, width = centers.shape
        if count <= DIRECT_MEAN:
            return None
        sums = torch.empty(ceil_div(count, SUMMED), width + 1, device=centers.device)
        arguments = native.SumCenters(
            centers=address(centers),
            active=address(active),
            sums=address(sums),
            count=count,
            width=width,
        )
        native.loaded().call("sum_centers", arguments, centers.device)
        return sums

    def _move(self, centers: Tensor, active: Tensor | None, exact: bool) -> _Moved:
        library, device, (count, width) = native.loaded(), centers.device, centers.shape
        _, many, columns = library.assign_sizes()
        padded, places = ceil_div(width, columns) * columns, ceil_div(count, many) * many
        sums = self._sums(centers, active)
        result = _Moved(
            origin=torch.empty(padded, device=device),
            moved=torch.empty(count, padded, device=device),
            added=torch.empty(places, device=device),
        )
        arguments = native.MoveCenters(
            centers=address(centers),
            active=address(active),
            sums=address(sums),
            **{name: address(tensor) for name, tensor in result._asdict().items()},
            count=count,
            width=width,
            padded=padded,
            parts=0 if sums is None else sums.shape[0],
            places=places,
            exact=exact,
        )
        library.call("move_centers", arguments, device)
        return result

    def search(
        self,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        mad: Mad | None = None,
        counts: Tensor | None = None,
    ) -> Nearest:
        """See `Spheres`."""
        if centers.shape[0] == 0:
            raise ValueError(f"centers: must have at least one row, got {tuple(centers.shape)}")
        x, centers = _rows(x), flat(centers)
        active = None if active is None else active.contiguous()
        rows, width = x.shape
        squared = torch.empty(rows, device=x.device)
        index = torch.empty(rows, dtype=torch.int64, device=x.device)
        loss = None if mad is None else torch.empty_like(squared)
        settings, _labels = _loss_settings(mad)
        if rows:
            library = native.loaded()
            moved = self._move(centers, active, x.dtype != torch.float32)
            tile = library.assign_sizes()[0]
            arguments = native.Assign(
                x=address(x),
                centers=address(centers),
                **{name: address(tensor) for name, tensor in moved._asdict().items()},
                loss=address(loss),
                squared=address(squared),
                index=address(index),
                counts=address(counts),
                rows=rows,
                stride=x.stride(0),
                count=centers.shape[0],
                width=width,
                padded=moved.origin.shape[0],
                x_whole=_whole(x),
                centers_whole=_whole(centers),
                blocks=min(ceil_div(rows, tile), BLOCKS * library.processors(x.device)),
                **settings,
            )
            library.call("assign", arguments, x.device, NUMBERS[x.dtype], 0)
        return Nearest(squared, index, loss)

    def _by_centers(
        self, x: Tensor, centers: Tensor, index: Tensor, settings: dict, number: int
    ) -> Tensor:
        """The rows sorted by centre, then sums in a fixed order: equal bits in every run."""
        (count, width), device = centers.shape, x.device
        nearest, order = index.clamp(min=0).sort(stable=True)
        bounds = torch.searchsorted(nearest, torch.arange(count + 1, device=device))
        splits = min(MOST_SPLITS, ceil_div(SPLITS, count))
        parts = torch.empty(splits, count, width, device=device)
        arguments = native.NearestGradient(
            order=address(order),
            bounds=address(bounds),
            parts=address(parts),
            splits=splits,
            **settings,
        )
        native.loaded().call("nearest_by_centers", arguments, device, number, 0)
        return parts.sum(0)

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
        x, grad, number = _rows(x), grad.float(), NUMBERS[x.dtype]
        of, squared = flat(centers), nearest.squared.contiguous()
        index = nearest.center.contiguous()
        by_x = by_centers = grad.new_empty(0)
        loss_settings, _labels = _loss_settings(mad)
        settings = dict(
            grad=address(grad),
            x=address(x),
            centers=address(of),
            squared=address(squared),
            index=address(index),
            rows=x.shape[0],
            stride=x.stride(0),
            grad_stride=grad.stride(0),
            count=of.shape[0],
            width=x.shape[1],
            x_whole=_whole(x),
            centers_whole=_whole(of),
            **loss_settings,
        )
        if needs[0]:
            by_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            if x.shape[0]:
                arguments = native.NearestGradient(by_x=address(by_x), **settings)
                native.loaded().call("nearest_by_rows", arguments, x.device, number, 0)
        if needs[1]:
            by_centers = self._by_centers(x, of, index, settings, number).to(centers.dtype)
        return [by_x, by_centers]
