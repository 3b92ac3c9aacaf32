"""The eight bones of the wrist, thumb side at positive x, and the palm."""

from selftaught.phantoms.anatomy.building import Builder, Point
from selftaught.phantoms.shapes import Bone, Soft

CARPALS: tuple[tuple[str, tuple[float, float, float], float, tuple[Point, ...]], ...] = (
    (
        "scaphoid",
        (14.5, -3.5, 4.0),
        0.9,
        (
            (-8.5, -6),
            (-4, -9.5),
            (2, -8),
            (5, -3),
            (8, 3),
            (8.5, 9),
            (4, 11),
            (-1, 7),
            (-3.5, 2),
            (-7, -1),
        ),
    ),
    (
        "lunate",
        (0.5, -8.0, 0.0),
        1.1,
        ((-9, -3), (-5, -8.5), (3, -8.5), (8, -4), (7.5, 4), (4, 6.5), (0, 4), (-5, 7), (-9.5, 3)),
    ),
    (
        "triquetrum",
        (-12.5, -4.0, -4.0),
        1.0,
        ((-8, -1), (-3, -8), (5, -7), (7, 1), (4, 7), (-6, 6)),
    ),
    (
        "pisiform",
        (-14.0, -5.5, 12.0),
        1.0,
        ((-5, -2), (-1, -5.5), (4, -4.5), (5.5, 1), (1.5, 6), (-4, 4.5)),
    ),
    (
        "trapezium",
        (22.5, 5.0, 8.0),
        1.0,
        ((-8, -3), (-3, -8), (5, -7.5), (10, -1), (7.5, 5), (1, 8), (-6, 6)),
    ),
    (
        "trapezoid",
        (13.5, 11.5, -2.0),
        1.2,
        ((-5.5, -5), (0, -7), (6, -5), (8, 4), (4, 8), (-5, 7.5)),
    ),
    (
        "capitate",
        (3.0, 6.5, 0.0),
        1.2,
        (
            (-6, -8),
            (-2.5, -13),
            (4, -13),
            (7, -7),
            (5.5, -1),
            (8.5, 6),
            (8.5, 13),
            (-6, 13.5),
            (-7, 3),
        ),
    ),
    (
        "hamate",
        (-9.0, 6.5, 1.0),
        1.1,
        ((2, -14), (5, -9), (4.5, 3), (6.5, 10), (1, 12.5), (-10, 10), (-10.5, 3), (-4, -6)),
    ),
)


def carpal_bones(build: Builder) -> list[Bone]:
    """The eight bones of the wrist."""
    bones = [
        build.block(
            name,
            center,
            corners,
            side=side,
            half_depth=3.5 if name == "pisiform" else 6.0,
            cortex=0.7,
            spongy=0.34,
        )
        for name, center, side, corners in CARPALS
    ]
    hook = ((-2.6, -2.0), (0.0, -3.4), (2.6, -1.8), (2.4, 2.4), (-2.2, 2.4))
    bones.append(build.block("hamate_hook", (-10.0, 9.0, 10.0), hook, side=1.6, half_depth=2.2))
    return bones


def palm_flesh(build: Builder) -> list[Soft]:
    """Muscles of the palm and the wrist."""
    return [
        build.soft("palm_thenar", (16, 2, 11), (28, 24, 12), (17, 12), 1.0),
        build.soft("palm_web", (18, 16, 6), (24, 44, 4), (12, 4), 0.6),
        build.soft("palm_hypothenar", (-14, 0, 8), (-24, 50, 8), (15, 13), 1.0),
        build.soft("palm_middle", (0, 8, 3), (0, 66, 3), (24, 30), 0.5),
        build.soft("palm_carpus", (3, -18, 2), (2, 12, 2), (26, 27), 0.72),
    ]
