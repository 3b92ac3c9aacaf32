"""How the passes are cut into launches and blocks of threads, so that buffers stay bounded."""

from dataclasses import dataclass

PARTS_BYTES = 8 << 20  # partial sums of the forward pass
SUMS_BYTES = 16 << 20  # partial sums of the gradient pass
LEAST_SPAN = 8  # distances per launch; fewer would read the own rows too often
MOST_CHUNK = 8  # distances per block of threads
MOST_CHUNKS = 65_535  # blocks of threads in the second direction of a launch
TILE = 128  # columns; multiple of every tile of the gradient pass


def ceil_div(a: int, b: int) -> int:
    """Quotient of a and b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True, kw_only=True)
class Circle:
    """The forward pass over blocks of rows on a circle; see log_sums.cuh.

    Attributes:
        own_blocks: blocks of x.
        circle: length of the circle.
        distances: how many distances there are.
        span: distances of one launch.
        chunk: distances that one block of threads takes.
    """

    own_blocks: int
    circle: int
    distances: int
    span: int
    chunk: int


def circle(
    rows: int, columns: int, block: int, processors: int, *, symmetric: bool, walked: bool
) -> Circle:
    """Plan of a forward pass.

    Args:
        rows: R.
        columns: C.
        block: rows of a block.
        processors: multiprocessors of the device.
        symmetric: y is x.
        walked: sums of y's rows are wanted too.
    """
    own_blocks = ceil_div(rows, block)
    length = max(own_blocks, ceil_div(columns, block))
    distances = length // 2 + 1 if symmetric else length
    # A distance leaves at most two partial sums of 4 bytes for each of y's rows.
    span = max(LEAST_SPAN, PARTS_BYTES // (8 * columns)) if walked else distances
    span = min(span, distances)
    # Six blocks of threads for each place keep the last round short.
    chunk = min(max(own_blocks * span // (6 * processors), 1), MOST_CHUNK)
    chunk = max(chunk, ceil_div(span * rows * 4, PARTS_BYTES), ceil_div(span, MOST_CHUNKS))
    return Circle(own_blocks=own_blocks, circle=length, distances=distances, span=span, chunk=chunk)


def column_chunk(rows: int, columns: int, width: int, block: int, processors: int) -> int:
    """Columns that one block of threads takes in the gradient pass, a multiple of `TILE`."""
    wanted = ceil_div(4 * processors, ceil_div(rows, block))
    affordable = max(SUMS_BYTES // (rows * width * 4), 1)
    return ceil_div(ceil_div(columns, min(wanted, affordable)), TILE) * TILE
