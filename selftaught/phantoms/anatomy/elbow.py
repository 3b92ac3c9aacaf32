"""The bent elbow from the side: joint centre at the origin, forearm towards positive x."""

import numpy as np

from selftaught.phantoms.anatomy.building import Builder, Point
from selftaught.phantoms.anatomy.person import Person
from selftaught.phantoms.scene import Joint, Loss, Scene, Target

ULNA_SIDE: tuple[Point, ...] = (
    (-12, -21),
    (-8.5, -17),
    (-11.5, -9),
    (-12.5, 0),
    (-9, 9),
    (-1, 13.5),
    (7, 12.5),
    (12, 8),
    (16.5, 9),
    (19, 15),
    (32, 18),
    (60, 19),
    (130, 19),
    (230, 16),
    (230, 30),
    (130, 34),
    (70, 35.5),
    (30, 35),
    (4, 34),
    (-12, 29),
    (-21, 18),
    (-24.5, 2),
    (-24, -12),
    (-19, -20),
)


def elbow_side(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Lateral view, bent by about a right angle."""
    build = Builder(person=person, turn=0.0, shapes=shapes)
    upper = build.tube(
        "humerus",
        (float(pose.normal(-4, 12)), -240, 0),
        (0.0, 3.0, 0),
        (
            (0.0, 10.5, 10.5),
            (0.5, 10.5, 10.5),
            (0.75, 10, 10.5),
            (0.88, 8.5, 9.5),
            (0.93, 9.5, 10.5),
            (0.965, 11, 12.5),
            (0.99, 9.5, 12),
        ),
        last=((5.0, 8.0), (7.5, 2.0), (5.0, -5.0)),
        depth=1.2,
        cortex=(3.4, 0.9),
        spongy=(0.05, 0.25),
    )
    ring = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    wheel = [(float(11.2 * np.cos(t)), float(11.2 * np.sin(t))) for t in ring]
    trochlea = build.block("trochlea", (2.5, 0.5, 0), wheel, half_depth=8.5, cortex=1.1, spongy=0.2)
    fossa = build.block(
        "fossa",
        (0.0, -17.0, 0),
        ((-4.5, 0), (-2, -6), (2.5, -6), (5, 0), (2.5, 5), (-2, 5)),
        half_depth=4,
        cortex=0.5,
        spongy=0.5,
        weight=-0.6,
    )
    ulna = build.block("ulna", (0, 0, 0), ULNA_SIDE, half_depth=8.5, cortex=2.0, spongy=0.14)
    radius = build.tube(
        "radius",
        (17.0, 4.0, 0),
        (235.0, 4.0, 0),
        (
            (0.0, 10, 10),
            (0.03, 11, 11),
            (0.055, 10, 10),
            (0.085, 7.2, 7.0),
            (0.14, 9.0, 7.0),
            (0.2, 7.5, 7.0),
            (1.0, 7.2, 7.2),
        ),
        first=((0.0, -8.0), (-1.6, 0.0), (0.0, 8.0)),
        cortex=(2.6, 0.8),
        spongy=(0.05, 0.28),
    )
    softs = (
        build.soft("upper_arm", (-2, -240, 0), (-2, -40, 0), (50, 41), 0.9),
        build.soft("upper_arm", (-2, -40, 0), (2, 6, 0), (41, 35), 0.85),
        build.soft("forearm", (0, 8, 0), (50, 14, 0), (34, 39), 0.85),
        build.soft("forearm", (50, 14, 0), (240, 16, 0), (39, 30), 0.9),
    )
    bent = np.array([-32.0, -16.0])
    return Scene(
        window=(34 + float(pose.normal(0, 6)), -22 + float(pose.normal(0, 6)), 176, 170),
        bones=(upper, fossa, trochlea, ulna, radius),
        softs=softs,
        targets=(
            Target(bone="humerus", low=0.72, high=0.92),
            Target(bone="radius", low=0.07, high=0.35),
            Target(bone="ulna", low=0.12, high=0.45),
        ),
        joints=(
            Joint(pivot=np.zeros(2), moving=("ulna", "radius", "forearm"), slip=bent),
            Joint(
                pivot=np.array([235.0, 4.0]),
                moving=("radius",),
                slip=np.array([0.0, -24.0]),
                hinge=True,
            ),
        ),
        losses=(
            Loss(bone="radius", low=0.0, high=0.085),
            Loss(bone="ulna", low=0.0, high=0.1),
        ),
        view="lateral",
    )
