"""The two passes over pairs of rows: buffers, arguments and launches of their kernels."""

import os

import torch
from torch import Tensor

from selftaught.errors import InputError, MachineError
from selftaught.kernels.cuda import library as native
from selftaught.kernels.cuda import plan
from selftaught.kernels.cuda.library import address
from selftaught.kernels.tiles import Classes, Embeddings, Excluded, Side

WIDTHS = (64, 128, 256)  # those with kernels; others are padded with zeros
RANGES = 8  # floats; struct Ranges of tile.cuh has 5
PATH = "SELFTAUGHT_CUDA_PATH"  # "mma" or "wgmma"; see the package
WHOLE, SPLIT, WGMMA = 0, 1, 2  # variants of library.cu
HOPPER = (9, 0)


def padded(width: int) -> int:
    """The kernels' width for rows of `width`."""
    return next(choice for choice in WIDTHS if choice >= width)


def flat(tensor: Tensor) -> Tensor:
    """The tensor as kernels read it: float32, contiguous."""
    return tensor.float().contiguous()


def _wants_wgmma(device: torch.device) -> bool:
    path = os.environ.get(PATH) or "mma"
    if path not in ("mma", "wgmma"):
        raise InputError(f"{PATH}={path}: allowed are mma and wgmma")
    if path == "wgmma" and native.loaded().capability(device) != HOPPER:
        raise MachineError(f"{PATH}={path}: needs compute capability {HOPPER[0]}.{HOPPER[1]}")
    return path == "wgmma"


def shape_of(x: Embeddings, y: Embeddings) -> tuple[int, int]:
    """Padded width, and which variant of the kernels computes the products of x and y.

    Raises:
        InputError: the environment asks for a path that does not exist.
        MachineError: it asks for one that the device cannot take.
    """
    width, many = padded(x.unit.shape[1]), x.operands[0].shape[1]
    assert many == y.operands[0].shape[1], "rows and columns are prepared with one precision"
    if many > width:
        return width, SPLIT
    return width, WGMMA if _wants_wgmma(x.unit.device) else WHOLE


def _exclusion(excluded: Excluded | None) -> dict[str, int]:
    if excluded is None:
        return {"any": 0, "offset": 0, "half": 0}
    return {"any": 1, "offset": excluded.offset, "half": excluded.half}


def set_ranges(
    x: Embeddings,
    y: Embeddings,
    temperature: Tensor,
    row: Side | None = None,
    column: Side | None = None,
) -> Tensor:
    """Struct Ranges of the product of x and y, decided on the device.

    Args:
        x: (R, D) rows.
        y: (C, D) columns.
        temperature: 0-d.
        row: weights of the rows' losses, in the gradient pass.
        column: weights of the columns' losses.
    """
    ranges = torch.empty(RANGES, device=x.unit.device)
    weights = [None if side is None else flat(side.weight) for side in (row, column)]
    lengths, other_lengths = x.operands[1], y.operands[1]
    temperature = flat(temperature)
    arguments = native.Setup(
        temperature=address(temperature),
        x_scale=address(x.operands[2]),
        y_scale=address(y.operands[2]),
        x_lengths=address(lengths),
        y_lengths=address(other_lengths),
        row_weight=address(weights[0]),
        column_weight=address(weights[1]),
        ranges=address(ranges),
        rows=x.unit.shape[0],
        columns=y.unit.shape[0],
    )
    native.loaded().call("set_ranges", arguments, x.unit.device)
    return ranges


def set_sides(side: Side | None, ranges: Tensor, count: int) -> Tensor:
    """(count, 4) what the gradient pass weighs rows or columns with; struct Sides."""
    result = torch.empty(count, 4, device=ranges.device)
    parts = (None, None, None) if side is None else (side.weight, side.total, side.share)
    weight, total, share = (None if part is None else flat(part) for part in parts)
    arguments = native.Sides(
        weight=address(weight),
        total=address(total),
        share=address(share),
        ranges=address(ranges),
        side=address(result),
        count=count,
    )
    native.loaded().call("set_sides", arguments, ranges.device)
    return result


def walk(
    x: Embeddings,
    y: Embeddings,
    ranges: Tensor,
    excluded: Excluded | None,
    columns: bool,
) -> tuple[Tensor, Tensor | None]:
    """The forward pass: log-sums of rows and, if `columns`, of columns; see log_sums.cuh.

    Where y is x, half of the tiles are computed, each for its rows and its columns.
    """
    device, symmetric, shape = x.unit.device, y is x, shape_of(x, y)
    rows, others = x.unit.shape[0], y.unit.shape[0]
    library = native.loaded()
    block, both = library.circle_block(*shape), symmetric or columns
    cut = plan.circle(
        rows, others, block, library.processors(device), symmetric=symmetric, walked=both
    )
    row_parts = torch.empty(plan.ceil_div(cut.span, cut.chunk), rows, device=device)
    parts = library.circle_parts(*shape)
    walked = torch.empty(cut.span, parts, others, device=device) if both else None
    # Each output is a running total, then the logs. Whose parts it adds: rows', walked or both.
    outputs: list[tuple[Tensor, Tensor | None, Tensor | None]] = [
        (torch.empty(2, rows, device=device), row_parts, walked if symmetric else None)
    ]
    if columns:
        outputs.append((torch.empty(2, others, device=device), None, walked))
    for first in range(0, cut.distances, cut.span):
        last = min(first + cut.span, cut.distances)
        shared = {
            "ranges": address(ranges),
            "circle": cut.circle,
            "symmetric": int(symmetric),
            "first": first,
            "last": last,
        }
        arguments = native.LogSums(
            x=address(x.operands[0]),
            y=address(y.operands[0]),
            own=address(row_parts),
            walked=address(walked),
            rows=rows,
            columns=others,
            chunk=cut.chunk,
            **shared,
            **_exclusion(excluded),
        )
        native.loaded().call("log_sums", arguments, device, *shape)
        for output, of_rows, of_walked in outputs:
            merge = native.Merge(
                own=address(of_rows),
                walked=address(of_walked),
                total=address(output[0]),
                result=address(output[1]) if last == cut.distances else None,
                count=output.shape[1],
                chunks=plan.ceil_div(last - first, cut.chunk),
                block=block,
                own_blocks=cut.own_blocks,
                begin=int(first == 0),
                parts=parts,
                **shared,
            )
            native.loaded().call("merge", merge, device)
    return outputs[0][0][1], outputs[1][0][1] if columns else None


def _add_chunks(parts: Tensor) -> Tensor:
    if parts.shape[0] == 1:
        return parts[0]
    result = torch.empty_like(parts[0])
    arguments = native.Gather(
        parts=address(parts), sums=address(result), count=result.numel(), chunks=parts.shape[0]
    )
    native.loaded().call("gather", arguments, parts.device)
    return result


def weigh(
    x: Embeddings,
    y: Embeddings,
    ranges: Tensor,
    excluded: Excluded | None,
    sides: tuple[Tensor, Tensor],
    classes: Classes | None,
    positive: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """The gradient pass; see weighted_sums.cuh.

    Args:
        x: (R, D) rows.
        y: (C, D) columns.
        ranges: from `set_ranges`, with the sides' weights.
        excluded: what is left out.
        sides: (R, 4) and (C, 4) from `set_sides`.
        classes: of rows and columns, or None.
        positive: (R,) logits of positives; None: no slope is wanted.

    Returns:
        (R, D) sums, and (R,) slopes or None.
    """
    device, shape = x.unit.device, shape_of(x, y)
    (rows, width), others = x.unit.shape, y.unit.shape[0]
    library = native.loaded()
    owned = library.gradient_rows(*shape)
    chunk = plan.column_chunk(rows, others, width, owned, library.processors(device))
    chunks = plan.ceil_div(others, chunk)
    sums = torch.empty(chunks, rows, width, device=device)
    slopes = None if positive is None else torch.empty(chunks, rows, device=device)
    named = (None, None) if classes is None else (part.contiguous() for part in classes)
    row_class, column_class = named
    arguments = native.WeightedSums(
        x=address(x.operands[0]),
        y=address(y.operands[0]),
        ranges=address(ranges),
        row_side=address(sides[0]),
        column_side=address(sides[1]),
        row_class=address(row_class),
        column_class=address(column_class),
        positive=address(positive),
        sums=address(sums),
        slope=address(slopes),
        rows=rows,
        columns=others,
        width=width,
        chunk=chunk,
        **_exclusion(excluded),
    )
    native.loaded().call("weighted_sums", arguments, device, *shape)
    return _add_chunks(sums), None if slopes is None else _add_chunks(slopes)
