"""Injuries of the skeleton: fractures, dislocations and missing parts."""

from dataclasses import replace

import numpy as np

from selftaught.phantoms.anomalies.places import (
    at,
    find_bone,
    frame,
    half_plane,
    pick_place,
    visible,
)
from selftaught.phantoms.geometry import moved_bone, moved_soft
from selftaught.phantoms.scene import Joint, Loss, Scene
from selftaught.phantoms.shapes import Array, Bone


def fracture(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """Break a bone: an irregular cut, a gap, a shift and an angle.

    Both fragments turn about their far joints, so the skeleton stays connected; the cut keeps
    the width of the shaft and has no shell.
    """
    _, bone, place = pick_place(scene, generator)
    return broken(scene, bone, place, generator, strength)


def broken(
    scene: Scene, bone: Bone, place: float, generator: np.random.Generator, strength: float
) -> Scene:
    """`fracture` of a given bone at a given place."""
    point, along, across, half = frame(bone, place)
    tilt = float(generator.uniform(-0.75, 0.75))
    upper = half_plane(bone, place, generator, tilt=tilt, beyond=False)
    teeth = len(upper) - 2
    gap = 0.5 + strength * float(generator.uniform(0.2, 0.35 * half))
    if generator.random() < 0.2:
        gap = -gap
    side = along * 3 * float(np.linalg.norm(bone.axis[-1] - bone.axis[0]))
    cut = upper[:teeth] + along * gap
    lower = np.concatenate((cut, cut[[-1]] + side, cut[[0]] + side))
    shift = strength * float(generator.uniform(0.25, 1.3)) * half
    shift *= 1.0 if generator.random() < 0.5 else -1.0
    share = float(generator.uniform(0.2, 0.8))
    pieces = []
    for clip, far, way in (
        (upper, bone.axis[0], -share * shift),
        (lower, bone.axis[-1], (1 - share) * shift),
    ):
        reach = max(float(np.linalg.norm(point - far)), 2 * half)
        angle = float(np.clip(way / reach, -0.45, 0.45))
        sign = np.sign((point - far) @ along)
        piece = replace(bone, clips=(*bone.clips, clip))
        pieces.append(moved_bone(piece, far, angle * sign, np.zeros(2)))
    if strength > 0.5 and generator.random() < 0.5:
        pieces.append(_splinter(bone, place, generator))
    return _exchange(scene, bone, pieces)


def _splinter(bone: Bone, place: float, generator: np.random.Generator) -> Bone:
    """A loose wedge beside the break."""
    point, along, across, half = frame(bone, place)
    side = 1.0 if generator.random() < 0.5 else -1.0
    corners = generator.uniform(0.7, 1.1, 4) * np.array([0.2, 1.2, 1.3, 0.3]) * half * side
    heights = np.array([-0.9, -0.7, 0.8, 1.0]) * half * generator.uniform(0.6, 1.2, 4)
    wedge = point + np.outer(corners, across) + np.outer(heights, along)
    away = across * side * half * float(generator.uniform(0.5, 1.1))
    angle = float(generator.uniform(-0.5, 0.5))
    return moved_bone(replace(bone, clips=(*bone.clips, wedge)), point, angle, away)


def _exchange(scene: Scene, bone: Bone, pieces: list[Bone]) -> Scene:
    """The scene with one bone replaced by pieces."""
    others = tuple(other for other in scene.bones if other is not bone)
    return replace(scene, bones=(*others, *pieces))


def dislocation(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """Shift and turn what lies beyond a joint."""
    joint = scene.joints[int(generator.integers(len(scene.joints)))]
    for _ in range(20):
        if joint.hinge or visible(scene, joint.pivot, 0.05):
            break
        joint = scene.joints[int(generator.integers(len(scene.joints)))]
    amount = float(np.clip(0.3 + strength * generator.uniform(0.7, 1.2), 0.3, 1.2))
    slip = joint.slip * amount
    angle = float(generator.uniform(-1, 1)) * joint.turn * strength
    if joint.hinge:
        return _swing(scene, joint, slip)
    return replace(
        scene,
        bones=tuple(
            moved_bone(bone, joint.pivot, angle, slip) if _moves(joint, bone.name) else bone
            for bone in scene.bones
        ),
        softs=tuple(
            moved_soft(soft, joint.pivot, angle, slip) if _moves(joint, soft.name) else soft
            for soft in scene.softs
        ),
    )


def _moves(joint: Joint, name: str) -> bool:
    """Whether a part belongs to the moving side."""
    return name in joint.moving or name.removeprefix("flesh_") in joint.moving


def _swing(scene: Scene, joint: Joint, slip: Array) -> Scene:
    """Turn bones about a fixed far end until the near end has slipped."""
    bones = []
    for bone in scene.bones:
        if bone.name in joint.moving:
            ends = bone.axis[[0, -1]]
            near = ends[int(np.argmax(np.linalg.norm(ends - joint.pivot, axis=1)))]
            old, new = near - joint.pivot, near + slip - joint.pivot
            angle = float(np.arctan2(new[1], new[0]) - np.arctan2(old[1], old[0]))
            bone = moved_bone(bone, joint.pivot, angle, np.zeros(2))
        bones.append(bone)
    return replace(scene, bones=tuple(bones))


def missing(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """Take a part away: a whole bone, an end or a stretch of one; soft tissue of digits too."""
    loss = scene.losses[int(generator.integers(len(scene.losses)))]
    for _ in range(20):
        if visible(scene, _middle(scene, loss), 0.0):
            break
        loss = scene.losses[int(generator.integers(len(scene.losses)))]
    if loss.names:
        return replace(
            scene,
            bones=tuple(bone for bone in scene.bones if bone.name not in loss.names),
            softs=tuple(soft for soft in scene.softs if soft.name not in loss.names),
        )
    bone = find_bone(scene, loss.bone)
    spare = (1 - strength) * (loss.high - loss.low) * 0.5
    low = loss.low + (spare if loss.low > 0 else 0.0)
    high = loss.high - (spare if loss.high < 1 else 0.0)
    pieces = []
    tilt = float(generator.uniform(-0.2, 0.2))
    if low > 0:
        clip = half_plane(bone, low, None, tilt=tilt, beyond=False)
        pieces.append(replace(bone, clips=(*bone.clips, clip)))
    if high < 1:
        clip = half_plane(bone, high, None, tilt=-tilt, beyond=True)
        pieces.append(replace(bone, clips=(*bone.clips, clip)))
    return _exchange(scene, bone, pieces)


def _middle(scene: Scene, loss: Loss) -> Array:
    """Centre (2,) of what a loss takes away, mm."""
    if loss.names:
        return find_bone(scene, loss.names[0]).axis.mean(axis=0)
    return at(find_bone(scene, loss.bone), (loss.low + loss.high) / 2)
