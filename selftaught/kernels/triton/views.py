"""NT-Xent and SupCon of one process's two views, in eight launches a step.

Forward: both views made ready for the tiles, sums over tiles, losses, their mean. Backward:
factors, weighted sums over tiles, finished gradients. The eighth is PyTorch's: it writes the one
that a backward starts from. Neither the views joined nor their unit rows are kept, only what tiles
read; the temperature is a number in device memory, put there by the first kernel. Notation: B
images, N = 2 B rows, first views then second views, D wide.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from selftaught.kernels.contrastive import Contrastive
from selftaught.kernels.tiles import Classes, Side
from selftaught.kernels.triton.factors import load_weight
from selftaught.kernels.triton.log_sums import symmetric_log_sums
from selftaught.kernels.triton.merging import Losses
from selftaught.kernels.triton.pairs import Pair, on
from selftaught.kernels.triton.pieces import SLACK, exponential_less_one
from selftaught.kernels.triton.rows import (
    dense,
    load_rows,
    measure_rows,
    operand_kind,
    set_stats,
    store_operands,
    unit_rows,
)
from selftaught.kernels.triton.tuning import FUSED, padded
from selftaught.kernels.triton.weighted_sums import weighted_parts

# Entries of a view that one program of these kernels holds, and images counted at a time.
ENTRIES, COUNTED = 2048, 128
# Widest embeddings: kernels over rows hold whole rows in registers.
WIDEST = 8192
# Numbers before the vectors, which keeps these aligned: `stats`, and from TAU on the temperature.
HEAD, TAU = 4, 2


@triton.jit
def _classes(labels, label, rows, B, COUNTED: tl.constexpr, BLOCK: tl.constexpr):
    """Number of the first image of the class of BLOCK images, and of positives of their rows.

    Images with a negative label are alone in their class. Tiles compare half as many bits as there
    are in labels.
    """
    count = tl.zeros((BLOCK,), tl.int32)
    earliest = rows
    for first in range(0, B, COUNTED):
        place = first + tl.arange(0, COUNTED)
        other = tl.load(labels + place, mask=place < B, other=-1)
        same = (other[None, :] == label[:, None]) & (other >= 0)[None, :]
        count += tl.sum(same.to(tl.int32), 1)
        earliest = tl.minimum(earliest, tl.min(tl.where(same, place[None, :], rows[:, None]), 1))
    return earliest, tl.where(label >= 0, 2 * count - 1, 1).to(tl.float32)


@triton.jit(do_not_specialize=["B"])
def prepare_views(
    z1, z2, labels, temperature, measured, high, low, stats, tau, pairs, classes, many,
    B, D, stride1, stride2, fixed,
    WIDTH: tl.constexpr, NORMALIZE: tl.constexpr, SPLIT: tl.constexpr, HALF: tl.constexpr,
    SCALED: tl.constexpr, FIXED: tl.constexpr, CLASSES: tl.constexpr, COUNTED: tl.constexpr,
    BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Operands (N, WIDTH) and logits of the other views `pairs` (N,); see `rows.make_operands`.

    `tau` (2,): the temperature, twice, the number `fixed` with FIXED. With CLASSES `labels` (B,)
    become `classes` (N,), an image with a negative one is alone in a class, and `many` (N,) is the
    number of positives. Grid: (B / BLOCK,).
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < B
    first, _ = unit_rows(z1, rows, B, D, stride1, NORMALIZE, WIDE)
    second, _ = unit_rows(z2, rows, B, D, stride2, NORMALIZE, WIDE)
    scale = set_stats(stats, measured, NORMALIZE, SCALED)
    divisor = fixed
    if not FIXED:
        divisor = tl.load(temperature).to(tl.float32)
    if tl.program_id(0) == 0:
        tl.store(tau + tl.arange(0, 2), tl.zeros((2,), tl.float32) + divisor)
    pair = tl.div_rn(tl.sum(first * second, 1), tl.zeros((BLOCK,), tl.float32) + divisor)
    tl.store(pairs + rows, pair, mask=there)
    tl.store(pairs + B + rows, pair, mask=there)
    columns = tl.arange(0, WIDE)[None, :]
    mask = there[:, None] & (columns < WIDTH)
    place = rows.to(tl.int64)[:, None]
    high += columns
    low += columns
    store_operands(first * scale, place, mask, high, low, WIDTH, SPLIT, HALF)
    store_operands(second * scale, place + B, mask, high, low, WIDTH, SPLIT, HALF)
    if CLASSES:
        label = tl.load(labels + rows, mask=there, other=-1)
        image, positives = _classes(labels, label, rows, B, COUNTED, BLOCK)
        tl.store(classes + rows, image, mask=there)
        tl.store(classes + B + rows, image, mask=there)
        tl.store(many + rows, positives, mask=there)
        tl.store(many + B + rows, positives, mask=there)


@triton.jit
def _pair_weight(grad, shares, many, place, there, stride, over, CLASSES: tl.constexpr):
    """Weight of a row's other view: its softmax less one over the number of positives."""
    weight = load_weight(grad, place, there, stride, over).to(tl.float64)
    share = tl.load(shares + place, mask=there, other=0.0).to(tl.float64)
    if CLASSES:
        count = tl.load(many + place, mask=there, other=1.0).to(tl.float64)
        return weight * exponential_less_one(share + tl.log(count)) / count
    return weight * exponential_less_one(-share)


@triton.jit
def _added(sums, rows, N, D, part_count, BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Sums of rows over `sums` (part_count, N, D), in their order."""
    total = tl.zeros((BLOCK, WIDE), tl.float32)
    for part in range(0, part_count):
        total += load_rows(sums + part * (N.to(tl.int64) * D), rows, N, D, D, WIDE)
    return total


@triton.jit
def _store_gradient(
    gradient, total, unit, inverse, other, weight, tau, rows, B, D, NORMALIZE: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients by raw rows; see `Tiles.finish`."""
    values = tl.div_rn(total + weight[:, None] * other, tau)
    if NORMALIZE:
        along = tl.sum(values * unit, 1)
        values = (values - along[:, None] * unit) * inverse[:, None]
    columns = tl.arange(0, WIDE)
    place = rows.to(tl.int64)[:, None] * D + columns[None, :]
    tl.store(gradient + place, values, mask=(rows < B)[:, None] & (columns < D)[None, :])


@triton.jit(do_not_specialize=["B", "part_count"])
def finish_views(
    sums, z1, z2, grad, shares, many, temperature, gradient1, gradient2,
    B, D, part_count, stride1, stride2, stride, over,
    NORMALIZE: tl.constexpr, CLASSES: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """Gradients by both raw views (B, D) from `sums` (part_count, N, D). Grid: (B / BLOCK,).

    `shares` (N,): losses, and with CLASSES logarithms of the other views' softmax. `stride`,
    `over`: see `load_weight`.
    """
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = rows < B
    weight = _pair_weight(grad, shares, many, rows, there, stride, over, CLASSES)
    weight += _pair_weight(grad, shares, many, rows + B, there, stride, over, CLASSES)
    weight = weight.to(tl.float32)
    tau = tl.load(temperature)
    first, inverse1 = unit_rows(z1, rows, B, D, stride1, NORMALIZE, WIDE)
    second, inverse2 = unit_rows(z2, rows, B, D, stride2, NORMALIZE, WIDE)
    total = _added(sums, rows, 2 * B, D, part_count, BLOCK, WIDE)
    _store_gradient(
        gradient1, total, first, inverse1, second, weight, tau, rows, B, D, NORMALIZE, WIDE
    )
    total = _added(sums, rows + B, 2 * B, D, part_count, BLOCK, WIDE)
    _store_gradient(
        gradient2, total, second, inverse2, first, weight, tau, rows, B, D, NORMALIZE, WIDE
    )


class _Vectors(NamedTuple):
    """Parts of the vectors that a forward keeps; see the kernels."""

    stats: Tensor
    tau: Tensor
    losses: Tensor
    totals: Tensor
    pairs: Tensor
    means: Tensor
    shares: Tensor | None
    many: Tensor | None


def keep(
    z: Tensor, labels: Tensor | None, reduction: str, precision: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Memory of the loss, the operands (parts, N, WIDTH), the vectors, and the (N,) classes."""
    half, split = operand_kind(precision, z.dtype)
    count = 2 * z.shape[0]
    operands = z.new_empty(2 if split else 1, count, padded(z.shape[1]), dtype=half)
    vectors = z.new_empty(HEAD + count * (3 if labels is None else 6), dtype=torch.float32)
    loss = vectors.new_empty(count if reduction == "none" else ())
    return (
        loss,
        operands,
        vectors,
        loss.new_empty(0 if labels is None else count, dtype=torch.int32),
    )


def _split(vectors: Tensor, count: int, classes: bool) -> _Vectors:
    losses, totals, pairs, *more = vectors[HEAD:].view(-1, count)
    means, shares, many = more if classes else (pairs, None, None)
    return _Vectors(vectors[:2], vectors[TAU:HEAD], losses, totals, pairs, means, shares, many)


def _block(width: int) -> dict[str, int]:
    wide = triton.next_power_of_2(width)
    rows, warps = max(1, ENTRIES // wide), 8 if wide > 2048 else 4
    return {"BLOCK": rows, "WIDE": wide, "num_warps": warps, **FUSED}


def _pair(operands: Tensor, kept: _Vectors, reach: float) -> Pair:
    """The pair of all rows with themselves."""
    count, half = operands.shape[1], operands.shape[1] // 2
    return Pair(
        operands=(operands[0], operands[-1]) * 2,
        stats=(kept.stats, kept.stats),
        temperature=kept.tau,
        rows=count,
        columns=count,
        width=operands.shape[2],
        split=len(operands) == 2,
        mode=2,
        half=half,
        row_shift=0,
        column_shift=0,
        reach=reach,
    )


def _reach(temperature: Tensor | None, fixed: float, normalize: bool) -> float:
    """A little more than `pieces.scale_and_reach` gives, where the host knows it."""
    known = normalize and temperature is None
    return SLACK.value * math.log2(math.e) / fixed * (1 + 1e-5) if known else math.inf


def forward(
    z1: Tensor,
    z2: Tensor,
    labels: Tensor | None,
    temperature: Tensor | None,
    fixed: float,
    normalize: bool,
    reduction: str,
    precision: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss, NT-Xent or with labels SupCon, and what the backward keeps; see `keep`."""
    z1, z2 = dense(z1), dense(z2)
    images, width = z1.shape
    loss, operands, vectors, classes = keep(z1, labels, reduction, precision)
    kept = _split(vectors, 2 * images, labels is not None)
    wide, block = operands.shape[2], _block(operands.shape[2])
    bf16 = operands.dtype == torch.bfloat16
    with on(z1):
        measured = vectors if normalize else measure_rows([z1, z2])
        prepare_views[(triton.cdiv(images, block["BLOCK"]),)](
            z1, z2, vectors if labels is None else labels.contiguous(),
            vectors if temperature is None else temperature, measured,
            operands[0], operands[-1], kept.stats, kept.tau, kept.pairs,
            classes, vectors if kept.many is None else kept.many,
            images, width, z1.stride(0), z2.stride(0), float(fixed),
            WIDTH=wide, NORMALIZE=normalize, SPLIT=len(operands) == 2,
            HALF=tl.bfloat16 if bf16 else tl.float16, SCALED=not bf16,
            FIXED=temperature is None, CLASSES=labels is not None, COUNTED=COUNTED, **block,
        )  # fmt: skip
        pair = _pair(operands, kept, _reach(temperature, fixed, normalize))
        symmetric_log_sums(pair, Losses(*kept[2:], None if labels is None else classes))
    if reduction == "none":
        loss.copy_(kept.losses)
    else:
        reduce = torch.mean if reduction == "mean" else torch.sum
        reduce(kept.losses, 0, out=loss)
    return loss, operands, vectors, classes


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
    operands: Tensor,
    vectors: Tensor,
    classes: Tensor,
    needs: Sequence[bool],
) -> list[Tensor]:
    """Gradients by z1, z2 and temperature; an empty tensor where none is needed."""
    count = operands.shape[1]
    kept = _split(vectors, count, labels is not None)
    first, second = dense(z1), dense(z2)
    images, width = z1.shape
    gradients = [z.new_empty(z.shape) for z in (z1, z2)]
    block, grad = _block(width), grad.contiguous()
    many = vectors if kept.many is None else kept.many
    over = {"none": 0, "sum": 1, "mean": count}[reduction]
    with on(z1):
        side = Side(grad, kept.totals, kept.means, many)
        alike = None if labels is None else Classes(classes, classes)
        pair = _pair(operands, kept, _reach(temperature, fixed, normalize))
        sums, slopes = weighted_parts(
            pair, width, side, side, alike, needs[2], divided=False, over=over
        )
        finish_views[(triton.cdiv(images, block["BLOCK"]),)](
            sums, first, second, grad, kept.losses if kept.shares is None else kept.shares, many,
            kept.tau, *gradients,
            images, width, len(sums), first.stride(0), second.stride(0),
            0 if over else 1, float(over or 1),
            NORMALIZE=normalize, CLASSES=labels is not None, **block,
        )  # fmt: skip
    by_rows = [
        g if need else grad.new_empty(0) for g, need in zip(gradients, needs[:2], strict=True)
    ]
    if slopes is None or temperature is None:
        return [*by_rows, grad.new_empty(0)]
    slope = slopes.sum()
    if kept.shares is not None:
        slope = slope + (grad / (over or 1) * kept.shares.exp() * (kept.pairs - kept.means)).sum()
    return [*by_rows, (-slope / temperature).to(temperature.dtype)]


class ViewLosses(Contrastive):
    """The contrastive ops in Triton, those of one process's views with kernels of their own."""

    widest_views = dict.fromkeys(("ntxent", "supcon"), WIDEST)
    keep_views = staticmethod(keep)
    views = staticmethod(forward)
    views_backward = staticmethod(backward)
