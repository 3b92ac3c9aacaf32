"""The shape a kernel is launched with: the table's, or with SELFTAUGHT_AUTOTUNE=1 the fastest."""

import json
import os
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources

from selftaught.files import write_atomic
from selftaught.kernels.triton.pairs import Pair
from selftaught.kernels.triton.tables import CHUNK, HELD, Shape, generation_of, table_shape

VARIABLE = "SELFTAUGHT_AUTOTUNE"


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "selftaught" / "triton_shapes.json"


@cache
def _known() -> dict[str, list[int]]:
    try:
        return json.loads(_cache_file().read_text())
    except (OSError, ValueError):
        return {}


@cache
def generation(device: torch.device) -> int:
    """The device's generation; see `tables.generation_of`."""
    return (
        generation_of(torch.cuda.get_device_capability(device)[0]) if device.type == "cuda" else 9
    )


def candidates(kernel: str, default: Shape, width: int) -> list[Shape]:
    """Shapes worth timing, the table's first."""
    found = [default]
    chunks = sorted({min(CHUNK, width), width if width <= HELD else CHUNK})
    columns = (64, 128)
    for rows, many, chunk, warps, stages in product((64, 128), columns, chunks, (4, 8), (2, 3, 4)):
        if kernel == "sum" and rows < many:
            continue
        found.append(Shape(rows, many, chunk, default.out, warps, stages))
    return list(dict.fromkeys(found))


def _time(shape: Shape, launch: Callable[[Shape], object]) -> float:
    try:
        return triton.testing.do_bench(lambda: launch(shape), warmup=5, rep=20)
    except (OutOfResources, RuntimeError):
        return float("inf")


def default_shape(kernel: str, pair: Pair) -> Shape:
    """The table's shape for this pair."""
    of_device = generation(pair.operands[0].device)
    return table_shape(kernel, of_device, pair.width, pair.split)


def best(kernel: str, pair: Pair, launch: Callable[[Shape], object]) -> Shape:
    """Shape for "sum", "weight" or "more" on this pair; `launch` runs the kernel with a shape."""
    operand = pair.operands[0]
    default = default_shape(kernel, pair)
    if os.environ.get(VARIABLE) != "1" or not operand.is_cuda:
        return default
    # Sizes in powers of two, so that a last smaller batch is not timed anew.
    device = torch.cuda.get_device_name(operand.device)
    of_kind = (kernel, device, triton.__version__, operand.dtype, pair.width, pair.split)
    key = "/".join(map(str, (*of_kind, pair.rows.bit_length(), pair.columns.bit_length())))
    known = _known()
    if key not in known:
        if torch.cuda.is_current_stream_capturing():
            return default
        shapes = candidates(kernel, default, pair.width)
        times = [_time(shape, launch) for shape in shapes]
        known[key] = list(shapes[times.index(min(times))])
        try:
            _cache_file().parent.mkdir(parents=True, exist_ok=True)
            write_atomic(_cache_file(), json.dumps(known, indent=1).encode())
        except OSError:  # a cache that cannot be kept is only slower
            pass
    return Shape(*known[key])
