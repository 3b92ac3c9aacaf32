"""The plain view as tensor operations, for films of any size: what `data.pipeline` does, traceable.

Sizes enter as tensors, so that one graph serves all of them. OpenCV's resampling is repeated step
by step, in its own precision and order of sums: on x86 the 8-bit views are equal bit by bit, those
of deeper films within a grey level of 65,536.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Beside `Tensor` loops of Python, the loop whose number of turns a graph computes.
from torch._higher_order_ops.while_loop import while_loop

from selftaught.data.augment import Augment
from selftaught.data.pipeline.composed import EPSILON

LEVELS = 65536
COEFFICIENT = 2048  # of OpenCV's 8-bit interpolation, which is done in whole numbers
SLIVER = 1e-3  # of a pixel: a share that INTER_AREA leaves out


class Axis(NamedTuple):
    """One axis of a film on the canvas.

    Attributes:
        length: pixels of the film, 0-d float64.
        inner: pixels on the canvas, 0-d float64.
        place: (S,) float64, number of each canvas pixel within the film's part.
        size: S.
    """

    length: Tensor
    inner: Tensor
    place: Tensor
    size: int

    @property
    def scale(self) -> Tensor:
        """Film pixels for one of the canvas, rounded as OpenCV rounds."""
        return 1.0 / (self.inner / self.length)

    @property
    def inside(self) -> Tensor:
        """(S,) whether a canvas pixel lies on the film."""
        return (self.place >= 0) & (self.place < self.inner)


def axes(height: Tensor, width: Tensor, size: int) -> tuple[Axis, Axis]:
    """Rows and columns of a film on a square canvas, as `composed.canvas` places it."""
    ratio = size / torch.maximum(height, width)
    made = []
    for length in (height, width):
        inner = torch.round(length * ratio).clamp(min=1)
        place = torch.arange(size, dtype=torch.float64) - torch.floor((size - inner) / 2)
        made.append(Axis(length, inner, place, size))
    return made[0], made[1]


class View(nn.Module):
    """Films (N, H, W) of whole grey levels -> network input (N, 1, S, S) in the declared range.

    Args:
        augment: of the preprocessing; nothing in it is random.
        size: S, in pixels.
    """

    def __init__(self, augment: Augment, size: int) -> None:
        super().__init__()
        self.cutoff, self.scale, self.size = augment.autocontrast, float(augment.mask_scale), size

    def forward(self, films: Tensor, deep: Tensor, masks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Views, and masks (N, 1, S, S) in [0, 1], which are 1 on the film where none are given.

        Args:
            films: (N, H, W) int64, 0 to 255 or 65535.
            deep: (N,) bool, films of more than 8 bits.
            masks: (N, H, W) int64 of the films, 0 to 255; None: nothing is masked.
        """
        height, width = (
            torch.scalar_tensor(films.shape[axis], dtype=torch.float64) for axis in (1, 2)
        )
        rows, columns = axes(height, width, self.size)
        image = resized(autocontrast(films, deep, self.cutoff), deep, rows, columns)
        view = normalised(image, deep, self.scale)
        if masks is None:
            region = (rows.inside[:, None] & columns.inside).float().expand_as(view)
        else:
            region = resized(masks.float(), torch.zeros_like(deep), rows, columns)
            view, region = view * region / 255.0, region * (1.0 / 255.0)
        return view[:, None], region[:, None]


def autocontrast(films: Tensor, deep: Tensor, cutoff: float) -> Tensor:
    """As `data.images.contrast.autocontrast`: (N, H, W) float32 of whole grey levels."""
    pixels = films.flatten(1)
    counts = torch.zeros(pixels.shape[0], LEVELS, dtype=torch.int64)
    below = counts.scatter_add(1, pixels, torch.ones_like(pixels)).cumsum(1)
    total = torch.scalar_tensor(pixels.shape[1], dtype=torch.int64)
    # Whole hundreds of pixels times per cent, as Python's // leaves them.
    share = total.double() * cutoff
    cut = torch.round((share - torch.fmod(share, 100.0)) / 100.0).long()
    low = (below <= cut).sum(1, keepdim=True).double()
    high = (below <= total - 1 - cut).sum(1, keepdim=True).double()
    white = torch.where(deep, 65535.0, 255.0).double()[:, None]
    levels = torch.arange(LEVELS, dtype=torch.float64)[None]
    spread = white / torch.where(high > low, high - low, 1.0)
    stretched = torch.floor(levels * spread - low * spread).clamp(min=0.0).minimum(white)
    table = torch.where(high > low, stretched, levels).float()
    return torch.gather(table, 1, pixels).view_as(films)


def resized(image: Tensor, deep: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """(N, S, S) canvas of images (N, H, W), 0 beside them, rounded to whole levels.

    By pixel area where an image shrinks, between pixels where it grows, as `composed.canvas`.
    """
    shrinks = torch.maximum(rows.length, columns.length) > rows.size
    inside = rows.inside[:, None] & columns.inside
    grown = torch.where(deep[:, None, None], _linear(image, rows, columns), 0.0)
    grown = torch.where(deep[:, None, None], grown, _linear_8(image, rows, columns))
    return torch.where(inside, torch.where(shrinks, _area(image, rows, columns), grown), 0.0)


def _area(image: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """OpenCV's INTER_AREA."""
    exact = torch.finfo(torch.float64).eps
    whole = [axis.scale - torch.round(axis.scale) for axis in (rows, columns)]
    blocks = (whole[0].abs() < exact) & (whole[1].abs() < exact)
    sums = _sums(image, columns, blocks, axis=2)
    sums = _sums(sums, rows, blocks, axis=1)
    area = (torch.round(rows.scale) * torch.round(columns.scale)).float()
    halves = (torch.round(rows.scale) == 2) & (torch.round(columns.scale) == 2)
    # Blocks of 2 x 2 round half up, all others to even.
    means = torch.where(halves, torch.floor((sums + 2) / 4), torch.round(sums * (1.0 / area)))
    return torch.where(blocks, means, torch.round(sums))


def _sums(image: Tensor, along: Axis, blocks: Tensor, axis: int) -> Tensor:
    """Weighted sums of an image's pixels along one axis, one pixel after the other, in float32.

    Args:
        image: (N, H, W).
        along: that axis.
        blocks: 0-d bool, whether all pixels count 1.
        axis: its number.
    """
    scale, last = along.scale, along.length - 1
    left = along.place * scale
    right = left + scale
    cell = torch.minimum(scale, along.length - left)
    stop = torch.minimum(torch.floor(right), last)
    start = torch.minimum(torch.ceil(left), stop)
    ahead, behind = start - left > SLIVER, right - stop > SLIVER
    first, count = start - ahead.double(), stop - start + ahead.double() + behind.double()
    ends = (start - left) / cell, (right - stop).clamp(max=1.0).minimum(cell) / cell
    turns = torch.where(along.inside, count, 0.0).amax(0).long()
    shape = (-1, 1) if axis == 1 else (-1,)

    def more(turn: Tensor, sums: Tensor) -> Tensor:
        return turn < turns

    def add(turn: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        at = first + turn
        share = torch.where(at < start, ends[0], torch.where(at < stop, 1.0 / cell, ends[1]))
        share = torch.where(blocks, torch.ones_like(share), share)
        share = torch.where(turn < count, share, 0.0).float().view(shape)
        pixels = image.index_select(axis, at.clamp(min=0.0).minimum(last).long())
        return turn + 1, sums + pixels * share

    size = (image.shape[0], image.shape[1], along.size)
    begin = image.new_zeros(size if axis == 2 else (image.shape[0], along.size, image.shape[2]))
    return while_loop(more, add, (torch.zeros((), dtype=torch.int64), begin))[1]


def _taps(along: Axis, *, edge: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Two pixels (S,) int64 and the share of the second (S,) float32, of INTER_LINEAR.

    Args:
        along: the axis.
        edge: beyond the film's first and last pixel the share is 0, as OpenCV does with columns.
    """
    at = ((along.place + 0.5) * along.scale - 0.5).float()
    first = torch.floor(at)
    share, last = at - first, along.length.float() - 1
    if edge:
        share = torch.where((first < 0) | (first >= last), 0.0, share)
    pair = [(first + more).clamp(min=0.0).minimum(last).long() for more in (0, 1)]
    return pair[0], pair[1], share


def _between(
    image: Tensor,
    rows: Axis,
    columns: Axis,
    mix: Callable[..., Tensor],
    mixed: Callable[..., Tensor],
) -> Tensor:
    left, right, share = _taps(columns, edge=True)
    across = mix(image.index_select(2, left), image.index_select(2, right), share)
    upper, lower, share = _taps(rows, edge=False)
    return mixed(across.index_select(1, upper), across.index_select(1, lower), share[:, None])


def _linear(image: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """OpenCV's INTER_LINEAR of 16-bit images."""

    def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
        return first * (1.0 - share) + second * share

    return torch.round(_between(image, rows, columns, mix, mix))


def _linear_8(image: Tensor, rows: Axis, columns: Axis) -> Tensor:
    """OpenCV's INTER_LINEAR of 8-bit images, in whole numbers and with its rounding."""

    def shares(share: Tensor) -> tuple[Tensor, Tensor]:
        first, second = ((one * COEFFICIENT).round().long() for one in (1.0 - share, share))
        return first, second

    def mix(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
        weights = shares(share)
        return first * weights[0] + second * weights[1]

    def mixed(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
        parts = [
            one // 16 * weight // 65536
            for one, weight in zip((first, second), shares(share), strict=True)
        ]
        return (parts[0] + parts[1] + 2) // 4

    return _between(image.long(), rows, columns, mix, mixed).float()


def normalised(image: Tensor, deep: Tensor, scale: float) -> Tensor:
    """Canvas (N, S, S) -> [0, scale] by its own lowest and highest level, as `composed.render`."""
    deep = deep[:, None, None]
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    full = torch.where(deep, 65535.0, 255.0).double()
    factor = scale / (high.double() - low.double() + EPSILON * full)
    shallow = ((image.double() - low.double()) * factor).clamp(0.0, scale).float()
    return torch.where(deep, (image - low) * factor.float(), shallow)
