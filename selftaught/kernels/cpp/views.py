"""NT-Xent of one process's two views in C++: one call each way, for batches whose time is overhead.

Shapes: B images, D width, rows are first views, then second views.
"""

import ctypes
import sys
from collections.abc import Sequence

import torch
from torch import Tensor

from selftaught.kernels import native
from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.cpp.tiles import threads
from selftaught.kernels.reference.common import compute_dtype

Results = tuple[Tensor, Tensor, Tensor, Tensor]


class _Views(ctypes.Structure):
    """`Views` of csrc/cpu/contrastive.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("z1", "z2", "temperature", "unit", "inverse")),
        *((name, ctypes.c_void_p) for name in ("positive", "losses", "grad")),
        *((name, ctypes.c_void_p) for name in ("gradient1", "gradient2", "of_temperature")),
        ("over", ctypes.c_double),
        *((name, ctypes.c_int64) for name in ("images", "width", "grad_step")),
        *((name, ctypes.c_int64) for name in ("threads", "row_threads")),
    ]


def keep(z1: Tensor, labels: Tensor | None, reduction: str, precision: str) -> Results:
    """Room for the loss, unit rows (2B, D), and inverse lengths, positives, losses (3, 2B)."""
    del labels, precision
    count, dtype = 2 * z1.shape[0], compute_dtype(z1)
    return (
        z1.new_empty(count if reduction == "none" else (), dtype=dtype),
        z1.new_empty(count, z1.shape[1], dtype=dtype),
        z1.new_empty(3, count, dtype=dtype),
        z1.new_empty(0, dtype=torch.int32),
    )


def _arguments(
    unit: Tensor, vectors: Tensor, temperature: Tensor | None, fixed: float, normalize: bool
) -> tuple[_Views, Tensor]:
    """What both ways take, and the temperature, which must outlive it."""
    tau = unit.new_full((), fixed) if temperature is None else temperature.detach().to(unit.dtype)
    count, width = unit.shape
    inverse = vectors.data_ptr()
    step = count * vectors.element_size()
    made = _Views(
        temperature=native.pointer(tau),
        unit=native.pointer(unit),
        inverse=inverse if normalize else None,
        positive=inverse + step,
        losses=inverse + 2 * step,
        images=count // 2,
        width=width,
        threads=threads(count * count * width),
        row_threads=threads(unit.numel()),
    )
    return made, tau


def forward(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor | None,
    temperature: Tensor | None,
    fixed: float,
    normalize: bool,
    reduction: str,
    precision: str,
) -> Results:
    """The loss and what the backward keeps; see `keep`."""
    _, unit, vectors, classes = keep(z1, labels, reduction, precision)
    arguments, _tau = _arguments(unit, vectors, temperature, fixed, normalize)
    views = [z.detach().to(unit.dtype).contiguous() for z in (z1, z2)]
    arguments.z1, arguments.z2 = (native.pointer(view) for view in views)
    native.run("views", unit.dtype, arguments)
    losses = vectors[2]
    if reduction == "none":
        return losses.clone(), unit, vectors, classes
    return losses.mean() if reduction == "mean" else losses.sum(), unit, vectors, classes


def backward(
    grad: Tensor,
    z1: Tensor,
    z2: Tensor,
    labels: Tensor | None,
    temperature: Tensor | None,
    fixed: float,
    normalize: bool,
    reduction: str,
    precision: str,
    loss: Tensor,
    unit: Tensor,
    vectors: Tensor,
    classes: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients by z1, z2 and temperature; an empty tensor where none is needed."""
    del labels, precision, loss, classes
    arguments, _tau = _arguments(unit, vectors, temperature, fixed, normalize)
    grad = grad.detach().contiguous()
    half = (unit.shape[0] // 2, unit.shape[1])
    made = [unit.new_empty(half if need else 0) for need in needs[:2]]
    made.append(unit.new_empty(() if needs[2] else 0))
    pointers = [
        native.pointer(one) if need else None for one, need in zip(made, needs, strict=True)
    ]
    arguments.gradient1, arguments.gradient2, arguments.of_temperature = pointers
    arguments.grad, arguments.grad_step = native.pointer(grad), int(grad.ndim > 0)
    arguments.over = unit.shape[0] if reduction == "mean" else 1
    native.run("views_backward", unit.dtype, arguments)
    sources = (z1, z2, unit if temperature is None else temperature)
    return [one.to(source.dtype) for one, source in zip(made, sources, strict=True)]


class CppLosses(Contrastive):
    """The contrastive ops in C++, NT-Xent of one process's views with calls of its own."""

    widest_views = {"ntxent": sys.maxsize}
    keep_views = staticmethod(keep)
    views = staticmethod(forward)
    views_backward = staticmethod(backward)
