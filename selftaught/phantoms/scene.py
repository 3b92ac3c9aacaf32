"""Everything one exposure sees, and where anomalies can sit in it."""

from dataclasses import dataclass

from selftaught.phantoms.shapes import Array, Bone, Cast, Soft, Solid


@dataclass(frozen=True, kw_only=True)
class Target:
    """Stretch `low`..`high` (fractions of the axis) of a bone where a lesion can sit."""

    bone: str
    low: float = 0.25
    high: float = 0.75
    plate: bool = True


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint:
    """Where a dislocation can happen.

    Attributes:
        pivot: (2,) the joint; with `hinge` the far end of the bone, which stays in place, mm.
        moving: names of the bones and soft tissues that slip.
        slip: (2,) way of a complete dislocation, mm.
        hinge: the moving bone turns about `pivot`.
        turn: largest additional turn, radians.
    """

    pivot: Array
    moving: tuple[str, ...]
    slip: Array
    hinge: bool = False
    turn: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Loss:
    """What a missing part takes away: whole parts, or a stretch of one bone's axis."""

    names: tuple[str, ...] = ()
    bone: str = ""
    low: float = 0.0
    high: float = 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Everything between tube and detector for one picture.

    Attributes:
        window: centre x, centre y, width and height of the exposed field, mm.
        bones, softs, solids, casts: what absorbs.
        targets, joints, losses: where anomalies can be put.
        view: name of the projection.
        extra: solids that every picture of the scene has (lung air).
    """

    window: tuple[float, float, float, float]
    bones: tuple[Bone, ...]
    softs: tuple[Soft, ...]
    targets: tuple[Target, ...]
    joints: tuple[Joint, ...]
    losses: tuple[Loss, ...]
    view: str
    solids: tuple[Solid, ...] = ()
    casts: tuple[Cast, ...] = ()
    extra: tuple[Solid, ...] = ()
