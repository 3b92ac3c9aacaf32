"""Triton kernels of the nearest centre: index, exact squared distance, MAD loss, counts.

Scores s_k = |c'_k|^2 - 2 x'c'_k, about the mean o of the active centres (x' = x - o, c' = c - o),
choose the candidates; distances are always direct differences of the given numbers in float32.
The scores' operands are of one of three tiers, by the dtype of x:

- TIER 3, float32: x' and c' are split in two TF32 parts each, three products.
- TIER 2, float16: a row is a TF32 number as it is, and x'c' = x c' - o c'. Only c' is split, in
  two TF32 parts: two products, 22 significant bits.
- TIER 1, bfloat16: the same with two bfloat16 parts of c', 16 significant bits.

In every tier the second-best centre is measured too where it scores within the error of the scores,
and where a third one does, the row is searched again by direct differences: the index is that of
the smallest distance, whatever the data.
Notation: N rows, K centres padded to KP, D columns padded to DP; names in capitals are constexpr.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False

import triton
import triton.language as tl

# Triton's interpreter multiplies the bits of bfloat16 as integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def _tf32(value):
    """Nearest TF32 number, as float32."""
    bits = value.to(tl.int32, bitcast=True)
    return ((bits + 0x1000) & -0x2000).to(tl.float32, bitcast=True)


@triton.jit
def sum_centers(centers, active, sums, K, D, stride, ACTIVE: tl.constexpr, BC: tl.constexpr):
    """Sums of BC active centres each: `sums` (cdiv(K, BC), D). Grid: (cdiv(K, BC), cdiv(D, 64))."""
    block = tl.program_id(0)
    rows = block * BC + tl.arange(0, BC)
    columns = tl.program_id(1) * 64 + tl.arange(0, 64)
    there = rows < K
    if ACTIVE:
        there = there & (tl.load(active + rows, mask=there, other=0) != 0)
    inside = columns < D
    part = tl.load(
        centers + rows.to(tl.int64)[:, None] * stride + columns[None, :],
        mask=there[:, None] & inside[None, :],
        other=0.0,
    ).to(tl.float32)
    tl.store(sums + block.to(tl.int64) * D + columns, tl.sum(part, 0), mask=inside)


@triton.jit
def _mean(source, weights, COUNT, D, stride, many, columns, WEIGHTED: tl.constexpr):
    """Mean over the rows of `source` that have a weight, for some columns; 0 if there is none."""
    inside = columns < D
    total = tl.zeros(columns.shape, tl.float32)
    for first in range(0, COUNT, 64):
        rows = first + tl.arange(0, 64)
        there = rows < COUNT
        if WEIGHTED:
            there = there & (tl.load(weights + rows, mask=there, other=0) != 0)
        part = tl.load(
            source + rows.to(tl.int64)[:, None] * stride + columns[None, :],
            mask=there[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(part.to(tl.float32), 0)
    return total / tl.maximum(many, 1).to(tl.float32)


@triton.jit
def prepare(
    centers, active, sums, origin, high, low, length,
    K, D, DP, stride, parts,
    ACTIVE: tl.constexpr, SUMMED: tl.constexpr, TIER: tl.constexpr, BC: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Moves the centres to their mean. Grid: (KP / BC,).

    `origin` (DP,), `high` and `low` (KP, DP) operands, `length` (KP,): |c'|^2, plus 2 o c' where
    the rows are not moved (TIER 1, 2), inf for a centre that is not to be chosen. With SUMMED,
    `sums` (parts, D) holds sums of the centres.
    """
    rows = tl.program_id(0) * BC + tl.arange(0, BC)
    there = rows < K
    many = K
    if ACTIVE:
        counted = tl.zeros((1024,), tl.int32)
        for first in range(0, K, 1024):
            places = first + tl.arange(0, 1024)
            flags = tl.load(active + places, mask=places < K, other=0)
            counted += (flags != 0).to(tl.int32)
        many = tl.sum(counted, 0)
        there = there & (tl.load(active + rows, mask=there, other=0) != 0)
    squares = tl.zeros((BC,), tl.float32)
    for first in range(0, DP, BD):
        columns = first + tl.arange(0, BD)
        if SUMMED:
            mean = _mean(sums, active, parts, D, D, many, columns, WEIGHTED=False)
        else:
            mean = _mean(centers, active, K, D, stride, many, columns, WEIGHTED=ACTIVE)
        if tl.program_id(0) == 0:
            tl.store(origin + columns, mean)
        chosen = there[:, None] & (columns < D)[None, :]
        places = rows.to(tl.int64)[:, None]
        given = tl.load(centers + places * stride + columns[None, :], mask=chosen, other=0.0)
        moved = tl.where(chosen, given.to(tl.float32) - mean[None, :], 0.0)
        if TIER == 3:
            squares += tl.sum(moved * moved, 1)
        else:
            squares += tl.sum(moved * (moved + 2.0 * mean[None, :]), 1)
        target = places * DP + columns[None, :]
        if TIER == 1:
            upper = moved.to(tl.bfloat16)
            tl.store(low + target, (moved - upper.to(tl.float32)).to(tl.bfloat16))
        else:
            upper = _tf32(moved)
            tl.store(low + target, _tf32(moved - upper))
        tl.store(high + target, upper)
    tl.store(length + rows, tl.where(there, squares, float("inf")))


@triton.jit
def _load(x, rows, inside, columns, D, stride):
    """Some columns of a block of rows; 0 outside."""
    mask = inside[:, None] & (columns < D)[None, :]
    return tl.load(x + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _operand(x, origin, rows, inside, columns, D, stride, TIER: tl.constexpr):
    """The rows' side of the products: as given, or, in TIER 3, less o."""
    part = _load(x, rows, inside, columns, D, stride)
    if TIER > 1:
        part = part.to(tl.float32)
    if TIER == 3:
        part = part - tl.load(origin + columns)[None, :]
    return part


@triton.jit
def _product(total, part, high, low, centers, columns, DP, TIER: tl.constexpr):
    """`total` + the rows' operand times c' over the given columns."""
    places = centers.to(tl.int64)[None, :] * DP + columns[:, None]
    upper, lower = tl.load(high + places), tl.load(low + places)
    if TIER == 1:
        if INTERPRETED:
            part, upper, lower = part.to(tl.float32), upper.to(tl.float32), lower.to(tl.float32)
        total = tl.dot(part, lower, total)
        total = tl.dot(part, upper, total)
    else:
        rounded = part
        if TIER == 3:
            rounded = _tf32(part)
            total = tl.dot(part - rounded, upper, total, input_precision="tf32")
        total = tl.dot(rounded, lower, total, input_precision="tf32")
        total = tl.dot(rounded, upper, total, input_precision="tf32")
    return total


@triton.jit
def _merge(best1, index1, best2, index2, best3, score, places):
    """Running best two, and third score, joined with those of a tile."""
    new1 = tl.min(score, 1)
    place1 = tl.min(tl.where(score == new1[:, None], places[None, :], 0x7FFFFFFF), 1)
    score = tl.where(places[None, :] == place1[:, None], float("inf"), score)
    new2 = tl.min(score, 1)
    place2 = tl.min(tl.where(score == new2[:, None], places[None, :], 0x7FFFFFFF), 1)
    score = tl.where(places[None, :] == place2[:, None], float("inf"), score)
    middle = tl.minimum(tl.maximum(best2, new1), tl.maximum(best1, new2))
    best3 = tl.minimum(tl.minimum(best3, tl.min(score, 1)), middle)
    # Centres of earlier tiles have the smaller indices and win a tie.
    ahead = new1 < best1
    rival1, rival_place1 = tl.where(ahead, best1, best2), tl.where(ahead, index1, index2)
    rival2, rival_place2 = tl.where(ahead, new2, new1), tl.where(ahead, place2, place1)
    later = rival2 < rival1
    best1, index1 = tl.where(ahead, new1, best1), tl.where(ahead, place1, index1)
    best2, index2 = tl.where(later, rival2, rival1), tl.where(later, rival_place2, rival_place1)
    return best1, index1, best2, index2, best3


@triton.jit
def _search(
    x, origin, high, low, length, rows, inside, D, DP, KP, stride,
    TIER: tl.constexpr, HELD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Best two centres of every row by score, and the third-best score."""
    best1 = tl.full((BN,), float("inf"), tl.float32)
    best2, best3 = best1, best1
    index1 = tl.zeros((BN,), tl.int32)
    index2 = index1
    if HELD:
        held = _operand(x, origin, rows, inside, tl.arange(0, BD), D, stride, TIER)
    for first in range(0, KP, BK):
        places = first + tl.arange(0, BK)
        total = tl.zeros((BN, BK), tl.float32)
        if HELD:
            total = _product(total, held, high, low, places, tl.arange(0, BD), DP, TIER)
        else:
            for start in range(0, DP, BD):
                columns = start + tl.arange(0, BD)
                part = _operand(x, origin, rows, inside, columns, D, stride, TIER)
                total = _product(total, part, high, low, places, columns, DP, TIER)
        score = tl.load(length + places)[None, :] - 2.0 * total
        best1, index1, best2, index2, best3 = _merge(
            best1, index1, best2, index2, best3, score, places
        )
    return best1, index1, best2, index2, best3


@triton.jit
def differences(x, centers, index, rows, inside, start, D, stride, c_stride, BD: tl.constexpr):
    """Each row less its centre for BD columns, float32; 0 outside."""
    columns = start + tl.arange(0, BD)
    mask = inside[:, None] & (columns < D)[None, :]
    part = _load(x, rows, inside, columns, D, stride)
    places = index.to(tl.int64)[:, None] * c_stride + columns[None, :]
    center = tl.load(centers + places, mask=mask, other=0.0)
    return part.to(tl.float32) - center.to(tl.float32)


@triton.jit
def _distance(
    x, centers, index, rows, inside, D, stride, c_stride, BN: tl.constexpr, BD: tl.constexpr
):
    """Squared distance to the given centre by direct difference."""
    total = tl.zeros((BN,), tl.float32)
    for start in range(0, D, BD):
        part = differences(x, centers, index, rows, inside, start, D, stride, c_stride, BD)
        total += tl.sum(part * part, 1)
    return total


@triton.jit
def _measure(
    x, origin, centers, index, rows, inside, D, stride, c_stride, MOVED: tl.constexpr,
    BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """`_distance`, NaN for rows with a non-finite entry, and, if MOVED, |x'|^2 and |o|^2."""
    total = tl.zeros((BN,), tl.float32)
    poison, square = total, total
    offset = tl.zeros((BD,), tl.float32)
    for start in range(0, D, BD):
        part = differences(x, centers, index, rows, inside, start, D, stride, c_stride, BD)
        total += tl.sum(part * part, 1)
        poison += tl.sum(part * 0.0, 1)
        if MOVED:
            columns = start + tl.arange(0, BD)
            mean = tl.load(origin + columns, mask=columns < D, other=0.0)
            moved = _load(x, rows, inside, columns, D, stride).to(tl.float32) - mean[None, :]
            square += tl.sum(moved * moved, 1)
            offset += mean * mean
    return tl.where(poison == 0.0, total, float("nan")), square, tl.sum(offset, 0)


@triton.jit
def _all_distances(
    x, centers, length, rows, inside, K, D, stride, c_stride, BN: tl.constexpr, BD: tl.constexpr
):
    """Smallest squared distance and its index by direct difference to every centre."""
    best = tl.full((BN,), float("inf"), tl.float32)
    index = tl.zeros((BN,), tl.int32)
    for center in range(0, K):
        if tl.load(length + center) < float("inf"):
            same = tl.zeros((BN,), tl.int32) + center
            squared = _distance(x, centers, same, rows, inside, D, stride, c_stride, BN, BD)
            index = tl.where(squared < best, center, index)
            best = tl.minimum(squared, best)
    return best, index


@triton.jit
def _rescue(
    x, origin, centers, length, best1, nearest, best2, second, best3, rows, valid,
    K, D, stride, c_stride, slack, TIER: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Nearest of the centres whose scores are too close to call, and its squared distance."""
    distance, square, offset = _measure(
        x, origin, centers, nearest, rows, valid, D, stride, c_stride, True, BN, BD
    )
    # A centre as near as this one has a length of at most `reach`. An error is `slack` times twice
    # the product of the lengths plus the squared length, and two scores are compared. Rows that
    # are not moved are at most as long as the moved ones and o.
    radius = tl.sqrt(square)
    reach = radius + tl.sqrt(distance)
    longest = radius if TIER == 3 else radius + tl.sqrt(offset)
    bound = 2.0 * slack * reach * (reach + 2.0 * longest)
    close = valid & (best2 - best1 <= bound) & (best2 < float("inf"))
    if tl.max(close.to(tl.int32), 0) > 0:
        second = tl.where(close, second, 0)
        other = _distance(x, centers, second, rows, close, D, stride, c_stride, BN, BD)
        swap = close & ((other < distance) | ((other == distance) & (second < nearest)))
        nearest = tl.where(swap, second, nearest)
        distance = tl.where(swap, other, distance)
    unsure = close & (best3 - best1 <= bound) & (best3 < float("inf"))
    if tl.max(unsure.to(tl.int32), 0) > 0:
        least, place = _all_distances(
            x, centers, length, rows, unsure, K, D, stride, c_stride, BN, BD
        )
        nearest = tl.where(unsure, place, nearest)
        distance = tl.where(unsure, least, distance)
    return nearest, distance


@triton.jit
def _loss(squared, label, eta, eps):
    """The MAD loss; NaN for any label but -1, 0, 1."""
    loss = tl.where(label == 0, squared, float("nan"))
    loss = tl.where(label == 1, eta * (squared + eps), loss)
    return tl.where(label == -1, tl.math.div_rn(tl.zeros_like(squared) + eta, squared + eps), loss)


@triton.jit(do_not_specialize=["N", "K"])
def assign(
    x, centers, active, origin, high, low, length, labels, loss, squared, index, counts,
    N, K, D, KP, DP, stride, c_stride, label_stride, eta, eps, slack,
    ACTIVE: tl.constexpr, TIER: tl.constexpr, MAD: tl.constexpr, COUNTED: tl.constexpr,
    HELD: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr, BW: tl.constexpr,
):  # fmt: skip
    """Nearest centre of BN rows. Grid: (cdiv(N, BN),). TIER 0 is for K = 1: nothing is searched.

    `squared` (N,), `index` (N,) int64; with MAD also `loss` (N,) from `labels` (N,); with COUNTED
    `counts` (K,) int64 grows by the rows of each centre. `slack` is the scores' relative error.
    """
    rows = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inside = rows < N
    if TIER == 0:
        nearest = tl.zeros((BN,), tl.int32)
        distance, _, _ = _measure(
            x, x, centers, nearest, rows, inside, D, stride, c_stride, False, BN, BW
        )
        valid = inside
        if ACTIVE:
            valid = valid & (tl.load(active) != 0)
    else:
        best1, nearest, best2, second, best3 = _search(
            x, origin, high, low, length, rows, inside, D, DP, KP, stride,
            TIER, HELD, BN, BK, BD,
        )  # fmt: skip
        valid = inside & (tl.abs(best1) < float("inf"))
        nearest, distance = _rescue(
            x, origin, centers, length, best1, tl.where(valid, nearest, 0), best2, second, best3,
            rows, valid, K, D, stride, c_stride, slack, TIER, BN, BW,
        )  # fmt: skip
    valid = valid & (distance == distance)
    distance = tl.where(valid, distance, float("nan"))
    tl.store(squared + rows, distance, mask=inside)
    tl.store(index + rows, tl.where(valid, nearest, -1).to(tl.int64), mask=inside)
    if MAD:
        label = tl.load(labels + rows * label_stride, mask=inside, other=0)
        tl.store(loss + rows, _loss(distance, label, eta, eps), mask=inside)
    if COUNTED:
        tl.atomic_add(counts + nearest, 1, mask=valid, sem="relaxed")
