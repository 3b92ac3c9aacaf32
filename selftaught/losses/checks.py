"""What every loss refuses, and the reductions.

Values of tensors (finite entries, temperature > 0, labels) are looked at only in eager mode on
the CPU: on another device that would make the host wait for the device at every step and break
CUDA graphs, under torch.compile it would break the graph, and under torch.func or a fake mode
there is no single value. There, and where the caller wants no values checked, a NaN or infinity
gives a NaN loss instead, which a training loop stops on.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from selftaught.arguments import real
from selftaught.kernels import BACKENDS, PRECISIONS

REDUCTIONS = ("mean", "sum", "none")
EXCHANGES = ("gather", "ring")
INTEGERS = (
    *(torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.uint8, torch.uint16, torch.uint32, torch.uint64),
)


def values_readable(tensor: Tensor) -> bool:
    """Whether `tensor` has values, and reading them costs no wait for a device or graph break."""
    return tensor.device.type == "cpu" and not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack()
    )


def check_options(
    backend: str | None, precision: str, reduction: str = "mean", exchange: str = "gather"
) -> str:
    """Refuse unknown options; the backend's name, "" for None: the environment may choose it.

    Raises:
        ValueError: an option has a value that does not exist.
    """
    for name, value, allowed in (
        ("backend", backend or "auto", ("auto", *BACKENDS)),
        ("precision", precision, PRECISIONS),
        ("reduction", reduction, REDUCTIONS),
        ("exchange", exchange, EXCHANGES),
    ):
        if value not in allowed:
            raise ValueError(f"{name}: got {value!r}, allowed are {', '.join(allowed)}")
    return backend or ""


def check_matrix(name: str, tensor: Tensor, like: tuple[str, Tensor] | None = None) -> None:
    """Refuse what is not a matrix of floats, or does not fit the matrix it is used with.

    Raises:
        ValueError: wrong kind, dtype, number of dimensions, width or device.
    """
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name}: must be a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise ValueError(f"{name}: must hold floating-point numbers, got {tensor.dtype}")
    if tensor.ndim != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name}: must have shape (rows, D >= 1), got {tuple(tensor.shape)}")
    if like is None:
        return
    other, reference = like
    if tensor.shape[1] != reference.shape[1]:
        raise ValueError(
            f"{name}: width D is {tensor.shape[1]}, but {other} has D = {reference.shape[1]}"
        )
    if tensor.device != reference.device:
        raise ValueError(f"{name}: is on {tensor.device}, but {other} is on {reference.device}")


def check_same_rows(name: str, tensor: Tensor, other: str, reference: Tensor) -> None:
    """Refuse pairs whose halves differ in number.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if tensor.shape[0] != reference.shape[0]:
        raise ValueError(
            f"{name}: has {tensor.shape[0]} rows, but {other} has {reference.shape[0]}"
        )


def check_content(name: str, tensor: Tensor, values: bool = True) -> None:
    """Refuse a matrix without rows, and, if `values` (eager CPU only), non-finite entries.

    Raises:
        ValueError: no rows, or a NaN or infinity; the message names the row.
    """
    if tensor.shape[0] == 0:
        raise ValueError(f"{name}: must have at least one row, got {tuple(tensor.shape)}")
    row = _first_bad_row(tensor) if values and values_readable(tensor) else -1
    if row >= 0:
        raise ValueError(f"{name}: must be finite, but row {row} holds a NaN or infinity")


def _first_bad_row(tensor: Tensor) -> int:
    """First row with a NaN or infinity; -1 where there is none."""
    values = tensor.detach()
    # One pass without a temporary; only an overflowing sum needs the second look.
    if math.isfinite(values.sum(dtype=torch.promote_types(values.dtype, torch.float32))):
        return -1
    bad = ~values.isfinite().all(1)
    return int(bad.nonzero()[0]) if bad.any() else -1


def split_temperature(
    temperature: float | Tensor, like: tuple[str, Tensor], values: bool = True
) -> tuple[Tensor | None, float]:
    """The temperature as the ops take it: a 0-d tensor or None, and the number for None.

    Raises:
        ValueError: not above 0, not finite, not of one element, or on another device than the
            embeddings.
    """
    name, embeddings = like
    if isinstance(temperature, Tensor):
        if temperature.numel() != 1 or not temperature.is_floating_point():
            raise ValueError(
                "temperature: a tensor must be 0-d, or of one element, and floating-point, got "
                f"shape {tuple(temperature.shape)}, {temperature.dtype}"
            )
        if temperature.device != embeddings.device:
            raise ValueError(
                f"temperature: is on {temperature.device}, but {name} is on {embeddings.device}"
            )
        if values and values_readable(temperature):
            check_positive("temperature", float(temperature.detach()))
        return temperature.reshape(()), 0.0
    return None, check_positive("temperature", temperature)


def check_positive(name: str, value: float) -> float:
    """A finite number above 0, as a float.

    Raises:
        ValueError: it is anything else.
    """
    number = real(value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name}: must be a finite number above 0, got {value!r}")
    return number


def check_labels(
    name: str,
    labels: Tensor,
    rows: int,
    like: tuple[str, Tensor],
    allowed: Sequence[int] | None,
    values: bool = True,
) -> Tensor:
    """Labels as int64; `allowed` lists their values, None means -1 and above.

    Raises:
        ValueError: not integers, not one for each row, on another device, or, if `values` (eager
            CPU only), a value that is not allowed.
    """
    other, reference = like
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
        kind = labels.dtype if isinstance(labels, Tensor) else type(labels).__name__
        raise ValueError(f"{name}: must be a tensor of integers, got {kind}")
    if labels.ndim != 1 or labels.shape[0] != rows:
        raise ValueError(f"{name}: must have shape ({rows},), got {tuple(labels.shape)}")
    if labels.device != reference.device:
        raise ValueError(f"{name}: is on {labels.device}, but {other} is on {reference.device}")
    labels = labels.long()
    if values and values_readable(labels):
        wrong = labels < -1 if allowed is None else torch.stack([labels != v for v in allowed])
        wrong = wrong if wrong.ndim == 1 else wrong.all(0)
        if wrong.any():
            limits = "-1 or above" if allowed is None else ", ".join(map(str, allowed))
            value = int(labels[wrong][0])
            raise ValueError(f"{name}: got {value}, allowed are {limits}")
    return labels


def reduce(loss: Tensor, reduction: str) -> Tensor:
    """Mean or sum of the rows' losses, or the rows themselves."""
    if reduction == "mean":
        return loss.mean()
    return loss.sum() if reduction == "sum" else loss
