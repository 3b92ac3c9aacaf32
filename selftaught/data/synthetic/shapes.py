"""Parts of a radiographed limb as plain geometry in millimetres."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
STATIONS = 129


@dataclass(frozen=True, kw_only=True, eq=False)
class Bone:
    """A closed outline filled with a cortical shell around spongy bone.

    Attributes:
        name: unique inside a scene.
        outline: (N, 2) corners, mm.
        axis: (STATIONS, 2) centre line from the first end to the last, mm.
        half_width: (STATIONS,) half of the visible width along the axis, mm.
        half_depth: (STATIONS,) half of the extent along the beam, mm.
        cortex: (STATIONS,) thickness of the shell, mm.
        spongy: (STATIONS,) density of the inside, 1 = as dense as the shell.
        weight: factor on the thickness; negative for a hollow (fossa).
        clips: polygons (M, 2), mm; the bone exists only inside all of them.
    """

    name: str
    outline: Array
    axis: Array
    half_width: Array
    half_depth: Array
    cortex: Array
    spongy: Array
    weight: float = 1.0
    clips: tuple[Array, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Soft:
    """A tapered capsule of soft tissue with a rim of fat.

    Attributes:
        name: group that moves or disappears together.
        chain: capsules of one chain meet end to end; the thickest wins without a seam.
        start: (2,) centre of the first end, mm.
        end: (2,) centre of the last end, mm.
        radii: half-widths at both ends, mm.
        depth: extent along the beam divided by the width.
        fat: thickness of the rim, mm.
    """

    name: str
    chain: str
    start: Array
    end: Array
    radii: tuple[float, float]
    depth: float = 1.0
    fat: float = 3.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Solid:
    """A piece of metal, glass or lead, or (negative thickness) a pocket of air.

    Attributes:
        outline: (N, 2) corners, mm.
        thickness: extent along the beam, mm.
        density: attenuation of one mm.
        rounded: a rod (thickness falls to zero at the rim) instead of a plate.
        holes: outlines left free.
    """

    outline: Array
    thickness: float
    density: float
    rounded: bool = False
    holes: tuple[Array, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Cast:
    """A shell around soft tissue.

    Attributes:
        gap: distance from the skin, mm.
        thickness: of the shell, mm.
        density: attenuation of one mm.
        region: outline of the covered field, mm.
        chains: the soft tissues it wraps.
    """

    gap: float
    thickness: float
    density: float
    region: Array
    chains: tuple[str, ...]


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


def rounded(corners: Array, rounds: int = 3) -> Array:
    """Cut the corners of a closed polygon `rounds` times (quadratic spline), (N, 2) -> (M, 2)."""
    for _ in range(rounds):
        following = np.roll(corners, -1, axis=0)
        corners = np.stack(
            (0.75 * corners + 0.25 * following, 0.25 * corners + 0.75 * following), axis=1
        ).reshape(-1, 2)
    return corners


def rotation(angle: float) -> Array:
    """(2, 2) matrix that turns column vectors by `angle` radians."""
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def moved(points: Array, pivot: Array, angle: float, shift: Array) -> Array:
    """Turn (N, 2) points around `pivot`, then shift them."""
    return (points - pivot) @ rotation(angle).T + pivot + shift


def moved_bone(bone: Bone, pivot: Array, angle: float, shift: Array) -> Bone:
    """A bone turned and shifted as a rigid body."""
    return replace(
        bone,
        outline=moved(bone.outline, pivot, angle, shift),
        axis=moved(bone.axis, pivot, angle, shift),
        clips=tuple(moved(clip, pivot, angle, shift) for clip in bone.clips),
    )


def moved_soft(soft: Soft, pivot: Array, angle: float, shift: Array) -> Soft:
    """Soft tissue turned and shifted as a rigid body."""
    start, end = moved(np.stack((soft.start, soft.end)), pivot, angle, shift)
    return replace(soft, start=start, end=end)


def strip(points: Array, half_width: float) -> Array:
    """Outline (2N, 2) of a band of constant width along a polyline (N, 2), mm."""
    along = np.gradient(points, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack((-along[:, 1], along[:, 0]), axis=1) * half_width
    return np.concatenate((points + across, (points - across)[::-1]))


def disc(center: Array, radius: float, corners: int = 20) -> Array:
    """Outline (corners, 2) of a disc, mm."""
    turns = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return center + radius * np.stack((np.cos(turns), np.sin(turns)), axis=1)
