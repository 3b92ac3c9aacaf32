"""Thickness maps of bones, soft tissue, solids and casts."""

import numpy as np
import numpy.typing as npt

from selftaught.phantoms.raster import (
    Box,
    Canvas,
    Map,
    box_of,
    chord,
    coverage,
    depths,
    filled_box,
    shrink,
)
from selftaught.phantoms.shapes import Bone, Cast, Soft, Solid

# Union of soft tissues: the larger thickness wins, with a smooth change-over.
UNION = 4


def add_bone(canvas: Canvas, bone: Bone, total: Map) -> None:
    """Add one bone's thickness, in mm of dense bone, to `total` (height, width)."""
    pixels = canvas.pixels(bone.outline)
    box = box_of(canvas, pixels)
    if box is None:
        return
    distance = depths(canvas, box, pixels)
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
        mask = filled_box(canvas, box, canvas.pixels(clip)).astype(np.float32)
        thick *= shrink(canvas, mask, box)
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
    box = box_of(canvas, np.concatenate((ends - reach, ends + reach)))
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
    box = box_of(canvas, pixels)
    if box is None:
        return
    if solid.rounded:
        half = max(abs(solid.thickness) / 2, 1e-3)
        amount = solid.thickness * chord(depths(canvas, box, pixels), half)
    else:
        mask = filled_box(canvas, box, pixels)
        for hole in solid.holes:
            mask &= 1 - filled_box(canvas, box, canvas.pixels(hole))
        amount = solid.thickness * shrink(canvas, mask.astype(np.float32), box)
    total[box] += np.float32(solid.density) * amount.astype(np.float32)


def cast_map(canvas: Canvas, cast: Cast, softs: list[Soft]) -> Map:
    """Line integral (height, width) of a cast around the soft tissue."""
    softs = [soft for soft in softs if soft.chain in cast.chains]
    inner = soft_thickness(canvas, softs, cast.gap)[0]
    outer = soft_thickness(canvas, softs, cast.gap + cast.thickness)[0]
    wraps = 0.5 * canvas.grain + 0.5 * canvas.fibres
    return np.float32(cast.density) * (outer - inner) * coverage(canvas, cast.region) * wraps
