"""Arguments as callers hand them over, of any kind: made plain, or refused in one line."""

import math
import os
from collections.abc import Mapping, Set
from numbers import Real
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

ARRAYS = "a tensor, an array, a table or a list of numbers"


def real(value: Any) -> float:
    """A number of any kind as a float: Python's, NumPy's, a fraction, an array or tensor of one.

    Returns:
        NaN for all else: booleans, text, masked values, several numbers, and a tensor that requires
        grad, since a float could carry none.
    """
    number = _plain(value)
    try:
        return math.nan if number is None else float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def whole(name: str, value: Any, least: float = 1) -> int:
    """A whole number of any kind that `real` takes, as an int.

    Raises:
        ValueError: it is none, or below `least`; names the argument and the value.
    """
    number = _plain(value)
    if number is None or not number >= least or number != number // 1:
        limit = f", at least {least}" if math.isfinite(least) else ""
        raise ValueError(f"{name}={value!r}: must be a whole number{limit}")
    return int(number)


def _plain(value: Any) -> Any:
    """The Python number that a value is; None where it is no real number."""
    if type(value) in (int, float):
        return value
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        if getattr(value, "requires_grad", False) or getattr(value, "mask", False):
            return None
        value = value.item()
    return value if isinstance(value, Real) and not isinstance(value, bool) else None


def tensor_in(name: str, value: Tensor) -> Tensor:
    """A tensor that is torch's own, without history, whose memory holds what it shows.

    Raises:
        ValueError: it is sparse, nested or without memory, or a kind of tensor with rules of its
            own for what its numbers mean.
    """
    kind = type(value)
    if kind.__torch_dispatch__ is not Tensor.__torch_dispatch__:
        raise ValueError(f"{name}: is a {kind.__name__}; allowed: a plain tensor")
    if value.layout is not torch.strided or value.is_nested:
        form = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise ValueError(f"{name}: its layout is {form}; allowed: a dense tensor")
    if value.device.type == "meta":
        raise ValueError(f"{name}: is on the device meta, which holds no numbers")
    with torch._C.DisableTorchFunctionSubclass():  # a subclass would come out of them again
        return value.detach().as_subclass(Tensor).resolve_conj().resolve_neg()


def numbers_in(name: str, values: Any) -> Tensor:
    """Real numbers as a tensor, of any shape: contents of tensors, arrays, tables, nested lists.

    Whatever order of bytes or axes an array has, and whether it may be written.

    Raises:
        ValueError: it is none of these, holds other things than numbers, or masked ones.
    """
    if isinstance(values, Tensor):
        return tensor_in(name, values)
    if hasattr(values, "__cuda_array_interface__"):
        return torch.as_tensor(values)
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        place = np.argwhere(np.ma.getmaskarray(values))[0].tolist()
        raise ValueError(f"{name}: is masked at {place}; allowed: rows without masked values")
    try:
        array = np.asarray(values)
        if array.dtype == object and hasattr(values, "to_numpy"):
            array = _of_table(values)
    except (ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{name}: {shown(values)}: {reason}; allowed: {ARRAYS}") from error
    if array.dtype.kind not in "fiub":
        raise ValueError(f"{name}: {shown(values)} of {array.dtype}; allowed: {ARRAYS}")
    native = np.dtype(np.float64) if array.dtype.itemsize > 8 else array.dtype.newbyteorder("=")
    return torch.from_numpy(np.require(array, native, ["C", "W"]))


def _of_table(values: Any) -> np.ndarray:
    """Columns of numbers of a table, or one of them, as floats; NaN where one is missing."""
    columns = np.atleast_1d(np.asarray(values.dtypes, dtype=object))
    if any(getattr(one, "kind", "O") not in "fiub" for one in columns):
        raise ValueError("holds other things than numbers")
    kind = np.result_type(*(getattr(one, "numpy_dtype", one) for one in columns))
    table: np.ndarray = values.to_numpy(kind if kind.kind == "f" else float, na_value=np.nan)
    return table


def paths_in(name: str, given: Any, allowed: str, *, blank: bool = False) -> list[Any]:
    """Paths as a list, in their order.

    Args:
        name: of the argument.
        given: what the caller handed over.
        allowed: in words, for the refusal.
        blank: None may stand in place of a path.

    Raises:
        ValueError: it is one path, or something else, or holds something else.
    """
    if isinstance(given, (str, bytes, PathLike)) and not _is_address(given):
        raise ValueError(f"{name}: {given!r} is one path, must be a list of paths")
    if isinstance(given, np.ndarray) and given.ndim == 1 and given.dtype.kind in "UO":
        given = given.tolist()
    unordered = isinstance(given, (str, np.ndarray, Tensor, Mapping, Set))
    if unordered or hasattr(given, "columns") or hasattr(given, "read"):
        raise ValueError(f"{name}: {shown(given)}; allowed: {allowed}")
    try:
        listed = list(given)
    except TypeError:
        raise ValueError(f"{name}: {shown(given)}; allowed: {allowed}") from None
    for row, one in enumerate(listed):
        text = os.fspath(one) if isinstance(one, PathLike) else one
        fine = isinstance(text, str) and text != "" and not _is_address(one)
        if not fine and not (blank and one is None):
            raise ValueError(f"{name}[{row}]: {shown(one)}; allowed: {allowed}")
    return listed


def names_in(name: str, given: Any) -> list[str]:
    """Text as a list.

    Raises:
        ValueError: it is one name, or something else, or holds something else.
    """
    if isinstance(given, str):
        raise ValueError(f"{name}: {given!r} is one name, must be a list of names")
    listed = list(given) if hasattr(given, "__iter__") else [given]
    for row, one in enumerate(listed):
        if not isinstance(one, str):
            raise ValueError(f"{name}[{row}]: {shown(one)}; allowed: a name, '' where unknown")
    return listed


def _is_address(one: Any) -> bool:
    """Whether text is an address such as https://..., and no file's path."""
    return isinstance(one, str) and "://" in one and not os.path.exists(one)


def shown(value: Any) -> str:
    """A thing of a wrong kind in a few words."""
    if value is None or isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, str):
        return f"the address {value!r}" if _is_address(value) else repr(value)
    kind = type(value)
    return "a NumPy array" if kind is np.ndarray else f"{kind.__module__}.{kind.__qualname__}"
