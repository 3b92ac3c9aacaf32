"""The seven kinds of anomaly, by name."""

from collections.abc import Callable, Sequence

import numpy as np

from selftaught.phantoms.anomalies.hardware import plate, wire
from selftaught.phantoms.anomalies.injuries import dislocation, fracture, missing
from selftaught.phantoms.anomalies.material import cast, foreign
from selftaught.phantoms.scene import Scene

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
SHARES = (0.30, 0.14, 0.14, 0.16, 0.12, 0.05, 0.09)


def draw_kind(generator: np.random.Generator, kinds: Sequence[str] = KINDS) -> str:
    """Draw one of `kinds` in the usual proportions."""
    shares = np.array([SHARES[KINDS.index(kind)] for kind in kinds])
    return kinds[int(generator.choice(len(kinds), p=shares / shares.sum()))]


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
