"""Seven body parts: which bones, seen from where, and where anomalies can sit."""

from collections.abc import Callable

import numpy as np

from selftaught.data.synthetic.arm import (
    forearm_flesh,
    humerus,
    radius,
    ulna,
    upper_arm_flesh,
)
from selftaught.data.synthetic.building import Builder, Person
from selftaught.data.synthetic.elbow import elbow_side
from selftaught.data.synthetic.hand import carpal_bones, finger, palm_flesh
from selftaught.data.synthetic.shapes import Bone, Joint, Loss, Scene, Soft, Target
from selftaught.data.synthetic.shoulder import (
    HEAD_X,
    HEAD_Y,
    girdle,
    lung,
    shoulder_flesh,
)

BODY_PARTS = ("elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist")
FOREARM_DOWN = ("radius", "ulna", "forearm")


def _turn(generator: np.random.Generator, oblique: float, side: float) -> tuple[float, str]:
    """Draw a projection: mostly from the front, then oblique, then from the side."""
    chance = generator.random()
    wobble = float(generator.normal(0.0, 0.06))
    if chance < side:
        return np.pi / 2 + wobble, "lateral"
    if chance < side + oblique:
        return 0.7 + wobble * 2, "oblique"
    return wobble, "frontal"


def _radial_head(build: Builder) -> Joint:
    """The radius slips from the elbow while its lower end stays."""
    slip = np.array([18.0, 0.0])
    return Joint(pivot=build.see(9, -22, 0), moving=("radius",), slip=slip, hinge=True)


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
    turn, view = _turn(pose, 0.25, 0.0)
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
    turn, view = _turn(pose, 0.2, 0.35)
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
    turn, view = _turn(pose, 0.2, 0.3)
    build = Builder(person=person, turn=turn, shapes=shapes)
    bones, softs, _ = _hand_parts(build, pose)
    names = tuple(bone.name for bone in bones) + tuple(soft.name for soft in softs)
    slip = np.array([14.0 if view == "lateral" else 9.0, -9.0])
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
            Joint(pivot=build.see(3, 14, 0), moving=("lunate",), slip=np.array([10.0, -6.0])),
            Joint(
                pivot=build.see(-7, -270, -6),
                moving=("ulna",),
                slip=np.array([-11.0, 0.0]),
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


def forearm(person: Person, shapes: np.random.Generator, pose: np.random.Generator) -> Scene:
    """Both forearm bones from elbow to wrist."""
    turn, view = _turn(pose, 0.2, 0.3)
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
                slip=np.array([-13.0, 0.0]),
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
    slip = np.array([22.0, -20.0])
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
        slip=np.array([-26.0, 22.0]),
        turn=0.1,
    )
    down = Joint(pivot=build.see(0, -252, 0), moving=FOREARM_DOWN, slip=np.array([22.0, -20.0]))
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
        slip=np.array([-32.0, 26.0]),
    )
    clavicle = Joint(
        pivot=build.see(HEAD_X - 150, HEAD_Y - 38, 0),
        moving=("clavicle",),
        slip=np.array([0.0, -20.0]),
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


SCENES: dict[str, Callable[[Person, np.random.Generator, np.random.Generator], Scene]] = {
    "elbow": elbow,
    "finger": finger_view,
    "forearm": forearm,
    "hand": hand,
    "humerus": upper_arm,
    "shoulder": shoulder,
    "wrist": wrist,
}
# Parts whose fingers or forearm point up on the film; the others hang down.
UPWARDS = ("finger", "forearm", "hand", "wrist")
