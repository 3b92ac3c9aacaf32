"""Block shapes of the contrastive kernels per GPU generation, width and operands.

Chosen so that nothing spills and shared memory suffices; not yet measured for speed. With
SELFTAUGHT_AUTOTUNE=1 the first call of every kind times a few shapes instead and keeps the best.
"""

from typing import NamedTuple

# Widest embeddings whose tiles are held whole; wider ones are read in chunks.
HELD = 256
CHUNK = 64


class Shape(NamedTuple):
    """Block shape of one kernel.

    Attributes:
        rows: rows of x a program owns.
        columns: rows of y in a tile; divides `rows` in "sum".
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
# log-sums, "robust" those beyond the range of one shift, "weight" the gradient, and "more" the
# gradient with classes or the slope, which takes more registers.
SHAPES = {
    ("robust", 8, 0, False): Shape(64, 64, 32, 0, 4, 2),
    ("robust", 8, 0, True): Shape(64, 64, 32, 0, 4, 2),
    ("robust", 9, 0, False): Shape(128, 64, 32, 0, 8, 2),
    ("robust", 9, 0, True): Shape(128, 64, 32, 0, 8, 2),
    ("robust", 10, 0, False): Shape(128, 64, 32, 0, 8, 2),
    ("robust", 10, 0, True): Shape(128, 64, 32, 0, 8, 2),
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
    ("weight", 9, 128, True): Shape(128, 32, 0, 128, 8, 2),
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
