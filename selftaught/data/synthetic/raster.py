"""From geometry in millimetres to thickness maps in pixels."""

from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.data.synthetic.shapes import Array, Bone, Cast, Soft, Solid

Map = npt.NDArray[np.float32]
# Union of soft tissues: the larger thickness wins, with a smooth change-over.
UNION = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Canvas:
    """Pixel grid of one exposure.

    Attributes:
        height: rows.
        width: columns.
        matrix: (2, 3) from mm to pixels, a similarity (perhaps mirrored).
        fine: sub-pixels per pixel side when outlines are filled.
        grain: (height, width) texture of spongy bone around 1.
        fibres: (height, width) texture of muscle around 1.
    """

    height: int
    width: int
    matrix: Array
    fine: int
    grain: Map
    fibres: Map

    @property
    def scale(self) -> float:
        """Pixels per mm."""
        return float(np.sqrt(abs(np.linalg.det(self.matrix[:, :2]))))

    def pixels(self, points: Array) -> Array:
        """(N, 2) mm to (N, 2) pixels, x then y."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]


Box = tuple[slice, slice]


def _box(canvas: Canvas, points: Array, margin: float = 2.0) -> Box | None:
    """Rows and columns that hold (N, 2) pixel points, or None outside the canvas."""
    low = np.floor(points.min(axis=0) - margin).astype(int)
    high = np.ceil(points.max(axis=0) + margin).astype(int) + 1
    left, top = np.maximum(low, 0)
    right, bottom = np.minimum(high, (canvas.width, canvas.height))
    if right - left < 1 or bottom - top < 1:
        return None
    return slice(int(top), int(bottom)), slice(int(left), int(right))


def _filled(canvas: Canvas, box: Box, pixels: Array) -> npt.NDArray[np.uint8]:
    """Sub-pixel mask (0 or 1) of a polygon inside `box`."""
    rows, columns = box
    fine = canvas.fine
    shape = ((rows.stop - rows.start) * fine, (columns.stop - columns.start) * fine)
    mask = np.zeros(shape, np.uint8)
    corners = (pixels - (columns.start, rows.start) + 0.5) * fine - 0.5
    corners = np.clip(corners, -8000, 8000)
    cv2.fillPoly(mask, [np.round(corners * 16).astype(np.int32)], 1, lineType=cv2.LINE_8, shift=4)
    return mask


def _shrink(canvas: Canvas, fine: Map, box: Box) -> Map:
    """Average sub-pixels to pixels."""
    rows, columns = box
    size = (columns.stop - columns.start, rows.stop - rows.start)
    return np.asarray(cv2.resize(fine, size, interpolation=cv2.INTER_AREA), np.float32)


def coverage(canvas: Canvas, outline: Array) -> Map:
    """Share of every pixel inside a polygon (N, 2) in mm -> (height, width) float32."""
    full = (slice(0, canvas.height), slice(0, canvas.width))
    out = np.zeros((canvas.height, canvas.width), np.float32)
    pixels = canvas.pixels(outline)
    box = _box(canvas, pixels)
    if box is not None:
        out[box] = _shrink(canvas, _filled(canvas, box, pixels).astype(np.float32), box)
    assert out.shape == (full[0].stop, full[1].stop)
    return out


def _depths(canvas: Canvas, box: Box, pixels: Array) -> Map:
    """Distance of every pixel in `box` from the rim of a polygon, mm; 0 outside."""
    mask = _filled(canvas, box, pixels)
    inside: Map = np.asarray(cv2.distanceTransform(mask, cv2.DIST_L2, 5), np.float32)
    np.maximum(inside - 0.5, 0, out=inside)
    return _shrink(canvas, inside, box) / np.float32(canvas.fine * canvas.scale)


def chord(distance: Map, width: Map | float) -> Map:
    """Relative thickness of a rod at `distance` from its rim: 0 at the rim, 1 at `width`."""
    share = np.minimum(distance / width, 1)
    return np.sqrt(np.maximum(share * (2 - share), 0))


def add_bone(canvas: Canvas, bone: Bone, total: Map) -> None:
    """Add one bone's thickness, in mm of dense bone, to `total` (height, width)."""
    pixels = canvas.pixels(bone.outline)
    box = _box(canvas, pixels)
    if box is None:
        return
    distance = _depths(canvas, box, pixels)
    place = _along(canvas, box, bone)
    half, depth, shell, spongy = (
        np.asarray(table, np.float32)[place]
        for table in (bone.half_width, bone.half_depth, bone.cortex, bone.spongy)
    )
    outer = 2 * depth * chord(distance, half)
    core = np.maximum(half - shell, 0.2)
    inner = 2 * np.maximum(depth - shell, 0.2) * chord(np.maximum(distance - shell, 0), core)
    thick = (outer - inner) + inner * spongy * canvas.grain[box]
    for clip in bone.clips:
        mask = _filled(canvas, box, canvas.pixels(clip)).astype(np.float32)
        thick *= _shrink(canvas, mask, box)
    total[box] += np.float32(bone.weight) * thick


def _along(canvas: Canvas, box: Box, bone: Bone) -> npt.NDArray[np.intp]:
    """Station of the bone's axis nearest to every pixel of `box`."""
    first, last = canvas.pixels(bone.axis[[0, -1]])
    axis = last - first
    axis = axis / max(float(axis @ axis), 1e-6) * (len(bone.axis) - 1)
    rows = (np.arange(box[0].start, box[0].stop) - first[1]) * axis[1]
    columns = (np.arange(box[1].start, box[1].stop) - first[0]) * axis[0]
    place = rows[:, None].astype(np.float32) + columns[None, :].astype(np.float32)
    return np.clip(np.rint(place), 0, len(bone.axis) - 1).astype(np.intp)


def soft_thickness(canvas: Canvas, softs: list[Soft], grow: float = 0.0) -> tuple[Map, Map]:
    """Thickness of the soft tissue with and without its rim of fat.

    Args:
        canvas: pixel grid.
        softs: capsules; those of one chain are joined by the maximum, chains smoothly.
        grow: mm added to every radius.

    Returns:
        Two (height, width) maps, mm.
    """
    shape = (canvas.height, canvas.width)
    outer, inner = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    for chain in dict.fromkeys(soft.chain for soft in softs):
        thick, lean = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        for soft in softs:
            if soft.chain == chain:
                _join_capsule(canvas, soft, grow, thick, lean)
        outer += thick ** (UNION // 2)
        inner += lean ** (UNION // 2)
    return outer ** np.float32(1 / UNION), inner ** np.float32(1 / UNION)


def _join_capsule(canvas: Canvas, soft: Soft, grow: float, thick: Map, lean: Map) -> None:
    """Raise two maps of squared thickness to those of one capsule."""
    ends = canvas.pixels(np.stack((soft.start, soft.end)))
    radii = [(radius + grow) * canvas.scale for radius in soft.radii]
    reach = max(radii)
    box = _box(canvas, np.concatenate((ends - reach, ends + reach)))
    if box is None:
        return
    rows = np.arange(box[0].start, box[0].stop, dtype=np.float32)[:, None] - np.float32(ends[0, 1])
    columns = np.arange(box[1].start, box[1].stop, dtype=np.float32) - np.float32(ends[0, 0])
    axis = (ends[1] - ends[0]).astype(np.float32)
    length = np.float32(max(float(axis @ axis), 1e-6))
    place = np.clip((rows * (axis[1] / length)) + (columns * (axis[0] / length))[None], 0, 1)
    square = (rows - place * axis[1]) ** 2 + (columns[None] - place * axis[0]) ** 2
    radius = np.float32(radii[0]) + place * np.float32(radii[1] - radii[0])
    factor = np.float32((2 * soft.depth / canvas.scale) ** 2)
    np.maximum(thick[box], factor * (radius * radius - square), out=thick[box])
    radius = radius - np.float32(soft.fat * canvas.scale)
    np.maximum(lean[box], factor * (radius * radius - square), out=lean[box])


def add_solid(canvas: Canvas, solid: Solid, total: Map) -> None:
    """Add thickness x density of one solid to the line integral `total`."""
    pixels = canvas.pixels(solid.outline)
    box = _box(canvas, pixels)
    if box is None:
        return
    if solid.rounded:
        half = max(abs(solid.thickness) / 2, 1e-3)
        amount = solid.thickness * chord(_depths(canvas, box, pixels), half)
    else:
        mask = _filled(canvas, box, pixels)
        for hole in solid.holes:
            mask &= 1 - _filled(canvas, box, canvas.pixels(hole))
        amount = solid.thickness * _shrink(canvas, mask.astype(np.float32), box)
    total[box] += np.float32(solid.density) * amount.astype(np.float32)


def cast_map(canvas: Canvas, cast: Cast, softs: list[Soft]) -> Map:
    """Line integral (height, width) of a cast around the soft tissue."""
    softs = [soft for soft in softs if soft.chain in cast.chains]
    inner = soft_thickness(canvas, softs, cast.gap)[0]
    outer = soft_thickness(canvas, softs, cast.gap + cast.thickness)[0]
    wraps = 0.5 * canvas.grain + 0.5 * canvas.fibres
    return np.float32(cast.density) * (outer - inner) * coverage(canvas, cast.region) * wraps


@lru_cache(maxsize=8)
def fine_for(size: int) -> int:
    """Sub-pixels per pixel side: small pictures get more, so that thin shells survive."""
    return 3 if size >= 320 else 4
