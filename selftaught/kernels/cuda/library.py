"""The CUDA kernels' shared library: its structs, how it is loaded, how its functions are called.

It is a plain C library with the CUDA runtime inside: no Python, torch or toolkit is needed to run
it, only a driver. `build` makes it. The structs mirror those of `csrc/cuda`.
"""

import ctypes
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from selftaught.errors import MachineError

INTERFACE = 3  # INTERFACE of csrc/cuda/library.cu
LIBRARY = Path(__file__).with_name("_cuda.so")
HOW = "build it with `python -m selftaught.kernels.cuda.build`, which needs nvcc"

_POINTER, _INT = ctypes.c_void_p, ctypes.c_int
Pairs = list[tuple[str, type]]


def _fields(pointers: str, integers: str, *, longs: str = "", floats: str = "") -> Pairs:
    kinds = (
        (pointers, _POINTER),
        (longs, ctypes.c_int64),
        (integers, _INT),
        (floats, ctypes.c_float),
    )
    return [(name, kind) for names, kind in kinds for name in names.split()]


class Prepare(ctypes.Structure):
    """Struct Prepare of rows.cuh."""

    _fields_ = _fields("raw scale unit inverse length operands", "count width padded split")


class Dots(ctypes.Structure):
    """Struct Dots of rows.cuh."""

    _fields_ = _fields("x y result", "count width")


class Finish(ctypes.Structure):
    """Struct Finish of rows.cuh."""

    _fields_ = _fields("sums unit inverse temperature partner coefficient gradient", "count width")


class Setup(ctypes.Structure):
    """Struct Setup of ranges.cuh."""

    _fields_ = _fields(
        "temperature x_scale y_scale x_lengths y_lengths row_weight column_weight ranges",
        "rows columns",
    )


class Sides(ctypes.Structure):
    """Struct Sides of ranges.cuh."""

    _fields_ = _fields("weight total share ranges side", "count")


class LogSums(ctypes.Structure):
    """Struct LogSums of log_sums.cuh."""

    _fields_ = _fields(
        "x y ranges own walked",
        "rows columns circle symmetric first last chunk any offset half",
    )


class Merge(ctypes.Structure):
    """Struct Merge of log_sums.cuh."""

    _fields_ = _fields(
        "ranges own walked total result",
        "count chunks block circle symmetric own_blocks first last begin parts",
    )


class WeightedSums(ctypes.Structure):
    """Struct WeightedSums of weighted_sums.cuh."""

    _fields_ = _fields(
        "x y ranges row_side column_side row_class column_class positive sums slope",
        "rows columns width chunk any offset half",
    )


class Gather(ctypes.Structure):
    """Struct Gather of weighted_sums.cuh."""

    _fields_ = _fields("parts sums", "chunks", longs="count")


class SumCenters(ctypes.Structure):
    """Struct SumCenters of centers.cuh."""

    _fields_ = _fields("centers active sums", "count width")


class MoveCenters(ctypes.Structure):
    """Struct MoveCenters of centers.cuh."""

    _fields_ = _fields(
        "centers active sums origin moved added", "count width padded parts places exact"
    )


class Assign(ctypes.Structure):
    """Struct Assign of nearest_exact.cuh."""

    _fields_ = _fields(
        "x centers origin moved added labels loss squared index counts",
        "count width padded x_whole centers_whole blocks",
        longs="rows stride",
        floats="eta eps",
    )


class NearestGradient(ctypes.Structure):
    """Struct NearestGradient of nearest_gradient.cuh."""

    _fields_ = _fields(
        "grad x centers labels squared index by_x order bounds parts",
        "count width splits x_whole centers_whole",
        longs="rows stride grad_stride",
        floats="eta eps",
    )


_STRUCTS: tuple[tuple[str, type[ctypes.Structure], bool], ...] = (
    ("prepare", Prepare, False),
    ("dots", Dots, False),
    ("finish", Finish, False),
    ("set_ranges", Setup, False),
    ("set_sides", Sides, False),
    ("log_sums", LogSums, True),
    ("merge", Merge, False),
    ("weighted_sums", WeightedSums, True),
    ("gather", Gather, False),
    ("sum_centers", SumCenters, False),
    ("move_centers", MoveCenters, False),
    ("assign", Assign, True),
    ("nearest_by_rows", NearestGradient, True),
    ("nearest_by_centers", NearestGradient, True),
)


class Library:
    """A loaded library.

    Args:
        path: the shared library.

    Raises:
        OSError: it cannot be loaded, or was built for another version of this module.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        try:
            version = self._library.selftaught_interface()
        except AttributeError:
            version = "none"
        if version != INTERFACE:
            raise OSError(f"{path.name} has interface {version}, not {INTERFACE}; {HOW}")
        for name, struct, shaped in _STRUCTS:
            shape = [_INT, _INT] if shaped else []
            function = getattr(self._library, f"selftaught_{name}")
            function.argtypes = [ctypes.POINTER(struct), *shape, _POINTER]
        for name in ("trouble", "error"):
            function = getattr(self._library, f"selftaught_{name}")
            function.argtypes, function.restype = [_INT], ctypes.c_char_p

    def call(
        self, name: str, arguments: ctypes.Structure, device: torch.device, *shape: int
    ) -> None:
        """Starts a kernel on the device's current stream.

        Args:
            name: the function's name without its prefix.
            arguments: the kernel's struct; its tensors have to live until this returns.
            device: where the tensors are.
            shape: which of its kernels, where the function has several: padded width and variant
                (`passes.shape_of`), or one of `spheres.NUMBERS` and 0.

        Raises:
            MachineError: the kernel could not be started.
        """
        function = getattr(self._library, f"selftaught_{name}")
        code = self.start(lambda stream: function(ctypes.byref(arguments), *shape, stream), device)
        if code:
            why = self._library.selftaught_error(code).decode()
            raise MachineError(f"CUDA kernel {name} could not be started: {why}")

    def start(self, launch: Callable[[int | None], int], device: torch.device) -> int:
        """Calls `launch` with the current stream of the device, which is made the current one."""
        with torch.cuda.device(device):
            return launch(torch.cuda.current_stream(device).cuda_stream)

    def processors(self, device: torch.device) -> int:
        """Multiprocessors of the device."""
        return torch.cuda.get_device_properties(device).multi_processor_count

    def capability(self, device: torch.device) -> tuple[int, int]:
        """Compute capability of the device."""
        return torch.cuda.get_device_capability(device)

    def circle_block(self, padded: int, variant: int) -> int:
        """Rows of a block of the forward pass."""
        return self._library.selftaught_circle_block(padded, variant)

    def circle_parts(self, padded: int, variant: int) -> int:
        """Partial sums that the forward pass leaves for a row of a block that it walks over."""
        return self._library.selftaught_circle_parts(padded, variant)

    def gradient_rows(self, padded: int, variant: int) -> int:
        """Rows that a block of threads owns in the gradient pass."""
        return self._library.selftaught_gradient_rows(padded, variant)

    def assign_sizes(self) -> tuple[int, int, int]:
        """Rows of a tile of the nearest centre; what centres and columns are padded to."""
        native = self._library
        return (
            native.selftaught_assign_rows(),
            native.selftaught_assign_centers(),
            native.selftaught_assign_columns(),
        )

    def trouble(self, device: torch.device) -> str:
        """Why the kernels cannot run on a CUDA device; "" where they can."""
        with torch.cuda.device(device):
            index = device.index if device.index is not None else torch.cuda.current_device()
            return self._library.selftaught_trouble(index).decode()


def address(tensor: Tensor | None) -> int | None:
    """Address of a tensor's first element, None for None."""
    return None if tensor is None else tensor.data_ptr()


@cache
def load() -> Library | str:
    """The library of this installation, or why there is none."""
    if not LIBRARY.is_file():
        return f"the CUDA library was not built; {HOW}"
    try:
        return Library(LIBRARY)
    except OSError as error:
        return f"the CUDA library cannot be loaded: {error}"


def loaded() -> Library:
    """The library of this installation.

    Raises:
        MachineError: there is none; `load` says why.
    """
    library = load()
    if isinstance(library, str):
        raise MachineError(f"backend 'cuda': {library}")
    return library
