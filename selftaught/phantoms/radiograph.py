"""One synthetic radiograph with its ground truth, as a pure function of its numbers."""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from selftaught.phantoms.absorption import BODY_FROM_MM, Absorption, absorb
from selftaught.phantoms.anatomy import BODY_PARTS
from selftaught.phantoms.anomalies import KINDS, afflict, draw_kind
from selftaught.phantoms.exposure import detect
from selftaught.phantoms.frame import Frame
from selftaught.phantoms.layout import Layout
from selftaught.phantoms.mount import field_cover, film_cover, letter_map, mount, part_cover
from selftaught.phantoms.shapes import Array
from selftaught.phantoms.streams import stream
from selftaught.phantoms.texture import white_noise

NORMAL = "none"
SMALLEST, LARGEST = 48, 4096
BONE_FROM_MM = 0.5
# A pixel counts as changed when the anomaly alters its line integral by this much.
CHANGED = 0.02
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, eq=False)
class Radiograph:
    """A picture and the truth about it.

    Attributes:
        image: (H, W) uint16 master, as the film reader would store it.
        label: 0 normal, 1 abnormal.
        body_part: one of `BODY_PARTS`.
        view: projection.
        kind: one of `KINDS`, or "none".
        inverted: bone is dark in `image`.
        quad: (4, 2) float64 corners of the film, x then y in pixels, from top left clockwise.
        body_mask: (H, W) bool: body, with casts and metal.
        bone_mask: (H, W) bool.
        anomaly_mask: (H, W) bool: everything the anomaly changed.
        boxes: (left, top, right, bottom) in pixels, right and bottom exclusive; one for
            every exposure that shows the anomaly.
    """

    image: npt.NDArray[np.uint16]
    label: int
    body_part: str
    view: str
    kind: str
    inverted: bool
    quad: Array
    body_mask: Mask
    bone_mask: Mask
    anomaly_mask: Mask
    boxes: tuple[tuple[int, int, int, int], ...]


def radiograph(
    seed: int,
    index: int,
    *,
    size: int = 512,
    body_part: str | None = None,
    kind: str | None = None,
    severity: float = 0.6,
    clutter: bool = True,
    patient: int | None = None,
    study: int | None = None,
    abnormal_fraction: float = 0.5,
) -> Radiograph:
    """Draw radiograph number `index`; equal arguments give equal bits.

    A picture and its twin with `kind="none"` differ only where the anomaly is.

    Args:
        seed: number of the whole set.
        index: number of the picture.
        size: longer side in pixels, 48 to 4096.
        body_part: one of `BODY_PARTS`; None draws one.
        kind: one of `KINDS`, or "none"; None draws one.
        severity: 0 (barely visible) to 1.
        clutter: film on a page, frames, letters, collimation, inversion, second exposures;
            False gives upright films that fill the picture.
        patient: pictures of one patient share build and bone shapes; None: `index`.
        study: pictures of one study share the injury and the side; None: `index`.
        abnormal_fraction: chance of an anomaly when `kind` is None.

    Raises:
        ValueError: an argument is out of range.
    """
    _check(size, body_part, kind, severity)
    choice = stream(seed, "choice", index)
    drawn_part = BODY_PARTS[int(choice.integers(len(BODY_PARTS)))]
    drawn_kind = draw_kind(choice) if choice.random() < abnormal_fraction else NORMAL
    body_part = body_part or drawn_part
    kind = kind or drawn_kind
    patient = index if patient is None else patient
    study = index if study is None else study
    frame = Frame(seed, index, size, body_part, clutter, patient, study)
    healthy = [frame.expose(part) for part in range(frame.layout.parts)]
    before = _joined(frame.layout, [absorb(canvas, scene) for canvas, scene in healthy])
    after, changed = before, np.zeros(before.total.shape, np.bool_)
    cover = film_cover(frame.layout) * field_cover(frame.layout) > 0.5
    for attempt in range(8 if kind != NORMAL else 0):
        drawn = kind if attempt < 7 else "foreign"
        key = (seed, "anomaly", study, attempt)
        hurt = [(c, afflict(s, drawn, stream(*key), severity)) for c, s in healthy]
        after = _joined(frame.layout, [absorb(canvas, scene) for canvas, scene in hurt])
        changed = _changed(before, after, frame.layout.scale) & cover
        if changed.sum() >= 12:
            kind = drawn
            break
    return _finish(frame, before, after, changed, cover, kind)


def _check(size: int, body_part: str | None, kind: str | None, severity: float) -> None:
    """Refuse arguments out of range."""
    if not SMALLEST <= size <= LARGEST:
        raise ValueError(f"size: {size} is not between {SMALLEST} and {LARGEST} pixels")
    if body_part is not None and body_part not in BODY_PARTS:
        raise ValueError(f"body_part: {body_part!r} is not one of {', '.join(BODY_PARTS)}")
    if kind is not None and kind not in (*KINDS, NORMAL):
        raise ValueError(f"kind: {kind!r} is not one of {', '.join((*KINDS, NORMAL))}")
    if not 0 <= severity <= 1:
        raise ValueError(f"severity: {severity} is not between 0 and 1")


def _joined(layout: Layout, parts: list[Absorption]) -> Absorption:
    """Exposures side by side on one film, a strip of lead shadow between them."""
    if len(parts) == 1:
        return parts[0]
    first = part_cover(layout, 0)
    second = 1 - first
    return Absorption(
        total=parts[0].total * first + parts[1].total * second,
        soft=parts[0].soft * first + parts[1].soft * second,
        thick=parts[0].thick * first + parts[1].thick * second,
        bone=parts[0].bone * first + parts[1].bone * second,
    )


def _changed(before: Absorption, after: Absorption, scale: float) -> Mask:
    """Where the anomaly alters the picture, closed and widened by about 1.5 mm."""
    spots = (np.abs(after.total - before.total) > CHANGED).astype(np.uint8)
    reach = max(1, round(1.5 * scale))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return cv2.dilate(spots, kernel).astype(np.bool_)


def _boxes(layout: Layout, changed: Mask) -> tuple[tuple[int, int, int, int], ...]:
    """One box around the changed pixels of every exposure."""
    boxes = []
    for part in range(layout.parts):
        mask = changed & (part_cover(layout, part) >= 0.5) if layout.parts > 1 else changed
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if len(rows):
            boxes.append((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    return tuple(boxes)


def _finish(
    frame: Frame, before: Absorption, after: Absorption, changed: Mask, cover: Mask, kind: str
) -> Radiograph:
    """Expose, mount and describe."""
    layout = frame.layout
    noise_stream = stream(*frame.key, "noise")
    noise = (
        white_noise(noise_stream, before.total.shape),
        white_noise(noise_stream, before.total.shape),
    )
    lead = letter_map(layout, before.thick)
    shown = detect(layout.scale, after.total + lead, before, cover, frame.exposure, noise)
    bone = (after.bone > BONE_FROM_MM) & cover
    added = after.total - after.soft > CHANGED
    body = ((after.thick > BODY_FROM_MM) | added) & cover
    return Radiograph(
        image=mount(shown, layout),
        label=int(kind != NORMAL),
        body_part=frame.part,
        view=frame.view,
        kind=kind,
        inverted=layout.inverted,
        quad=layout.quad,
        body_mask=body | bone,
        bone_mask=bone,
        anomaly_mask=changed,
        boxes=_boxes(layout, changed),
    )
