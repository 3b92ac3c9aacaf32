"""The nearest centre and the MAD loss in C++, forward and backward.

float32 and float64; bfloat16 and float16 are computed in float32.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from selftaught.kernels import native
from selftaught.kernels.reference.common import compute_dtype
from selftaught.kernels.spheres import Mad, Nearest


class _Arguments(ctypes.Structure):
    """`NearestCenter` of csrc/cpu/nearest_center.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "centers", "active", "labels", "loss")),
        *((name, ctypes.c_void_p) for name in ("squared", "index", "counts")),
        *((name, ctypes.c_void_p) for name in ("grad", "by_x", "by_centers")),
        *((name, ctypes.c_int64) for name in ("N", "K", "D", "grad_stride", "threads")),
        *((name, ctypes.c_double) for name in ("eta", "eps")),
    ]


def _matrix(values: Tensor, dtype: torch.dtype) -> Tensor:
    return values.detach().to(dtype).contiguous()


def _run(kernel: str, dtype: torch.dtype, tensors: dict[str, Tensor | None], **more: Any) -> None:
    """Calls `kernel`; `tensors` holds the struct's pointers, `more` its numbers."""
    x, centers = tensors["x"], tensors["centers"]
    assert x is not None and centers is not None
    if centers.shape[0] == 0:
        raise ValueError(f"centers: must have at least one row, got {tuple(centers.shape)}")
    arguments = _Arguments(
        **{name: native.pointer(tensor) for name, tensor in tensors.items()},
        N=x.shape[0],
        K=centers.shape[0],
        D=x.shape[1],
        threads=torch.get_num_threads(),
        **more,
    )
    native.run(kernel, dtype, arguments)


def _settings(mad: Mad | None) -> tuple[Tensor | None, dict[str, float]]:
    """The labels, and the loss's other fields of the struct."""
    if mad is None:
        return None, {}
    return mad.labels.to(torch.int64).contiguous(), {"eta": mad.eta, "eps": mad.eps}


class CppSpheres:
    """`selftaught.kernels.spheres.Spheres` on the native library."""

    def search(
        self,
        x: Tensor,
        centers: Tensor,
        active: Tensor | None,
        mad: Mad | None = None,
        counts: Tensor | None = None,
    ) -> Nearest:
        """See `Spheres`."""
        dtype = compute_dtype(x)
        squared = x.new_empty(x.shape[0], dtype=dtype)
        index = x.new_empty(x.shape[0], dtype=torch.int64)
        loss = None if mad is None else torch.empty_like(squared)
        labels, numbers = _settings(mad)
        tensors = {
            "x": _matrix(x, dtype),
            "centers": _matrix(centers, dtype),
            "active": None if active is None else active.contiguous(),
            "labels": labels,
            "loss": loss,
            "squared": squared,
            "index": index,
            "counts": counts,
        }
        _run("nearest_center", dtype, tensors, **numbers)
        return Nearest(squared, index, loss)

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
        dtype = compute_dtype(x)
        x_ND, centers_KD = _matrix(x, dtype), _matrix(centers, dtype)
        by_x = torch.empty_like(x_ND) if needs[0] else None
        by_centers = torch.empty_like(centers_KD) if needs[1] else None
        grad = grad.to(dtype)
        # The gradient of a mean is one number seen N times; a copy of it would be a pass of its
        # own.
        many = grad if grad.is_contiguous() else grad.as_strided((1,), (1,))
        labels, numbers = _settings(mad)
        tensors = {
            "x": x_ND,
            "centers": centers_KD,
            "labels": labels,
            "squared": nearest.squared.contiguous(),
            "index": nearest.center.contiguous(),
            "grad": many,
            "by_x": by_x,
            "by_centers": by_centers,
        }
        _run("nearest_center_backward", dtype, tensors, grad_stride=grad.stride(0), **numbers)
        return [
            grad.new_empty(0) if value is None else value.to(source.dtype)
            for value, source in ((by_x, x), (by_centers, centers))
        ]
