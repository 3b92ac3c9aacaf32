"""Finds and calls the native CPU library, a plain shared library without Python or torch in it.

Kernels are compiled for several instruction sets and the best one the processor has is used.
`SELFTAUGHT_CPU` = baseline | avx2 | avx512 forces one, for tests and for comparing results between
machines: two runs give equal bits on one instruction set only.

`python -m selftaught.kernels.native` says in one line whether the library is there.
"""

import ctypes
import os
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from selftaught.errors import InputError

VARIABLE = "SELFTAUGHT_CPU"
VARIANTS = ("baseline", "avx2", "avx512")
VERSION = 5
OPENMP = re.compile(r"/lib(g|i)omp[^/]*\.so[^/]*$")
LIBRARY = Path(__file__).with_name("_native.so")

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}
_OUT_OF_MEMORY = 1


@cache
def _load() -> ctypes.CDLL | str:
    if not LIBRARY.is_file():
        return (
            "the native library was left out at installation, where no C++17 compiler worked; "
            "install gcc or clang and install selftaught again"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
        version = library.selftaught_version()
    except (OSError, AttributeError) as error:
        return f"the native library cannot be loaded: {error}"
    if version != VERSION:
        return f"the native library is of version {version}, not {VERSION}; install again"
    _lend_threads(library)
    return library


def _lend_threads(library: ctypes.CDLL) -> None:
    """Let the library run on PyTorch's OpenMP threads where that is GNU's or compatible.

    PyTorch's threads spin for some milliseconds after an op; threads beside them would have to
    share the cores with them (measured with 2 threads, 512 rows: 7 ms instead of 3).
    """
    try:
        lines = os.fsdecode(Path("/proc/self/maps").read_bytes()).splitlines()
        paths = {line.split(maxsplit=5)[5] for line in lines if "omp" in line}
        libraries = [path for path in sorted(paths) if "/torch/" in path and OPENMP.search(path)]
        entry = ctypes.CDLL(libraries[0]).GOMP_parallel
    except (OSError, IndexError, AttributeError):
        return  # another system or OpenMP: the library starts threads of its own
    library.selftaught_use_team(ctypes.cast(entry, ctypes.c_void_p))


def reason() -> str:
    """Why there is no native library; "" where there is one."""
    library = _load()
    return library if isinstance(library, str) else ""


def variants() -> tuple[str, ...]:
    """Instruction sets that the library holds and the processor has, the best one last."""
    library = _load()
    if isinstance(library, str):
        return ()
    bits = library.selftaught_variants()
    return tuple(name for bit, name in enumerate(VARIANTS) if bits >> bit & 1)


def variant() -> str:
    """The instruction set in use.

    Raises:
        InputError: `SELFTAUGHT_CPU` names one that is not there.
    """
    forced = os.environ.get(VARIABLE)
    if not forced:
        return variants()[-1]
    if forced not in variants():
        raise InputError(f"{VARIABLE}: got {forced!r}, allowed are {', '.join(variants())}")
    return forced


@cache
def _function(symbol: str) -> Callable[..., int]:
    function = getattr(_load(), symbol)
    function.argtypes = [ctypes.c_void_p]
    function.restype = ctypes.c_int
    return function


def run(kernel: str, dtype: torch.dtype, arguments: ctypes.Structure) -> None:
    """Calls a kernel of `csrc/cpu`, without the interpreter lock.

    Args:
        kernel: its name.
        dtype: float32 or float64.
        arguments: the kernel's struct; its pointers must stay valid during the call.

    Raises:
        MemoryError: the kernel found no memory.
        RuntimeError: it failed otherwise.
    """
    status = _function(f"selftaught_{kernel}_{_SUFFIX[dtype]}_{variant()}")(
        ctypes.addressof(arguments)
    )
    if status == _OUT_OF_MEMORY:
        raise MemoryError(f"native kernel {kernel}: out of memory")
    if status:
        raise RuntimeError(f"native kernel {kernel}: failed with status {status}")


def pointer(tensor: Tensor | None) -> int | None:
    """Address of a contiguous tensor's data, for a struct's `c_void_p`; None for None."""
    if tensor is None:
        return None
    assert tensor.is_contiguous() and tensor.device.type == "cpu"
    return tensor.data_ptr()


if __name__ == "__main__":
    absent = reason()
    print(f"native ops left out: {absent}" if absent else f"native ops: {variant()}")
