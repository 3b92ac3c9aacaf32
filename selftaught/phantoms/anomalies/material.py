"""Casts around the limb, and splinters of metal or glass inside it."""

from dataclasses import replace

import numpy as np

from selftaught.phantoms.anomalies.hardware import GLASS, STEEL, screw
from selftaught.phantoms.anomalies.places import visible
from selftaught.phantoms.geometry import disc, strip
from selftaught.phantoms.scene import Scene
from selftaught.phantoms.shapes import Array, Cast, Solid


def cast(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """Plaster or fibreglass around the limb."""
    chains = tuple(
        dict.fromkeys(s.chain for s in scene.softs if s.chain not in ("neck", "chest", "deltoid"))
    )
    x, y, width, height = scene.window
    low, high = y - height, y + height
    bone = next((b for b in scene.bones if b.name in ("humerus", "p3", "radius")), scene.bones[0])
    if any(soft.name == "palm_thenar" for soft in scene.softs):
        high = float(generator.uniform(45, 75))
    elif generator.random() < 0.5 or bone.name == "humerus":
        low = y + height * float(generator.uniform(-0.35, -0.05))
    else:
        high = y + height * float(generator.uniform(0.05, 0.4))
    edge = np.linspace(x - width, x + width, 9)
    waves = generator.normal(0, 2.0, (2, 9))
    region = np.concatenate(
        (
            np.stack((edge, low + waves[0]), axis=1),
            np.stack((edge[::-1], high + waves[1]), axis=1),
        )
    )
    plaster = generator.random() < 0.6
    thickness = (3.0 + 7.0 * strength * float(generator.uniform(0.6, 1.0))) * min(1, width / 90)
    shell = Cast(
        gap=float(generator.uniform(0.5, 2.5)) * min(1, width / 90),
        thickness=thickness,
        density=0.03 if plaster else 0.018,
        region=region,
        chains=chains,
    )
    return replace(scene, casts=(*scene.casts, shell))


def foreign(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """Something in the soft tissue that does not belong there."""
    points = [_flesh_point(scene, generator) for _ in range(int(generator.integers(1, 5)))]
    unit = scene.window[3] / 200 * (0.5 + strength)
    kind = generator.choice(["pellets", "needle", "shards", "glass", "screw"])
    solids: list[Solid] = []
    turn = float(generator.uniform(0, 2 * np.pi))
    way = np.array([np.cos(turn), np.sin(turn)])
    if kind == "pellets":
        size = 2.4 * unit
        solids = [
            Solid(outline=disc(p, size), thickness=2 * size, density=STEEL, rounded=True)
            for p in points
        ]
    elif kind == "needle":
        line = points[0] + np.outer(np.linspace(-14, 14, 4) * unit, way)
        solids = [
            Solid(outline=strip(line, 0.7 * unit), thickness=1.4, density=STEEL * 2, rounded=True)
        ]
    elif kind == "screw":
        solids = screw(points[0] - way * 12 * unit, points[0] + way * 12 * unit, 1.8 * unit, STEEL)
    else:
        density = STEEL if kind == "shards" else GLASS
        for p in points:
            angles = np.sort(generator.uniform(0, 2 * np.pi, 6))
            radii = generator.uniform(1.5, 5.5, 6) * unit
            shard = p + np.stack((np.cos(angles), np.sin(angles)), axis=1) * radii[:, None]
            solids.append(Solid(outline=shard, thickness=3 * unit, density=density))
    return replace(scene, solids=(*scene.solids, *solids))


def _flesh_point(scene: Scene, generator: np.random.Generator) -> Array:
    """A visible point (2,) inside the soft tissue, mm."""
    point = np.array(scene.window[:2])
    for _ in range(60):
        soft = scene.softs[int(generator.integers(len(scene.softs)))]
        share = float(generator.uniform(0, 1))
        radius = soft.radii[0] * (1 - share) + soft.radii[1] * share
        offset = generator.uniform(-0.55, 0.55, 2) * radius
        point = soft.start * (1 - share) + soft.end * share + offset
        if visible(scene, point, 0.14):
            break
    return point
