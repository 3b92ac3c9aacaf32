"""How one person's bones are built: tubes with flared ends, and compact blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from selftaught.phantoms.anatomy.person import Person
from selftaught.phantoms.geometry import rounded
from selftaught.phantoms.shapes import STATIONS, Array, Bone, Soft

# A point (x, y, z) in mm.
Place = Sequence[float] | Array
Row = tuple[float, float, float]
Point = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Builder:
    """Builds bones of `person` seen from a direction turned by `turn` radians.

    Coordinates are (x, y, z) in mm: x to the thumb side, y along the limb, z along the beam
    when `turn` is 0.
    """

    person: Person
    turn: float
    shapes: np.random.Generator

    def see(self, *point: float) -> Array:
        """Project one (x, y, z) point, mm -> (2,)."""
        x, y, z = point
        return np.array([x * np.cos(self.turn) + z * np.sin(self.turn), y])

    def flatten(self, width: float, depth: float) -> float:
        """Half-extent across the view of something with half-extents `width` and `depth`."""
        return float(np.hypot(width * np.cos(self.turn), depth * np.sin(self.turn)))

    def soft(
        self,
        name: str,
        start: Place,
        end: Place,
        radii: tuple[float, float],
        depth: float = 1.0,
        chain: str = "",
    ) -> Soft:
        """A capsule of soft tissue between two (x, y, z) points; `depth` = z / x extent."""
        girth = self.person.girth
        seen = self.flatten(1.0, depth)
        through = float(np.hypot(np.sin(self.turn), depth * np.cos(self.turn)))
        return Soft(
            name=name,
            chain=chain or name,
            start=self.see(*start),
            end=self.see(*end),
            radii=(radii[0] * girth * seen, radii[1] * girth * seen),
            depth=through / seen,
            fat=min(self.person.fat, 0.22 * min(radii)),
        )

    def tube(
        self,
        name: str,
        start: Place,
        end: Place,
        rows: Sequence[Row],
        *,
        first: Sequence[Point] = (),
        last: Sequence[Point] = (),
        depth: float = 1.0,
        bow: float = 0.0,
        cortex: tuple[float, float] = (2.2, 0.8),
        spongy: tuple[float, float] = (0.05, 0.28),
    ) -> Bone:
        """A long bone.

        Args:
            name: name inside the scene.
            start: first end of the axis, (x, y, z) mm.
            end: last end of the axis, (x, y, z) mm.
            rows: (fraction of the axis, half-width at smaller x, half-width at larger x), mm;
                seen with the axis along y.
            first: (mm beyond the first end, x mm) of its joint surface, small x to large x.
            last: (mm beyond the last end, x mm) of its joint surface, large x to small x.
            depth: z-extent divided by x-extent.
            bow: deviation of the middle of the axis towards larger x, mm.
            cortex: thickness of the shell in mid-shaft and at the ends, mm.
            spongy: density of the inside in mid-shaft and at the ends.
        """
        person = self.person
        table = np.array(rows, dtype=np.float64)
        table[:, 1:] *= person.robust * self.shapes.normal(1.0, 0.03, (len(rows), 2))
        fractions = np.linspace(0, 1, STATIONS)
        left, right = (np.interp(fractions, table[:, 0], table[:, side]) for side in (1, 2))
        squeeze = self.flatten(1.0, depth)
        begin, finish = self.see(*start), self.see(*end)
        length = float(np.linalg.norm(finish - begin))
        along = (finish - begin) / length
        across = np.array([along[1], -along[0]])
        if across[0] < 0 or (abs(across[0]) < 1e-6 and across[1] > 0):
            across = -across
        bent = bow * np.cos(self.turn) * 4 * fractions * (1 - fractions)
        spine = begin + np.outer(fractions * length, along) + np.outer(bent, across)
        corners = _corners(table, first, last, length, person.robust)
        offsets = np.interp(corners[:, 0], fractions, bent) + corners[:, 1] * squeeze
        outline = begin + np.outer(corners[:, 0] * length, along) + np.outer(offsets, across)
        middle = np.clip(1 - (2 * fractions - 1) ** 4 * 1.05, 0, 1) ** 1.5
        half = (left + right) / 2
        through = float(np.hypot(np.sin(self.turn), depth * np.cos(self.turn)))
        shell = cortex[1] + (cortex[0] - cortex[1]) * middle
        return Bone(
            name=name,
            outline=rounded(outline),
            axis=spine + np.outer((right - left) / 2 * squeeze, across),
            half_width=half * squeeze,
            half_depth=half * through,
            cortex=shell * person.cortex,
            spongy=(spongy[1] + (spongy[0] - spongy[1]) * middle) * person.density,
        )

    def block(
        self,
        name: str,
        center: Sequence[float],
        corners: Sequence[Point],
        *,
        side: float = 1.0,
        half_depth: float = 7.0,
        cortex: float = 0.7,
        spongy: float = 0.3,
        weight: float = 1.0,
        rounds: int = 3,
    ) -> Bone:
        """A compact or flat bone from a polygon.

        Args:
            name: name inside the scene.
            center: (x, y, z), mm.
            corners: (x, y) around the centre, mm.
            side: extent seen from the side divided by the extent seen from the front.
            half_depth: half of its extent along the beam, mm.
            cortex: thickness of the shell, mm.
            spongy: density of the inside.
            weight: factor on the thickness; negative for a hollow.
            rounds: how often the corners are cut.
        """
        points = np.array(corners, dtype=np.float64)
        points *= self.shapes.normal(1.0, 0.025, points.shape) * self.person.robust
        points[:, 0] *= self.flatten(1.0, side)
        points += self.see(*center)
        middle = points.mean(axis=0)
        main = np.linalg.svd(points - middle, full_matrices=False)[2][0]
        reach = (points - middle) @ main
        steps = np.linspace(reach.min(), reach.max(), STATIONS)
        even = np.ones(STATIONS)
        loop = np.concatenate((points, points[:1]))
        steps_xy = np.diff(loop, axis=0)
        area = abs(float(np.sum(loop[:-1, 0] * loop[1:, 1] - loop[1:, 0] * loop[:-1, 1]))) / 2
        # Between a disc (twice area / rim) and a long band (once area / rim).
        width = 1.4 * area / float(np.linalg.norm(steps_xy, axis=1).sum())
        return Bone(
            name=name,
            outline=rounded(points, rounds),
            axis=middle + np.outer(steps, main),
            half_width=even * width,
            half_depth=even * half_depth,
            cortex=even * cortex * self.person.cortex,
            spongy=even * spongy * self.person.density,
            weight=weight,
        )


def _corners(
    table: Array, first: Sequence[Point], last: Sequence[Point], length: float, robust: float
) -> Array:
    """Outline corners (fraction of the axis, x mm), clockwise from the first end."""
    start = [(-beyond / length, x * robust) for beyond, x in first]
    finish = [(1 + beyond / length, x * robust) for beyond, x in last]
    right = [(row[0], row[2]) for row in table]
    left = [(row[0], -row[1]) for row in table[::-1]]
    return np.array(start + right + finish + left, dtype=np.float64)
