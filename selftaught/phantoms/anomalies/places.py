"""Where on a bone something happens, and cuts across it."""

import numpy as np

from selftaught.phantoms.scene import Scene, Target
from selftaught.phantoms.shapes import Array, Bone


def visible(scene: Scene, point: Array, margin: float = 0.1) -> bool:
    """Whether a point (2,) in mm lies well inside the exposed field."""
    center, extent = np.array(scene.window[:2]), np.array(scene.window[2:])
    return bool(np.all(np.abs(point - center) < extent * (0.5 - margin)))


def find_bone(scene: Scene, name: str) -> Bone:
    """The bone of that name."""
    return next(bone for bone in scene.bones if bone.name == name)


def pick_place(scene: Scene, generator: np.random.Generator) -> tuple[Target, Bone, float]:
    """Draw a target, its bone and a place on its axis that the picture shows."""
    choice = (scene.targets[0], find_bone(scene, scene.targets[0].bone), 0.5)
    for _ in range(40):
        target = scene.targets[int(generator.integers(len(scene.targets)))]
        bone = find_bone(scene, target.bone)
        choice = (target, bone, float(generator.uniform(target.low, target.high)))
        if visible(scene, at(bone, choice[2])):
            break
    return choice


def at(bone: Bone, place: float) -> Array:
    """Point (2,) at a fraction of the axis, mm; beyond the ends the axis goes on straight."""
    last = len(bone.axis) - 1
    inside = float(np.clip(place, 0, 1)) * last
    low = min(int(inside), last - 1)
    point: Array = bone.axis[low] + (inside - low) * (bone.axis[low + 1] - bone.axis[low])
    return point + (place - np.clip(place, 0, 1)) * (bone.axis[-1] - bone.axis[0])


def frame(bone: Bone, place: float) -> tuple[Array, Array, Array, float]:
    """Point, direction along, direction across, and half-width at a place of the axis."""
    index = int(np.clip(round(place * (len(bone.axis) - 1)), 1, len(bone.axis) - 2))
    along = bone.axis[index + 1] - bone.axis[index - 1]
    along = along / np.linalg.norm(along)
    return at(bone, place), along, np.array([-along[1], along[0]]), float(bone.half_width[index])


def half_plane(
    bone: Bone, place: float, generator: np.random.Generator | None, *, tilt: float, beyond: bool
) -> Array:
    """Polygon that keeps one side of a cut across a bone.

    Args:
        bone: the bone.
        place: fraction of its axis.
        generator: draws the teeth of the cut; None for a saw cut.
        tilt: slope of the cut, radians.
        beyond: keep the side towards the last end of the axis.
    """
    point, along, across, half = frame(bone, place)
    far = float(np.linalg.norm(bone.axis[-1] - bone.axis[0])) + 60.0
    steps = np.concatenate(([-far], np.linspace(-1.6, 1.6, 13) * half, [far]))
    teeth = np.tan(tilt) * np.clip(steps, -2 * half, 2 * half)
    if generator is not None:
        teeth[1:-1] += half * generator.uniform(-0.22, 0.22, 13)
    cut = point + np.outer(steps, across) + np.outer(teeth, along)
    side = along * far * (3 if beyond else -3)
    return np.concatenate((cut, cut[[-1]] + side, cut[[0]] + side))


def length_of(bone: Bone) -> float:
    """Length of a bone's axis, mm."""
    return float(np.linalg.norm(bone.axis[-1] - bone.axis[0]))
