"""Shoulder girdle around the head of the humerus, lateral at positive x, in arm coordinates."""

import numpy as np

from selftaught.phantoms.anatomy.building import Builder, Point
from selftaught.phantoms.geometry import rounded
from selftaught.phantoms.shapes import Bone, Soft, Solid

# The centre of the humeral head in the coordinates of arm.py.
HEAD_X, HEAD_Y = -7.0, -551.0
SCAPULA: tuple[Point, ...] = (
    (-29, -18),
    (-34, -23),
    (-50, -24),
    (-62, -30),
    (-80, -45),
    (-97, -52),
    (-106, -40),
    (-108, 10),
    (-103, 60),
    (-95, 105),
    (-88, 118),
    (-80, 112),
    (-70, 84),
    (-52, 48),
    (-38, 28),
    (-31, 21),
)
GLENOID: tuple[Point, ...] = (
    (-28, -17),
    (-25, -8),
    (-26, 4),
    (-27, 15),
    (-30, 22),
    (-37, 20),
    (-44, 4),
    (-40, -14),
    (-34, -20),
)
BORDER: tuple[Point, ...] = (
    (-34, 18),
    (-38, 26),
    (-52, 46),
    (-70, 82),
    (-84, 114),
    (-90, 114),
    (-80, 88),
    (-64, 52),
    (-48, 26),
)
ACROMION: tuple[Point, ...] = (
    (-92, -34),
    (-60, -42),
    (-34, -47),
    (-8, -50),
    (10, -46),
    (20, -38),
    (19, -31),
    (4, -33),
    (-22, -37),
    (-50, -33),
    (-90, -27),
)
CORACOID: tuple[Point, ...] = (
    (-46, -30),
    (-36, -33),
    (-26, -27),
    (-17, -17),
    (-16, -9),
    (-21, -8),
    (-28, -15),
    (-38, -19),
)


def girdle(build: Builder) -> list[Bone]:
    """Scapula, clavicle and the nearest ribs."""
    center = (HEAD_X, HEAD_Y, 0.0)
    clavicle = build.tube(
        "clavicle",
        (HEAD_X - 150, HEAD_Y - 38, 0.0),
        (HEAD_X - 6, HEAD_Y - 56, 0.0),
        ((0.0, 9, 9), (0.15, 7.5, 7.5), (0.5, 6, 6), (0.8, 7, 7.5), (0.93, 9.5, 8), (1.0, 7, 6)),
        bow=8.0,
        cortex=(2.0, 0.8),
        spongy=(0.2, 0.3),
    )
    return [
        *_ribs(build),
        build.block("scapula", center, SCAPULA, half_depth=1.5, cortex=0.9, spongy=0.1, rounds=2),
        build.block("border", center, BORDER, half_depth=4.0, cortex=1.6, spongy=0.15),
        build.block("glenoid", center, GLENOID, half_depth=11, cortex=1.1, spongy=0.22),
        build.block("coracoid", center, CORACOID, half_depth=6, cortex=1.1, spongy=0.25),
        build.block("acromion", center, ACROMION, half_depth=5, cortex=1.1, spongy=0.25),
        clavicle,
    ]


def _ribs(build: Builder) -> list[Bone]:
    """Arches of the second to the sixth rib."""
    bones = []
    for number in range(5):
        top = HEAD_Y - 6 + 31 * number
        side = HEAD_X - 92 + 9 * number
        bones.append(
            build.tube(
                f"rib{number + 2}",
                (side - 100, top - 14, 0.0),
                (side, top + 26, 0.0),
                ((0.0, 5, 5), (0.5, 6, 6), (0.9, 6.5, 6.5), (1.0, 5, 5)),
                bow=14.0,
                depth=0.6,
                cortex=(0.9, 0.8),
                spongy=(0.15, 0.18),
            )
        )
    return bones


def shoulder_flesh(build: Builder) -> list[Soft]:
    """Soft tissue of the shoulder and the chest wall."""
    x, y = HEAD_X, HEAD_Y
    return [
        build.soft("deltoid", (x + 2, y + 4, 0), (x + 9, y + 90, 0), (52, 50), 0.85),
        build.soft("neck", (x - 190, y - 70, 0), (x - 18, y - 4, 0), (62, 56), 0.62),
        build.soft("chest", (x - 120, y + 40, 0), (x - 110, y + 260, 0), (108, 112), 0.5),
    ]


def lung(build: Builder) -> Solid:
    """Air of the lung beside the chest wall; its thickness is taken out of the soft tissue."""
    corners = np.array(
        [(-200, 0), (-170, -34), (-130, -26), (-100, 10), (-78, 70), (-66, 140), (-60, 330),
         (-220, 330)], dtype=np.float64
    )  # fmt: skip
    center = build.see(HEAD_X, HEAD_Y, 0.0)
    return Solid(outline=rounded(corners) + center, thickness=-42.0, density=0.019)
