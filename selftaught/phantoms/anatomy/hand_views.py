"""Radiographs of the hand, a finger and the wrist."""

import numpy as np

from selftaught.phantoms.anatomy.arm import forearm_flesh, radius, ulna
from selftaught.phantoms.anatomy.building import Builder
from selftaught.phantoms.anatomy.carpus import carpal_bones, palm_flesh
from selftaught.phantoms.anatomy.person import Person
from selftaught.phantoms.anatomy.ray import finger
from selftaught.phantoms.scene import Joint, Loss, Scene, Target
from selftaught.phantoms.shapes import Bone, Soft


def draw_turn(generator: np.random.Generator, oblique: float, side: float) -> tuple[float, str]:
    """Draw a projection: mostly from the front, then oblique, then from the side."""
    chance = generator.random()
    wobble = float(generator.normal(0.0, 0.06))
    if chance < side:
        return np.pi / 2 + wobble, "lateral"
    if chance < side + oblique:
        return 0.7 + wobble * 2, "oblique"
    return wobble, "frontal"


def _hand_parts(
    build: Builder, pose: np.random.Generator, fingers: tuple[int, ...] = (1, 2, 3, 4, 5)
) -> tuple[list[Bone], list[Soft], list[Joint]]:
    """Carpus and the given rays."""
    spread = float(pose.uniform(0.7, 1.7))
    bend = abs(float(pose.normal(0.0, 6.0)))
    bones, softs, joints = carpal_bones(build), palm_flesh(build), []
    for number in fingers:
        more = finger(build, number, spread=spread, bend=bend)
        bones += more[0]
        softs += more[1]
        joints += more[2]
    return bones, softs, joints


def hand(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Whole hand with the wrist."""
    turn, view = draw_turn(pose, 0.25, 0.0)
    build = Builder(person=person, turn=turn * 0.8, shapes=shapes)
    bones, softs, joints = _hand_parts(build, pose)
    targets = tuple(
        Target(bone=f"{letter}{number}")
        for letter, numbers in (("m", "12345"), ("p", "12345"), ("q", "2345"))
        for number in numbers
    )
    tips = [Loss(names=(f"d{n}", f"flesh_d{n}")) for n in "12345"]
    more = [Loss(names=(f"d{n}", f"flesh_d{n}", f"q{n}", f"flesh_q{n}")) for n in "2345"]
    return Scene(
        window=(9 + float(pose.normal(0, 3)), 67 + float(pose.normal(0, 4)), 152, 236),
        bones=(*bones, radius(build), ulna(build)),
        softs=(*softs, *forearm_flesh(build)),
        targets=targets,
        joints=tuple(joints),
        losses=(*tips, *more, *more),
        view=view,
    )


def finger_view(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """One finger, sometimes with a neighbour."""
    turn, view = draw_turn(pose, 0.2, 0.35)
    number = int(pose.choice([1, 2, 2, 3, 3, 4, 5]))
    build = Builder(person=person, turn=turn, shapes=shapes)
    shown: tuple[int, ...] = (number,)
    if number > 1 and view == "frontal" and pose.random() < 0.5:
        shown = tuple(n for n in (number - 1, number, number + 1) if 2 <= n <= 5)
    spread = float(pose.uniform(1.0, 1.5))
    bones: list[Bone] = []
    softs: list[Soft] = []
    joints: tuple[Joint, ...] = ()
    for n in shown:
        more = finger(build, n, spread=spread, bend=abs(float(pose.normal(0, 8))))
        bones += more[0]
        softs += more[1]
        joints = tuple(more[2]) if n == number else joints
    chain = [bone for bone in bones if bone.name.endswith(str(number))]
    low, high = chain[0].axis[-1] * 0.75 + chain[0].axis[0] * 0.25, chain[-1].axis[-1]
    middle, length = (low + high) / 2, float(np.linalg.norm(high - low)) + 22
    names = [bone.name for bone in chain]
    losses = (
        Loss(names=(names[-1], f"flesh_{names[-1]}")),
        Loss(names=tuple(part for name in names[-2:] for part in (name, f"flesh_{name}"))),
    )
    return Scene(
        window=(float(middle[0]), float(middle[1]), length * 0.62, length),
        bones=tuple(bones),
        softs=tuple(softs),
        targets=tuple(Target(bone=name, low=0.3, high=0.8) for name in names[1:]),
        joints=joints,
        losses=losses,
        view=view,
    )


def wrist(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Carpus between the metacarpals and the lower forearm."""
    turn, view = draw_turn(pose, 0.2, 0.3)
    build = Builder(person=person, turn=turn, shapes=shapes)
    bones, softs, _ = _hand_parts(build, pose)
    names = tuple(bone.name for bone in bones) + tuple(soft.name for soft in softs)
    slip = np.array([18.0 if view == "lateral" else 14.0, -12.0])
    return Scene(
        window=(2 + float(pose.normal(0, 3)), 2 + float(pose.normal(0, 6)), 104, 158),
        bones=(*bones, radius(build), ulna(build)),
        softs=(*softs, *forearm_flesh(build)),
        targets=(
            Target(bone="radius", low=0.84, high=0.92),
            Target(bone="radius", low=0.78, high=0.93),
            Target(bone="ulna", low=0.82, high=0.93),
            Target(bone="scaphoid", low=0.4, high=0.6, plate=False),
        ),
        joints=(
            Joint(pivot=build.see(3, -14, 0), moving=names, slip=slip),
            Joint(pivot=build.see(3, 14, 0), moving=("lunate",), slip=np.array([13.0, -8.0])),
            Joint(
                pivot=build.see(-7, -270, -6),
                moving=("ulna",),
                slip=np.array([-15.0, 0.0]),
                hinge=True,
            ),
        ),
        losses=(
            Loss(names=("scaphoid",)),
            Loss(names=("trapezium",)),
            Loss(names=("lunate",)),
            Loss(bone="ulna", low=0.9, high=1.0),
        ),
        view=view,
    )
