"""The nearest centre and the MAD loss in C++, forward and backward.

float32 and float64; bfloat16 and float16 are computed in float32. `precision` bounds how low a
backend may go, and this one never goes lower than its input.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from selftaught.kernels import native
from selftaught.kernels.reference.common import compute_dtype


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


def _labels(semi_labels: Tensor) -> Tensor:
    return semi_labels.to(torch.int64).contiguous()


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


def _forward(
    x: Tensor, centers: Tensor, active: Tensor | None, outputs: dict[str, Tensor | None], **mad: Any
) -> tuple[Tensor, Tensor]:
    dtype = compute_dtype(x)
    squared = x.new_empty(x.shape[0], dtype=dtype)
    index = x.new_empty(x.shape[0], dtype=torch.int64)
    tensors = {
        "x": _matrix(x, dtype),
        "centers": _matrix(centers, dtype),
        "active": None if active is None else active.contiguous(),
        "squared": squared,
        "index": index,
        **outputs,
    }
    _run("nearest_center", dtype, tensors, **mad)
    return squared, index


def nearest_center(
    x: Tensor, centers: Tensor, active: Tensor | None, precision: str
) -> tuple[Tensor, Tensor]:
    """Squared distance to, and index of, the nearest centre; see `reference.nearest_center`."""
    return _forward(x, centers, active, {})


def nearest_center_counts(
    x: Tensor, centers: Tensor, active: Tensor | None, precision: str
) -> tuple[Tensor, Tensor, Tensor]:
    """`nearest_center`, and (K,) int64 numbers of rows that are nearest to each centre.

    Rows with index -1 are counted nowhere.
    """
    counts = x.new_empty(centers.shape[0], dtype=torch.int64)
    return *_forward(x, centers, active, {"counts": counts}), counts


def mad(
    x: Tensor,
    centers: Tensor,
    semi_labels: Tensor,
    active: Tensor | None,
    eta: float,
    eps: float,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses, squared distances and indices of the nearest centres; see `reference.mad`."""
    loss = x.new_empty(x.shape[0], dtype=compute_dtype(x))
    outputs: dict[str, Tensor | None] = {"loss": loss, "labels": _labels(semi_labels)}
    return loss, *_forward(x, centers, active, outputs, eta=eta, eps=eps)


def _backward(
    grad: Tensor,
    x: Tensor,
    centers: Tensor,
    squared: Tensor,
    index: Tensor,
    needs: list[bool],
    labels: Tensor | None = None,
    **mad: Any,
) -> list[Tensor]:
    dtype = compute_dtype(x)
    x_ND, centers_KD = _matrix(x, dtype), _matrix(centers, dtype)
    by_x = torch.empty_like(x_ND) if needs[0] else None
    by_centers = torch.empty_like(centers_KD) if needs[1] else None
    grad = grad.to(dtype)
    # The gradient of a mean is one number seen N times; a copy of it would be a pass of its own.
    many = grad if grad.is_contiguous() else grad.as_strided((1,), (1,))
    tensors = {
        "x": x_ND,
        "centers": centers_KD,
        "labels": labels,
        "squared": squared.contiguous(),
        "index": index.contiguous(),
        "grad": many,
        "by_x": by_x,
        "by_centers": by_centers,
    }
    _run("nearest_center_backward", dtype, tensors, grad_stride=grad.stride(0), **mad)
    return [
        grad.new_empty(0) if value is None else value.to(source.dtype)
        for value, source in ((by_x, x), (by_centers, centers))
    ]


def nearest_center_backward(
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
    return _backward(grad, x, centers, squared, index, needs)


def mad_backward(
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
    labels = _labels(semi_labels)
    return _backward(grad, x, centers, squared, index, needs, labels, eta=eta, eps=eps)
