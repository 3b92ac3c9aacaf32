"""Block shapes of the contrastive kernels: the table's, or with SELFTAUGHT_AUTOTUNE=1 the fastest.

The table is chosen per GPU generation, width and operands so that nothing spills and shared memory
suffices; it is not yet measured for speed. With SELFTAUGHT_AUTOTUNE=1 the first call of every kind
times a few shapes instead and keeps the best.
"""

import json
import os
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.runtime.errors import OutOfResources

from selftaught.files import write_atomic
from selftaught.kernels.triton.pairs import Pair

VARIABLE = "SELFTAUGHT_AUTOTUNE"
FUSED = {"enable_fp_fusion": True}  # said at every launch: Triton's default is about to change
# Widest embeddings whose tiles are held whole; wider ones are read in chunks.
HELD = 256
CHUNK = 64


class Shape(NamedTuple):
    """Block shape of one kernel.

    Attributes:
        rows: rows of x a program owns.
        columns: rows of y in a tile; divides `rows` in "sum" and "alike".
        chunk: columns of the operands read at a time; all of them up to `HELD`.
        out: columns of the result a program owns; of "weight" and "more".
        warps: warps a program.
        stages: tiles in flight.
    """

    rows: int
    columns: int
    chunk: int
    out: int
    warps: int
    stages: int


# (kernel, generation, width up to (0: any), split operands); chunk 0: the width. "sum" are
# log-sums, "alike" those and the products of rows of one class, "robust" those beyond the range of
# one shift, "weight" the gradient, and "more" the gradient with classes or the slope. "alike" and
# "more" take more registers.
SHAPES = {
    ("robust", 8, 0, False): Shape(64, 64, 32, 0, 4, 2),
    ("robust", 8, 0, True): Shape(64, 64, 32, 0, 4, 2),
    ("robust", 9, 0, False): Shape(128, 64, 32, 0, 8, 2),
    ("robust", 9, 0, True): Shape(128, 64, 32, 0, 8, 2),
    ("robust", 10, 0, False): Shape(128, 64, 32, 0, 8, 2),
    ("robust", 10, 0, True): Shape(128, 64, 32, 0, 8, 2),
    ("alike", 8, 128, False): Shape(64, 64, 0, 0, 4, 3),
    ("alike", 8, 0, False): Shape(64, 64, 64, 0, 4, 3),
    ("alike", 8, 0, True): Shape(64, 64, 32, 0, 4, 3),
    ("alike", 9, 128, False): Shape(128, 64, 0, 0, 8, 3),
    ("alike", 9, 0, False): Shape(128, 64, 64, 0, 8, 3),
    ("alike", 9, 128, True): Shape(64, 64, 0, 0, 4, 2),
    ("alike", 9, 0, True): Shape(64, 64, 32, 0, 8, 3),
    ("alike", 10, 128, False): Shape(128, 64, 0, 0, 8, 3),
    ("alike", 10, 0, False): Shape(64, 64, 64, 0, 8, 3),
    ("alike", 10, 0, True): Shape(64, 64, 32, 0, 8, 3),
    ("sum", 8, 64, False): Shape(128, 128, 0, 0, 8, 3),
    ("sum", 8, 128, False): Shape(128, 128, 0, 0, 8, 2),
    ("sum", 8, 0, False): Shape(128, 128, 64, 0, 8, 3),
    ("sum", 8, 0, True): Shape(64, 64, 32, 0, 4, 3),
    ("weight", 8, 64, False): Shape(64, 64, 0, 64, 4, 3),
    ("weight", 8, 128, False): Shape(128, 64, 0, 128, 8, 3),
    ("weight", 8, 0, False): Shape(64, 64, 64, 256, 8, 2),
    ("weight", 8, 64, True): Shape(64, 32, 0, 64, 4, 2),
    ("weight", 8, 128, True): Shape(64, 32, 0, 128, 8, 2),
    ("weight", 8, 0, True): Shape(64, 32, 32, 128, 8, 2),
    ("more", 8, 0, False): Shape(64, 64, 64, 128, 8, 2),
    ("more", 8, 0, True): Shape(64, 32, 32, 128, 8, 2),
    ("sum", 9, 128, False): Shape(128, 128, 0, 0, 8, 3),
    ("sum", 9, 256, False): Shape(128, 128, 0, 0, 8, 2),
    ("sum", 9, 0, False): Shape(128, 128, 64, 0, 8, 3),
    ("sum", 9, 128, True): Shape(128, 128, 0, 0, 8, 2),
    ("sum", 9, 0, True): Shape(128, 128, 32, 0, 8, 3),
    ("weight", 9, 64, False): Shape(128, 64, 0, 64, 8, 3),
    ("weight", 9, 128, False): Shape(128, 64, 0, 128, 8, 3),
    ("weight", 9, 256, False): Shape(128, 64, 0, 256, 8, 2),
    ("weight", 9, 0, False): Shape(128, 64, 64, 256, 8, 2),
    ("weight", 9, 64, True): Shape(128, 64, 0, 64, 8, 2),
    ("weight", 9, 128, True): Shape(128, 64, 0, 128, 8, 3),
    ("weight", 9, 0, True): Shape(128, 32, 32, 128, 8, 3),
    ("more", 9, 128, False): Shape(128, 64, 0, 128, 8, 2),
    ("more", 9, 0, False): Shape(128, 32, 32, 128, 8, 2),
    ("more", 9, 0, True): Shape(128, 32, 32, 64, 8, 2),
    ("sum", 10, 128, False): Shape(128, 128, 0, 0, 8, 3),
    ("sum", 10, 256, False): Shape(128, 128, 0, 0, 8, 2),
    ("sum", 10, 0, False): Shape(128, 128, 64, 0, 8, 3),
    ("sum", 10, 64, True): Shape(128, 64, 0, 0, 8, 3),
    ("sum", 10, 128, True): Shape(128, 64, 0, 0, 8, 2),
    ("sum", 10, 0, True): Shape(128, 128, 32, 0, 8, 3),
    ("weight", 10, 128, False): Shape(128, 64, 0, 128, 8, 3),
    ("weight", 10, 256, False): Shape(128, 64, 0, 256, 8, 2),
    ("weight", 10, 0, False): Shape(128, 64, 64, 256, 8, 2),
    ("weight", 10, 128, True): Shape(128, 32, 0, 128, 8, 2),
    ("weight", 10, 0, True): Shape(128, 32, 32, 128, 8, 2),
    ("more", 10, 0, False): Shape(128, 32, 32, 128, 8, 2),
    ("more", 10, 0, True): Shape(128, 32, 32, 64, 8, 2),
}


def padded(width: int) -> int:
    """Columns of the operands of embeddings `width` wide."""
    if width <= HELD:
        return max(16, 1 << (width - 1).bit_length())
    return -(-width // CHUNK) * CHUNK


def generation_of(major: int) -> int:
    """8, 9 or 10: whose instructions and shared memory a compute capability has."""
    return 8 if major == 12 else min(max(major, 8), 10)


def table_shape(kernel: str, generation: int, width: int, split: bool) -> Shape:
    """The table's shape for operands `width` wide on GPUs of a generation: 8, 9 or 10."""
    keys = [(kernel, generation, most, split) for most in (64, 128, 256) if width <= most]
    shape = next(SHAPES[key] for key in (*keys, (kernel, generation, 0, split)) if key in SHAPES)
    chunk = min(shape.chunk or width, width)
    return shape._replace(chunk=chunk, out=min(shape.out, width))


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
    """The device's generation; see `generation_of`."""
    return (
        generation_of(torch.cuda.get_device_capability(device)[0]) if device.type == "cuda" else 9
    )


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the device; in the interpreter those of an H100."""
    if device.type != "cuda":
        return 132
    return torch.cuda.get_device_properties(device).multi_processor_count


def visits_each(
    blocks: int, visits: int, shape: Shape, device: torch.device, fixed: float, most: int
) -> int:
    """How many of its visits a program makes, so that the last wave of programs is nearly full.

    A program has a multiprocessor to itself with 8 warps, half of it with 4: its registers decide.

    Args:
        blocks: that visit.
        visits: of every block.
        shape: of the programs.
        device: where they run.
        fixed: what a program takes beside its visits, in visits.
        most: programs that may share a block's visits.
    """
    at_once = processors(device) * max(1, 8 // shape.warps)

    def waves(each: int) -> float:
        return triton.cdiv(blocks * triton.cdiv(visits, each), at_once) * (fixed + each)

    choices = {triton.cdiv(visits, parts) for parts in range(1, min(most, visits) + 1)}
    # The fewest programs of those that end first: less is written and added up.
    return min(sorted(choices, reverse=True), key=waves)


def candidates(kernel: str, default: Shape, width: int) -> list[Shape]:
    """Shapes worth timing, the table's first."""
    shapes = [default]
    chunks = sorted({min(CHUNK, width), width if width <= HELD else CHUNK})
    columns = (64, 128)
    for rows, many, chunk, warps, stages in product((64, 128), columns, chunks, (4, 8), (2, 3, 4)):
        if kernel in ("sum", "alike") and rows < many:
            continue
        shapes.append(Shape(rows, many, chunk, default.out, warps, stages))
    return list(dict.fromkeys(shapes))


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
    """Shape for "sum", "alike", "weight" or "more"; `launch` runs the kernel with a shape."""
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
