"""Absorbing parts of a limb as plain geometry in millimetres."""

from dataclasses import dataclass

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
