"""The seven kinds of anomaly, by name."""

from collections.abc import Callable

import numpy as np

from selftaught.data.synthetic.hardware import cast, foreign, plate, wire
from selftaught.data.synthetic.injuries import dislocation, fracture, missing
from selftaught.data.synthetic.shapes import Scene

Change = Callable[[Scene, np.random.Generator, float], Scene]
CHANGES: dict[str, Change] = {
    "plate": plate,
    "wire": wire,
    "cast": cast,
    "fracture": fracture,
    "dislocation": dislocation,
    "missing": missing,
    "foreign": foreign,
}
KINDS = tuple(CHANGES)
# How often each kind is drawn; in clinical series hardware and fractures lead.
SHARES = (0.22, 0.12, 0.12, 0.24, 0.14, 0.08, 0.08)


def draw_kind(generator: np.random.Generator) -> str:
    """Draw one kind of anomaly."""
    return KINDS[int(generator.choice(len(KINDS), p=SHARES))]


def afflict(scene: Scene, kind: str, generator: np.random.Generator, severity: float) -> Scene:
    """Put one anomaly into a scene.

    Args:
        scene: a healthy scene.
        kind: one of `KINDS`.
        generator: draws place, size and direction.
        severity: 0 (barely visible) to 1; single cases scatter around it.
    """
    strength = float(np.clip(severity * generator.uniform(0.4, 1.6), 0.03, 1.0))
    return CHANGES[kind](scene, generator, strength)
