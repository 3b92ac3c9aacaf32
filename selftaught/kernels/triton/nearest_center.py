"""Triton kernels of the nearest centre: index, exact squared distance, MAD loss, counts.

Scores s_k = |c'_k|^2 - 2 x'c'_k, about the mean o of the active centres (x' = x - o, c' = c - o),
choose the candidates; distances are always direct differences of the given numbers in float32.
The scores' products are of bfloat16 parts, which have float32's range. c' is split in two, 16 bits:

- PARTS 1, bfloat16 rows: a row is one part as it is, and x'c' = x c' - o c': two products.
- PARTS 2, float32 and float16: x' is split in two as well: three products.

Where the score of another centre is within the error of the scores, direct differences decide:
the index is that of the smallest distance, whatever the data.
Notation: N rows, K centres padded to KP, D columns padded to DP; names in capitals are constexpr.
"""

# Kernel arguments have no Python types.
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# mypy: disable-error-code="assignment"

import triton
import triton.language as tl

# Triton's interpreter multiplies the bits of bfloat16 as integers.
INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)
NONE = tl.constexpr(0x7FFFFFFF)  # stands for no centre


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
    ACTIVE: tl.constexpr, SUMMED: tl.constexpr, PARTS: tl.constexpr, BC: tl.constexpr,
    BD: tl.constexpr,
):  # fmt: skip
    """Moves the centres to their mean. Grid: (KP / BC,).

    `origin` (DP,), `high` and `low` (KP, DP) operands, `length` (KP,): |c'|^2, plus 2 o c' where
    the rows are not moved (PARTS 1), inf for a centre that is not to be chosen. With SUMMED,
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
        if PARTS == 2:
            squares += tl.sum(moved * moved, 1)
        else:
            squares += tl.sum(moved * (moved + 2.0 * mean[None, :]), 1)
        target = places * DP + columns[None, :]
        upper = moved.to(tl.bfloat16)
        tl.store(high + target, upper)
        tl.store(low + target, (moved - upper.to(tl.float32)).to(tl.bfloat16))
    tl.store(length + rows, tl.where(there, squares, float("inf")))


@triton.jit
def _load(x, rows, inside, columns, D, stride):
    """Some columns of a block of rows; 0 outside."""
    mask = inside[:, None] & (columns < D)[None, :]
    return tl.load(x + rows[:, None] * stride + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _load_whole(x, rows, inside, D, stride, WHOLE: tl.constexpr, BD: tl.constexpr):
    """The rows in WHOLE pieces of BD columns."""
    pieces = ()
    for piece in tl.static_range(WHOLE):
        columns = piece * BD + tl.arange(0, BD)
        pieces = pieces + (_load(x, rows, inside, columns, D, stride),)
    return pieces


@triton.jit
def _load_centers(high, low, places, columns, DP):
    """Both parts of some columns of the moved centres, transposed."""
    at = places.to(tl.int64)[None, :] * DP + columns[:, None]
    return tl.load(high + at), tl.load(low + at)


@triton.jit
def _multiply(total, part, origin, upper, lower, columns, PARTS: tl.constexpr):
    """`total` + some columns of the rows times those of the centres, small terms first."""
    if PARTS == 2:
        moved = part.to(tl.float32) - tl.load(origin + columns)[None, :]
        bits = moved.to(tl.int32, bitcast=True)
        rounded = ((bits + 0x8000) & -0x10000).to(tl.float32, bitcast=True)
        part, part_low = rounded.to(tl.bfloat16), (moved - rounded).to(tl.bfloat16)
    if INTERPRETED:
        part, upper, lower = part.to(tl.float32), upper.to(tl.float32), lower.to(tl.float32)
    if PARTS == 2:
        total = tl.dot(part_low.to(part.dtype), upper, total)
    total = tl.dot(part, lower, total)
    return tl.dot(part, upper, total)


@triton.jit
def _scores(
    x, whole, kept, origin, high, low, length, rows, inside, first, D, DP, stride,
    PARTS: tl.constexpr, WHOLE: tl.constexpr, KEPT: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """(BN, BK) scores of the centres from `first` on, and their numbers."""
    places = first + tl.arange(0, BK)
    total = tl.zeros((BN, BK), tl.float32)
    if WHOLE > 0:
        for piece in tl.static_range(WHOLE):
            columns = piece * BD + tl.arange(0, BD)
            if KEPT:
                upper, lower = kept[piece]
            else:
                upper, lower = _load_centers(high, low, places, columns, DP)
            total = _multiply(total, whole[piece], origin, upper, lower, columns, PARTS)
    else:
        for start in range(0, DP, BD):
            columns = start + tl.arange(0, BD)
            part = _load(x, rows, inside, columns, D, stride)
            upper, lower = _load_centers(high, low, places, columns, DP)
            total = _multiply(total, part, origin, upper, lower, columns, PARTS)
    return tl.load(length + places)[None, :] - 2.0 * total, places


@triton.jit
def _merge(best1, nearest, best2, score, places):
    """Smallest score so far, whose it is, and the next one, joined with those of a tile."""
    new1 = tl.min(score, 1)
    place = tl.min(tl.where(score == new1[:, None], places[None, :], NONE), 1)
    new2 = tl.min(tl.where(places[None, :] == place[:, None], float("inf"), score), 1)
    # Centres of earlier tiles have the lower numbers and win a tie.
    ahead = new1 < best1
    best2 = tl.minimum(tl.minimum(best2, new2), tl.where(ahead, best1, new1))
    return tl.where(ahead, new1, best1), tl.where(ahead, place, nearest), best2


@triton.jit
def _less_center(part, centers, index, columns, D, stride):
    """Some columns of each row less its centre, float32; 0 outside."""
    places = index.to(tl.int64)[:, None] * stride + columns[None, :]
    center = tl.load(centers + places, mask=(columns < D)[None, :], other=0.0)
    return part.to(tl.float32) - center.to(tl.float32)


@triton.jit
def differences(x, centers, index, rows, inside, start, D, stride, c_stride, BD: tl.constexpr):
    """Each row less its centre for BD columns, float32."""
    columns = start + tl.arange(0, BD)
    part = _load(x, rows, inside, columns, D, stride)
    return _less_center(part, centers, index, columns, D, c_stride)


@triton.jit
def _add_squares(squared, other, part, origin, centers, index, columns, D, stride,
                 PARTS: tl.constexpr):  # fmt: skip
    """What `_measure` adds up, of some columns."""
    apart = _less_center(part, centers, index, columns, D, stride)
    if PARTS == 0:
        return squared + apart * apart, other + apart * 0.0
    moved = part.to(tl.float32) - tl.load(origin + columns)[None, :]
    return squared + apart * apart, other + moved * moved


@triton.jit
def _measure(
    x, whole, origin, centers, index, rows, inside, D, stride, c_stride,
    PARTS: tl.constexpr, WHOLE: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Squared distance of each row to its centre by direct difference, and |x'|^2.

    With PARTS 0, instead of |x'|^2, NaN for rows with a non-finite entry and 0 for others.
    """
    squared = tl.zeros((BN, BD), tl.float32)
    other = squared
    if WHOLE > 0:
        for piece in tl.static_range(WHOLE):
            columns = piece * BD + tl.arange(0, BD)
            squared, other = _add_squares(
                squared, other, whole[piece], origin, centers, index, columns, D, c_stride, PARTS
            )
    else:
        for start in range(0, D, BD):
            columns = start + tl.arange(0, BD)
            part = _load(x, rows, inside, columns, D, stride)
            squared, other = _add_squares(
                squared, other, part, origin, centers, index, columns, D, c_stride, PARTS
            )
    return tl.sum(squared, 1), tl.sum(other, 1)


@triton.jit
def _distances(
    x, centers, center, rows, inside, D, stride, c_stride, BN: tl.constexpr, BD: tl.constexpr
):
    """Squared distances of all rows to one centre, added up as in `_measure`."""
    squared = tl.zeros((BN, BD), tl.float32)
    for start in range(0, D, BD):
        columns = start + tl.arange(0, BD)
        part = _load(x, rows, inside, columns, D, stride).to(tl.float32)
        at = centers + center.to(tl.int64) * c_stride + columns
        apart = part - tl.load(at, mask=columns < D, other=0.0).to(tl.float32)[None, :]
        squared += apart * apart
    return tl.sum(squared, 1)


@triton.jit
def _loss(squared, label, eta, eps):
    """The MAD loss; NaN for any label but -1, 0, 1."""
    loss = tl.where(label == 0, squared, float("nan"))
    loss = tl.where(label == 1, eta * (squared + eps), loss)
    return tl.where(label == -1, tl.math.div_rn(tl.zeros_like(squared) + eta, squared + eps), loss)


@triton.jit
def _search(
    x, whole, kept, origin, centers, high, low, length, far, rows, inside,
    D, KP, DP, stride, c_stride, slack,
    PARTS: tl.constexpr, WHOLE: tl.constexpr, KEPT: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Nearest centre of every row, its squared distance, and whether it has one."""
    best1 = tl.full((BN,), float("inf"), tl.float32)
    best2, nearest = best1, tl.zeros((BN,), tl.int32)
    for first in range(0, BK if KEPT else KP, BK):
        score, places = _scores(
            x, whole, kept, origin, high, low, length, rows, inside, first, D, DP, stride,
            PARTS, WHOLE, KEPT, BN, BK, BD,
        )  # fmt: skip
        best1, nearest, best2 = _merge(best1, nearest, best2, score, places)
    valid = inside & (tl.abs(best1) < float("inf"))
    nearest = tl.where(valid, nearest, 0)
    distance, square = _measure(
        x, whole, origin, centers, nearest, rows, inside, D, stride, c_stride,
        PARTS, WHOLE, BN, BD,
    )  # fmt: skip
    # A centre as near as this one has a length of at most `reach`. An error is `slack` times twice
    # the product of the lengths plus the squared length, and two scores are compared. Rows that
    # are not moved are at most as long as the moved ones and o, which is `far`.
    radius = tl.sqrt(square)
    reach = radius + tl.sqrt(distance)
    bound = 2.0 * slack * reach * (reach + 2.0 * (radius + far))
    close = valid & (best2 - best1 <= bound) & (best2 < float("inf"))
    if tl.max(close.to(tl.int32), 0) > 0:
        # Read again, for what is rare not to hold registers of what is not.
        again = _load_whole(x, rows, inside, D, stride, WHOLE, BD)
        for first in range(0, BK if KEPT else KP, BK):
            score, places = _scores(
                x, again, kept, origin, high, low, length, rows, inside, first, D, DP, stride,
                PARTS, WHOLE, KEPT, BN, BK, BD,
            )  # fmt: skip
            near = close[:, None] & (places[None, :] != nearest[:, None])
            near = near & (score - best1[:, None] <= bound[:, None]) & (score < float("inf"))
            wanted = tl.where(tl.max(near.to(tl.int32), 0) > 0, places, NONE)
            center = tl.min(wanted, 0)
            # Every close row is compared with it: where its score is farther off, so is it.
            while center < NONE:
                other = _distances(x, centers, center, rows, inside, D, stride, c_stride, BN, BD)
                nearer = (other < distance) | ((other == distance) & (center < nearest))
                nearest = tl.where(close & nearer, center, nearest)
                distance = tl.where(close & nearer, other, distance)
                center = tl.min(tl.where(wanted > center, wanted, NONE), 0)
    return nearest, distance, valid


@triton.jit(do_not_specialize=["N"])
def assign(
    x, centers, active, origin, high, low, length, labels, loss, squared, index, counts,
    N, D, KP, DP, stride, c_stride, label_stride, eta, eps, slack,
    ACTIVE: tl.constexpr, PARTS: tl.constexpr, MAD: tl.constexpr, COUNTED: tl.constexpr,
    WHOLE: tl.constexpr, KEPT: tl.constexpr,
    BN: tl.constexpr, BK: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Nearest centre of all rows, BN at a time. Grid: any; PARTS 0 is for K = 1, no search.

    A row of WHOLE pieces of BD columns is read once; WHOLE 0 is for wider ones, which are read in
    a loop. KEPT: all centres are one tile, which each program reads once, into shared memory.
    `squared` (N,), `index` (N,) int64; with MAD also `loss` (N,) from `labels` (N,); with COUNTED
    `counts` (K,) int64 grows by the rows of each centre. `slack` is the scores' relative error.
    """
    far = 0.0
    if PARTS == 1:
        for start in range(0, DP, BD):
            mean = tl.load(origin + start + tl.arange(0, BD))
            far += tl.sum(mean * mean, 0)
        far = tl.sqrt(far)
    kept = ()
    if KEPT:
        for piece in tl.static_range(WHOLE):
            columns = piece * BD + tl.arange(0, BD)
            kept = kept + (_load_centers(high, low, tl.arange(0, BK), columns, DP),)
    for block in range(tl.program_id(0), tl.cdiv(N, BN), tl.num_programs(0)):
        rows = tl.full((), BN, tl.int64) * block + tl.arange(0, BN)
        inside = rows < N
        whole = _load_whole(x, rows, inside, D, stride, WHOLE, BD)
        if PARTS == 0:
            nearest = tl.zeros((BN,), tl.int32)
            distance, poison = _measure(
                x, whole, x, centers, nearest, rows, inside, D, stride, c_stride,
                PARTS, WHOLE, BN, BD,
            )  # fmt: skip
            valid = inside & (poison == 0.0)
            if ACTIVE:
                valid = valid & (tl.load(active) != 0)
        else:
            nearest, distance, valid = _search(
                x, whole, kept, origin, centers, high, low, length, far, rows, inside,
                D, KP, DP, stride, c_stride, slack, PARTS, WHOLE, KEPT, BN, BK, BD,
            )  # fmt: skip
        distance = tl.where(valid, distance, float("nan"))
        tl.store(squared + rows, distance, mask=inside)
        tl.store(index + rows, tl.where(valid, nearest, -1).to(tl.int64), mask=inside)
        if MAD:
            label = tl.load(labels + rows * label_stride, mask=inside, other=0)
            tl.store(loss + rows, _loss(distance, label, eta, eps), mask=inside)
        if COUNTED:
            tl.atomic_add(counts + nearest, 1, mask=valid, sem="relaxed")
