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


class _Mad(NamedTuple):
    labels: Tensor
    eta: float
    eps: float


class _Found(NamedTuple):
    loss: Tensor | None
    squared: Tensor
    center: Tensor


def _rows(z: Tensor) -> Tensor:
    """The matrix with entries of a row side by side."""
    return z if z.stride(1) == 1 or z.shape[1] == 1 else z.contiguous()


def _whole(z: Tensor) -> bool:
    """May the rows be read 16 bytes at a time?"""
    bytes_ = (z.data_ptr(), z.stride(0) * z.element_size(), z.shape[1] * z.element_size())
    return all(place % ALIGNMENT == 0 for place in bytes_)


def _loss_settings(mad: _Mad | None) -> dict[str, int | float | None]:
    if mad is None:
        return {"labels": None, "eta": 0.0, "eps": 0.0}
    return {"labels": address(mad.labels), "eta": mad.eta, "eps": mad.eps}


def _labels(semi_labels: Tensor) -> Tensor:
    return semi_labels.to(torch.int64).contiguous()


class CudaSpheres:
    """Functions of `selftaught.kernels.reference.spheres` on the kernels of `csrc/cuda`."""

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

    def _assign(
        self,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        mad: _Mad | None = None,
        counts: Tensor | None = None,
    ) -> _Found:
        if centers.shape[0] == 0:
            raise ValueError(f"centers: must have at least one row, got {tuple(centers.shape)}")
        x, centers = _rows(x), flat(centers)
        active = None if active is None else active.contiguous()
        rows, width = x.shape
        squared = torch.empty(rows, device=x.device)
        index = torch.empty(rows, dtype=torch.int64, device=x.device)
        loss = None if mad is None else torch.empty_like(squared)
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
                **_loss_settings(mad),
            )
            library.call("assign", arguments, x.device, NUMBERS[x.dtype], 0)
        return _Found(loss, squared, index)

    def nearest_center(
        self, x: Tensor, centers: Tensor, active: Tensor | None, precision: str
    ) -> tuple[Tensor, Tensor]:
        """Squared distance to, and index of, the nearest centre; see `reference.spheres`."""
        found = self._assign(x, centers, active)
        return found.squared, found.center

    def nearest_center_counts(
        self, x: Tensor, centers: Tensor, active: Tensor | None, precision: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """`nearest_center` and, from the same pass, (K,) int64 numbers of rows of each centre.

        Rows with index -1 are counted nowhere.
        """
        counts = torch.zeros(centers.shape[0], dtype=torch.int64, device=x.device)
        found = self._assign(x, centers, active, counts=counts)
        return found.squared, found.center, counts

    def mad(
        self,
        x: Tensor,
        centers: Tensor,
        semi_labels: Tensor,
        active: Tensor | None,
        eta: float,
        eps: float,
        precision: str,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, squared distances and indices of the nearest centres; see `reference.spheres`."""
        mad = _Mad(_labels(semi_labels), eta, eps)
        found = self._assign(x, centers, active, mad)
        assert found.loss is not None
        return found.loss, found.squared, found.center

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

    def _backward(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        squared: Tensor,
        index: Tensor,
        mad: _Mad | None,
        needs: list[bool],
    ) -> list[Tensor]:
        x, grad, number = _rows(x), grad.float(), NUMBERS[x.dtype]
        of, squared, index = flat(centers), squared.contiguous(), index.contiguous()
        by_x = by_centers = grad.new_empty(0)
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
            **_loss_settings(mad),
        )
        if needs[0]:
            by_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            if x.shape[0]:
                arguments = native.NearestGradient(by_x=address(by_x), **settings)
                native.loaded().call("nearest_by_rows", arguments, x.device, number, 0)
        if needs[1]:
            by_centers = self._by_centers(x, of, index, settings, number).to(centers.dtype)
        return [by_x, by_centers]

    def nearest_center_backward(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        precision: str,
        squared: Tensor,
        index: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients of sum(grad * squared distance) by x and centers."""
        return self._backward(grad, x, centers, squared, index, None, needs)

    def mad_backward(
        self,
        grad: Tensor,
        x: Tensor,
        centers: Tensor,
        semi_labels: Tensor,
        active: Tensor | None,
        eta: float,
        eps: float,
        precision: str,
        loss: Tensor,
        squared: Tensor,
        index: Tensor,
        needs: list[bool],
    ) -> list[Tensor]:
        """Gradients of sum(grad * loss) by x and centers."""
        mad = _Mad(_labels(semi_labels), eta, eps)
        return self._backward(grad, x, centers, squared, index, mad, needs)
