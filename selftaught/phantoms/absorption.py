"""What a scene absorbs."""

from dataclasses import dataclass

import numpy as np

from selftaught.phantoms.raster import Canvas, Map
from selftaught.phantoms.scene import Scene
from selftaught.phantoms.texture import blur
from selftaught.phantoms.thickness import add_bone, add_solid, cast_map, soft_thickness

# Attenuation of muscle, fat and cortical bone near 60 keV, per mm.
MUSCLE, FAT, BONE = 0.0225, 0.0185, 0.062
BODY_FROM_MM = 0.8


@dataclass(frozen=True, kw_only=True, eq=False)
class Absorption:
    """What a scene absorbs, each (height, width).

    Attributes:
        total: line integral of everything.
        soft: line integral of the soft tissue.
        thick: thickness of the soft tissue, mm.
        bone: thickness of dense bone, mm.
    """

    total: Map
    soft: Map
    thick: Map
    bone: Map


def absorb(canvas: Canvas, scene: Scene) -> Absorption:
    """Line integral of everything in a scene."""
    softs = list(scene.softs)
    thick, lean = soft_thickness(canvas, softs)
    air = np.zeros_like(thick)
    for solid in scene.extra:
        add_solid(canvas, solid, air)
    soft = np.float32(FAT) * thick + np.float32(MUSCLE - FAT) * lean * canvas.fibres
    air = blur(air, max(3.0 * canvas.scale, 0.5))
    soft = np.maximum(soft + np.minimum(air, 0), np.float32(0.35) * soft)
    bones = np.zeros_like(soft)
    for bone in scene.bones:
        add_bone(canvas, bone, bones)
    np.maximum(bones, 0, out=bones)
    total = soft + np.float32(BONE - MUSCLE) * bones
    for solid in scene.solids:
        add_solid(canvas, solid, total)
    for cast in scene.casts:
        total += cast_map(canvas, cast, softs)
    return Absorption(total=total, soft=soft, thick=thick, bone=bones)
