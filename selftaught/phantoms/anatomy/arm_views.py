"""Radiographs of the forearm, the elbow, the upper arm and the shoulder."""

import numpy as np

from selftaught.phantoms.anatomy.arm import (
    forearm_flesh,
    humerus,
    radius,
    ulna,
    upper_arm_flesh,
)
from selftaught.phantoms.anatomy.building import Builder
from selftaught.phantoms.anatomy.elbow import elbow_side
from selftaught.phantoms.anatomy.hand_views import _hand_parts, draw_turn
from selftaught.phantoms.anatomy.person import Person
from selftaught.phantoms.anatomy.shoulder import HEAD_X, HEAD_Y, girdle, lung, shoulder_flesh
from selftaught.phantoms.scene import Joint, Loss, Scene, Target

FOREARM_DOWN = ("radius", "ulna", "forearm")


def _radial_head(build: Builder) -> Joint:
    """The radius slips from the elbow while its lower end stays."""
    slip = np.array([25.0, 0.0])
    return Joint(pivot=build.see(9, -22, 0), moving=("radius",), slip=slip, hinge=True)


def forearm(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Both forearm bones from elbow to wrist."""
    turn, view = draw_turn(pose, 0.2, 0.3)
    build = Builder(person=person, turn=turn, shapes=shapes)
    bones, softs, _ = _hand_parts(build, pose)
    return Scene(
        window=(0 + float(pose.normal(0, 4)), -140 + float(pose.normal(0, 8)), 160, 318),
        bones=(*bones, radius(build), ulna(build), *humerus(build)),
        softs=(*softs, *forearm_flesh(build), *upper_arm_flesh(build)),
        targets=(
            Target(bone="radius", low=0.3, high=0.85),
            Target(bone="ulna", low=0.25, high=0.85),
        ),
        joints=(
            _radial_head(build),
            Joint(
                pivot=build.see(-7, -270, -6),
                moving=("ulna",),
                slip=np.array([-18.0, 0.0]),
                hinge=True,
            ),
        ),
        losses=(
            Loss(bone="ulna", low=0.88, high=1.0),
            Loss(bone="radius", low=0.0, high=0.07),
            Loss(bone="radius", low=0.45, high=0.58),
        ),
        view=view,
    )


def elbow(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Elbow from the front, or bent from the side."""
    if pose.random() < 0.5:
        return elbow_side(person, shapes, pose)
    turn = float(pose.normal(0.0, 0.08))
    build = Builder(person=person, turn=turn, shapes=shapes)
    slip = np.array([30.0, -24.0])
    return Scene(
        window=(0 + float(pose.normal(0, 5)), -258 + float(pose.normal(0, 8)), 140, 190),
        bones=(radius(build), ulna(build), *humerus(build)),
        softs=(*forearm_flesh(build), *upper_arm_flesh(build)),
        targets=(
            Target(bone="humerus", low=0.8, high=0.92),
            Target(bone="radius", low=0.06, high=0.25),
            Target(bone="ulna", low=0.15, high=0.28),
        ),
        joints=(
            Joint(pivot=build.see(0, -252, 0), moving=FOREARM_DOWN, slip=slip),
            _radial_head(build),
        ),
        losses=(
            Loss(bone="radius", low=0.0, high=0.075),
            Loss(bone="ulna", low=0.0, high=0.08),
        ),
        view="frontal",
    )


def upper_arm(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Humerus with the shoulder, the elbow, or both."""
    build = Builder(person=person, turn=float(pose.normal(0.0, 0.1)), shapes=shapes)
    choice = int(pose.integers(3))
    y, height = ((-405.0, 372.0), (-470.0, 265.0), (-345.0, 265.0))[choice]
    up = Joint(
        pivot=build.see(HEAD_X, HEAD_Y, 0),
        moving=("humerus", "fossa", *FOREARM_DOWN),
        slip=np.array([-34.0, 26.0]),
        turn=0.1,
    )
    down = Joint(pivot=build.see(0, -252, 0), moving=FOREARM_DOWN, slip=np.array([30.0, -24.0]))
    top = Loss(bone="humerus", low=0.0, high=0.12)
    middle = Loss(bone="humerus", low=0.42, high=0.52)
    bottom = Loss(bone="radius", low=0.0, high=0.075)
    stretch = ((0.15, 0.85), (0.12, 0.6), (0.35, 0.9))[choice]
    return Scene(
        window=(-8 + float(pose.normal(0, 5)), y + float(pose.normal(0, 8)), height * 0.5, height),
        bones=(*girdle(build), radius(build), ulna(build), *humerus(build)),
        softs=(*forearm_flesh(build), *upper_arm_flesh(build), *shoulder_flesh(build)),
        targets=(Target(bone="humerus", low=stretch[0], high=stretch[1]),),
        joints=((up, down), (up,), (down,))[choice],
        losses=((top, middle), (top, middle), (bottom, middle))[choice],
        view=("whole", "proximal", "distal")[choice],
        extra=(lung(build),),
    )


def shoulder(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Shoulder from the front."""
    build = Builder(person=person, turn=float(pose.normal(0.0, 0.1)), shapes=shapes)
    arm = Joint(
        pivot=build.see(HEAD_X, HEAD_Y, 0),
        moving=("humerus", "fossa"),
        slip=np.array([-42.0, 30.0]),
    )
    clavicle = Joint(
        pivot=build.see(HEAD_X - 150, HEAD_Y - 38, 0),
        moving=("clavicle",),
        slip=np.array([0.0, -28.0]),
        hinge=True,
    )
    return Scene(
        window=(
            HEAD_X - 20 + float(pose.normal(0, 6)),
            HEAD_Y + 32 + float(pose.normal(0, 6)),
            190,
            200,
        ),
        bones=(*girdle(build), *humerus(build)),
        softs=(*upper_arm_flesh(build), *shoulder_flesh(build)),
        targets=(
            Target(bone="humerus", low=0.1, high=0.3),
            Target(bone="humerus", low=0.1, high=0.16),
            Target(bone="clavicle", low=0.4, high=0.85),
        ),
        joints=(arm, arm, clavicle),
        losses=(
            Loss(bone="clavicle", low=0.86, high=1.0),
            Loss(bone="humerus", low=0.0, high=0.11),
        ),
        view="frontal",
        extra=(lung(build),),
    )
