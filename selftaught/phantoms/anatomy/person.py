"""What all radiographs of one patient share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Person:
    """What all pictures of one patient share.

    Attributes:
        size: scale of all lengths.
        robust: width of the bones against their length.
        girth: thickness of the soft tissue.
        fat: share of the soft tissue that is fat, mm at the forearm.
        cortex: thickness of the shells.
        density: density of spongy bone.
    """

    size: float
    robust: float
    girth: float
    fat: float
    cortex: float
    density: float


def draw_person(generator: np.random.Generator) -> Person:
    """Draw one adult patient."""
    return Person(
        size=float(generator.uniform(0.88, 1.1)),
        robust=float(generator.uniform(0.9, 1.1)),
        girth=float(generator.uniform(0.88, 1.2)),
        fat=float(generator.uniform(2.0, 6.0)),
        cortex=float(generator.uniform(0.75, 1.2)),
        density=float(generator.uniform(0.75, 1.2)),
    )
