"""Five rays of the hand: metacarpals, phalanges and their soft tissue."""

from dataclasses import dataclass

import numpy as np

from selftaught.phantoms.anatomy.building import Builder, Point, Row
from selftaught.phantoms.scene import Joint
from selftaught.phantoms.shapes import Array, Bone, Soft


@dataclass(frozen=True, kw_only=True)
class Ray:
    """One finger with its metacarpal: base (x, y, z), angles in degrees, lengths in mm."""

    base: tuple[float, float, float]
    palm_angle: float
    finger_angle: float
    lengths: tuple[float, ...]
    width: float


RAYS = (
    Ray(
        base=(24.0, 9.0, 9.0),
        palm_angle=36.0,
        finger_angle=26.0,
        lengths=(45.0, 31.0, 22.5),
        width=1.08,
    ),
    Ray(
        base=(13.5, 20.0, 0.0),
        palm_angle=7.0,
        finger_angle=7.0,
        lengths=(67.0, 40.0, 23.0, 16.5),
        width=1.0,
    ),
    Ray(
        base=(3.0, 20.0, -1.0),
        palm_angle=1.0,
        finger_angle=1.0,
        lengths=(64.0, 44.0, 27.5, 17.5),
        width=1.02,
    ),
    Ray(
        base=(-6.5, 18.5, -1.0),
        palm_angle=-6.0,
        finger_angle=-5.0,
        lengths=(57.0, 41.0, 26.0, 17.5),
        width=0.94,
    ),
    Ray(
        base=(-14.5, 15.0, 0.5),
        palm_angle=-13.0,
        finger_angle=-14.0,
        lengths=(53.0, 32.5, 18.5, 16.0),
        width=0.86,
    ),
)
METACARPAL: tuple[Row, ...] = (
    (0.0, 6.2, 6.2),
    (0.06, 7.3, 7.3),
    (0.14, 6.4, 6.4),
    (0.28, 4.9, 4.9),
    (0.5, 4.3, 4.3),
    (0.7, 4.8, 4.8),
    (0.82, 6.4, 6.4),
    (0.9, 8.2, 8.2),
    (0.96, 7.8, 7.8),
    (1.0, 5.0, 5.0),
)
PHALANX: tuple[Row, ...] = (
    (0.0, 7.2, 7.2),
    (0.05, 8.2, 8.2),
    (0.14, 6.8, 6.8),
    (0.3, 5.0, 5.0),
    (0.55, 4.4, 4.4),
    (0.75, 4.4, 4.4),
    (0.87, 5.5, 5.5),
    (0.95, 6.0, 6.0),
    (1.0, 5.2, 5.2),
)
TIP: tuple[Row, ...] = (
    (0.0, 5.6, 5.6),
    (0.08, 6.4, 6.4),
    (0.2, 5.0, 5.0),
    (0.42, 2.9, 2.9),
    (0.65, 2.6, 2.6),
    (0.78, 3.6, 3.6),
    (0.9, 4.4, 4.4),
    (1.0, 3.4, 3.4),
)


def _direction(angle: float, bend: float) -> Array:
    """Unit (x, y, z) of a bone at `angle` from the limb, bent by `bend` to the palm, degrees."""
    sideways, forward = np.radians(angle), np.radians(bend)
    return np.array(
        [np.sin(sideways) * np.cos(forward), np.cos(sideways) * np.cos(forward), np.sin(forward)]
    )


def finger(
    build: Builder, number: int, *, spread: float, bend: float
) -> tuple[list[Bone], list[Soft], list[Joint]]:
    """One ray.

    Args:
        build: how this person's bones look from here.
        number: 1 (thumb) to 5.
        spread: factor on the angles between the fingers.
        bend: flexion of each finger joint, degrees.

    Returns:
        Its bones (metacarpal first), soft tissue and joints.
    """
    ray = RAYS[number - 1]
    jitter = build.shapes
    bones: list[Bone] = []
    softs: list[Soft] = []
    joints: list[Joint] = []
    point = np.array(ray.base)
    rows = [METACARPAL] + [PHALANX] * (len(ray.lengths) - 2) + [TIP]
    angle, lean = ray.palm_angle, 4.0 if number > 1 else 12.0
    for step, (length, table) in enumerate(zip(ray.lengths, rows, strict=True)):
        if step:
            angle = ray.finger_angle * spread + float(jitter.normal(0, 1.5))
            lean += bend * (0.7 if number == 1 else 1.0)
        length *= float(jitter.normal(1.0, 0.015))
        end = point + _direction(angle, lean) * length
        name = f"{'mpqd'[step if step < len(ray.lengths) - 1 else 3]}{number}"
        shrink = ray.width * (1.0, 1.0, 0.9)[min(step, 2)]
        scaled = [(s, left * shrink, right * shrink) for s, left, right in table]
        bones.append(_segment(build, name, point, end, scaled, last=table is TIP))
        softs.append(_flesh(build, name, point, end, step, ray.width, last=table is TIP))
        if step:
            moving = tuple(f"{letter}{number}" for letter in "mpqd"[step:])
            side = np.array([1.0 if jitter.random() < 0.5 else -1.0, 0.0])
            slip = side * 9.0 + np.array([0.0, -6.0])
            joints.append(Joint(pivot=build.see(*point), moving=moving, slip=slip))
        point = end + _direction(angle, lean) * (1.3 if step else 1.0)
    return bones, softs, joints


def _segment(
    build: Builder, name: str, start: Array, end: Array, rows: list[Row], *, last: bool
) -> Bone:
    """A metacarpal or phalanx: concave base, head with two knuckles."""
    base, head = rows[0][1], rows[-1][1]
    knuckle = 0.4 if name[0] != "m" else 2.2
    surface: tuple[Point, ...] = (
        (knuckle * 0.4, head * 0.7),
        (-0.6 if name[0] != "m" else knuckle, 0.0),
        (knuckle * 0.4, -head * 0.7),
    )
    if last:
        surface = ((0.9, head * 0.5), (1.3, 0.0), (0.9, -head * 0.5))
    return build.tube(
        name,
        start,
        end,
        rows,
        first=((0.2, -base * 0.75), (-1.2, 0.0), (0.2, base * 0.75)),
        last=surface,
        depth=0.85,
        cortex=(1.5, 0.45) if not last else (0.9, 0.4),
        spongy=(0.1, 0.34),
    )


def _flesh(
    build: Builder, name: str, start: Array, end: Array, step: int, width: float, *, last: bool
) -> Soft:
    """Soft tissue around one segment."""
    chain = f"ray{name[1]}"
    if step == 0:
        return build.soft(f"palm_{name}", start, end, (13.5, 11.5), 1.0, chain)
    if name == "p1":
        return build.soft(f"flesh_{name}", start, end, (12.0, 10.5), 0.95, chain)
    radii = ((10.8, 9.6), (9.4, 8.4), (8.3, 7.2))[min(step - 1, 2)]
    if last:
        radii, end = (8.3, 7.0), end + (end - start) * 0.1
    widths = (radii[0] * width, radii[1] * width)
    return build.soft(f"flesh_{name}", start, end, widths, 0.95, chain)
