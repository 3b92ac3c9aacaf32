"""Long bones of the arm in one straight line: wrist near y = -15 mm, elbow y = -250 mm."""

from selftaught.phantoms.anatomy.building import Builder, Row
from selftaught.phantoms.shapes import Bone, Soft

RADIUS: tuple[Row, ...] = (
    (0.0, 10.0, 10.0),
    (0.03, 11.2, 11.2),
    (0.05, 10.6, 10.6),
    (0.075, 7.2, 7.2),
    (0.12, 8.8, 6.4),
    (0.16, 9.6, 6.4),
    (0.21, 7.4, 6.8),
    (0.5, 7.4, 7.2),
    (0.72, 7.4, 7.2),
    (0.84, 8.4, 8.4),
    (0.9, 11.0, 11.0),
    (0.945, 14.8, 14.2),
    (0.985, 16.0, 15.8),
)
ULNA: tuple[Row, ...] = (
    (0.012, 8.5, 8.0),
    (0.03, 11.0, 10.0),
    (0.075, 13.5, 12.5),
    (0.1, 12.5, 12.0),
    (0.15, 9.0, 9.6),
    (0.25, 7.4, 7.6),
    (0.6, 6.3, 6.3),
    (0.88, 5.2, 5.2),
    (0.94, 6.3, 6.6),
    (0.975, 8.2, 8.4),
    (0.99, 8.2, 8.6),
)
HUMERUS: tuple[Row, ...] = (
    (0.045, 31.0, 24.5),
    (0.085, 27.5, 24.0),
    (0.12, 21.5, 21.0),
    (0.165, 16.5, 16.5),
    (0.21, 14.0, 14.2),
    (0.28, 12.6, 12.6),
    (0.5, 11.0, 11.0),
    (0.7, 11.0, 11.2),
    (0.82, 13.5, 13.0),
    (0.89, 20.0, 18.5),
    (0.935, 29.0, 25.0),
    (0.955, 33.5, 28.0),
    (0.97, 31.0, 26.5),
    (0.982, 24.0, 24.5),
)
HEAD = (
    (2.0, -29.0),
    (9.0, -21.0),
    (12.0, -10.0),
    (9.0, 2.0),
    (3.0, 8.5),
    (2.5, 15.0),
    (-4.0, 23.0),
)
CONDYLES = (
    (0.0, 22.0),
    (4.0, 14.0),
    (2.0, 7.0),
    (-1.0, 3.0),
    (3.5, -4.0),
    (1.0, -10.0),
    (6.5, -17.0),
    (2.0, -22.5),
)


def radius(build: Builder) -> Bone:
    """Thumb-side bone of the forearm."""
    styloid = ((3.0, 16.2), (8.5, 14.5), (8.0, 11.0), (2.5, 4.0), (0.0, -5.0), (-1.0, -14.0))
    return build.tube(
        "radius",
        (13.5, -253.0, 0.0),
        (8.0, -20.0, 0.0),
        RADIUS,
        first=((0.0, -8.0), (-1.4, 0.0), (0.0, 8.0)),
        last=styloid,
        depth=0.85,
        bow=8.0,
        cortex=(2.9, 0.8),
        spongy=(0.04, 0.3),
    )


def ulna(build: Builder) -> Bone:
    """Little-finger-side bone of the forearm."""
    styloid = ((1.5, 6.5), (2.5, 2.0), (0.0, -3.0), (4.5, -5.0), (6.0, -7.0), (0.0, -8.0))
    return build.tube(
        "ulna",
        (-7.0, -274.0, -6.0),
        (-15.5, -22.0, -4.0),
        ULNA,
        first=((0.0, -7.0), (2.5, 0.0), (0.0, 7.0)),
        last=styloid,
        depth=0.85,
        bow=-2.0,
        cortex=(2.8, 0.8),
        spongy=(0.04, 0.2),
    )


def humerus(build: Builder) -> list[Bone]:
    """Upper-arm bone with the fossa above its trochlea."""
    shaft = build.tube(
        "humerus",
        (2.0, -562.0, 0.0),
        (1.0, -258.0, 0.0),
        HUMERUS,
        first=HEAD,
        last=CONDYLES,
        depth=0.8,
        bow=-2.0,
        cortex=(3.6, 0.8),
        spongy=(0.04, 0.22),
    )
    fossa = build.block(
        "fossa",
        (-5.0, -275.0, 0.0),
        ((-11, 0), (-8, -8), (0, -11), (8, -8), (12, 0), (9, 7), (0, 9), (-9, 7)),
        half_depth=6.0,
        cortex=0.4,
        spongy=0.45,
        weight=-0.9,
    )
    return [shaft, fossa]


def forearm_flesh(build: Builder) -> list[Soft]:
    """Soft tissue from the elbow to the wrist."""
    return [
        build.soft("forearm", (14, -245, 0), (15, -150, 2), (33, 30), 0.9, "radial"),
        build.soft("forearm", (15, -150, 2), (10, -12, 1), (30, 19), 0.9, "radial"),
        build.soft("forearm", (-13, -245, 2), (-10, -150, 3), (31, 29), 0.9, "ulnar"),
        build.soft("forearm", (-10, -150, 3), (-8, -12, 1), (29, 19), 0.9, "ulnar"),
    ]


def upper_arm_flesh(build: Builder) -> list[Soft]:
    """Soft tissue from the shoulder to the elbow."""
    return [
        build.soft("upper_arm", (0, -540, 0), (2, -400, 0), (52, 47), 0.95),
        build.soft("upper_arm", (2, -400, 0), (2, -290, 0), (47, 42), 0.9),
        build.soft("upper_arm", (2, -290, 0), (1, -232, 0), (42, 41), 0.85),
    ]
