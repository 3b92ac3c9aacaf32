"""Plates with screws, wires and nails."""

from dataclasses import replace

import numpy as np

from selftaught.phantoms.anomalies.injuries import broken
from selftaught.phantoms.anomalies.places import at, frame, length_of, pick_place
from selftaught.phantoms.geometry import disc, rounded, strip
from selftaught.phantoms.scene import Scene
from selftaught.phantoms.shapes import Array, Bone, Solid

# Effective attenuation per mm; a millimetre of steel already looks white.
STEEL, TITANIUM, GLASS = 0.9, 0.42, 0.07


def _metal(generator: np.random.Generator) -> float:
    """Draw steel or titanium."""
    return STEEL if generator.random() < 0.6 else TITANIUM


def plate(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """A plate along a bone, held by screws; often over a healing fracture."""
    targets = tuple(target for target in scene.targets if target.plate)
    _, bone, place = pick_place(replace(scene, targets=targets), generator)
    if generator.random() < 0.4:
        scene = broken(scene, bone, place, generator, 0.15)
    point, along, across, half = frame(bone, place)
    half = min(half, 12.0)
    metal = _metal(generator)
    span = min(
        half * float(generator.uniform(6, 11)) * (0.6 + 0.6 * strength), length_of(bone) * 0.8
    )
    span = max(span, 16.0)
    start = np.clip(place - span / 2 / length_of(bone), 0.04, 0.9)
    stop = np.clip(start + span / length_of(bone), 0.1, 0.97)
    places = np.linspace(start, stop, 12)
    spine = np.stack([at(bone, float(p)) for p in places])
    width = float(np.clip(half * 0.55, 1.8, 5.5)) * (0.7 + 0.4 * strength)
    count = max(3, round(span / max(width * 3.2, 5)))
    side = 1.0 if generator.random() < 0.5 else -1.0
    if generator.random() < 0.45:
        solids = _plate_in_front(bone, spine, places, width, count, metal)
    else:
        solids = _plate_at_side(bone, places, width, count, metal, side, generator)
    return replace(scene, solids=(*scene.solids, *solids))


def _plate_in_front(
    bone: Bone, spine: Array, places: Array, width: float, count: int, metal: float
) -> list[Solid]:
    """Seen along the screws: a band with a screw head in every hole."""
    solids = [Solid(outline=rounded(strip(spine, width), 2), thickness=2.2, density=metal)]
    for p in np.linspace(places[0], places[-1], count + 2)[1:-1]:
        center = at(bone, float(p))
        solids.append(
            Solid(outline=disc(center, width * 0.62), thickness=4.0, density=metal, rounded=False)
        )
        solids.append(Solid(outline=disc(center, width * 0.26), thickness=-2.0, density=metal))
    return solids


def _plate_at_side(
    bone: Bone,
    places: Array,
    width: float,
    count: int,
    metal: float,
    side: float,
    generator: np.random.Generator,
) -> list[Solid]:
    """Seen from its edge: a thin bright line beside the bone and screws across it."""
    rows = [frame(bone, float(p)) for p in places]
    thin = max(width * 0.32, 0.8)
    spine = np.stack([row[0] + row[2] * side * (row[3] + thin * 0.8) for row in rows])
    solids = [Solid(outline=strip(spine, thin), thickness=width * 1.6, density=metal)]
    for p in np.linspace(places[0], places[-1], count + 2)[1:-1]:
        point, along, across, half = frame(bone, float(p))
        lean = along * float(generator.normal(0, 0.08))
        head = point + across * side * (half + thin * 2)
        tip = head - (across + lean) * side * half * float(generator.uniform(2.0, 2.5))
        solids += screw(head, tip, float(np.clip(width * 0.3, 0.6, 1.4)), metal)
    return solids


def screw(head: Array, tip: Array, radius: float, metal: float) -> list[Solid]:
    """A threaded rod with a broader head."""
    steps = np.linspace(0, 1, max(5, int(np.linalg.norm(tip - head) / (radius * 1.1))))
    line = head + np.outer(steps, tip - head)
    body = strip(line, radius)
    thread = np.where(np.arange(len(line)) % 2 == 0, 1.0, 0.72)
    middle = np.concatenate((line, line[::-1]))
    body = middle + (body - middle) * np.concatenate((thread, thread[::-1]))[:, None]
    away = (head - tip) / max(float(np.linalg.norm(head - tip)), 1e-6)
    cap = strip(np.stack((head + away * radius * 0.4, head - away * radius)), radius * 1.8)
    return [
        Solid(outline=body, thickness=radius * 2, density=metal, rounded=True),
        Solid(outline=cap, thickness=radius * 2.5, density=metal),
    ]


def wire(scene: Scene, generator: np.random.Generator, strength: float) -> Scene:
    """Thin wires drilled through a bone, or a nail in its cavity."""
    target, bone, place = pick_place(scene, generator)
    if generator.random() < 0.4:
        scene = broken(scene, bone, place, generator, 0.2)
    metal = _metal(generator)
    if length_of(bone) > 180 and generator.random() < 0.5:
        return replace(scene, solids=(*scene.solids, *_nail(bone, generator, metal)))
    _, along, across, half = frame(bone, place)
    solids: list[Solid] = []
    radius = float(np.clip(half * 0.11, 0.55, 1.1)) * (0.7 + 0.5 * strength)
    reach = min(length_of(bone) * 0.45, 55.0)
    for _ in range(int(generator.integers(1, 4)) if target.plate else 1):
        lean = float(generator.uniform(-0.35, 0.35))
        way = along * np.cos(lean) + across * np.sin(lean)
        way = way if generator.random() < 0.7 else -way
        center = at(bone, place) + across * float(generator.uniform(-0.4, 0.4)) * half
        start, stop = center - way * reach * 0.8, center + way * (reach + 8)
        bend = np.array([-way[1], way[0]]) * float(generator.choice([-1, 1]))
        hook = [stop + (bend + way) * radius, stop + bend * 4 * radius + way * radius]
        line = np.concatenate((np.linspace(start, stop, 8), hook))
        solids.append(
            Solid(
                outline=strip(line, radius), thickness=2 * radius, density=metal * 1.5, rounded=True
            )
        )
    return replace(scene, solids=(*scene.solids, *solids))


def _nail(bone: Bone, generator: np.random.Generator, metal: float) -> list[Solid]:
    """A thick rod in the cavity with locking screws at both ends."""
    low, high = float(generator.uniform(0.03, 0.1)), float(generator.uniform(0.75, 0.92))
    spine = np.stack([at(bone, float(p)) for p in np.linspace(low, high, 16)])
    radius = float(np.median(bone.half_width)) * 0.38
    solids = [
        Solid(outline=strip(spine, radius), thickness=2 * radius, density=metal, rounded=True)
    ]
    for p in (low + 0.05, low + 0.09, high - 0.07, high - 0.03):
        point, _, across, half = frame(bone, p)
        solids += screw(point + across * half * 1.1, point - across * half * 1.1, 1.5, metal)
    return solids
