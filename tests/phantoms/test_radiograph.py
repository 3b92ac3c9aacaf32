"""One synthetic radiograph: determinism, ground truth, twins."""

import cv2
import numpy as np
import pytest

from selftaught.phantoms import BODY_PARTS, KINDS, Radiograph, radiograph
from selftaught.phantoms.layout import cluttered_layout
from selftaught.phantoms.streams import stream

SIZE = 96


def differs(left: Radiograph, right: Radiograph) -> bool:
    return left.image.shape != right.image.shape or bool((left.image != right.image).any())


def test_equal_arguments_give_equal_bits_whatever_was_drawn_before() -> None:
    first = radiograph(3, 17, size=SIZE)
    radiograph(4, 2, size=SIZE)
    np.random.seed(0)
    again = radiograph(3, 17, size=SIZE)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.anomaly_mask, again.anomaly_mask)
    assert (first.kind, first.body_part, first.boxes) == (again.kind, again.body_part, again.boxes)


def test_seed_and_index_change_the_picture() -> None:
    first = radiograph(3, 17, size=SIZE, body_part="hand", kind="none")
    assert differs(first, radiograph(3, 18, size=SIZE, body_part="hand", kind="none"))
    assert differs(first, radiograph(4, 17, size=SIZE, body_part="hand", kind="none"))


def test_fraction_of_abnormal_pictures_is_respected() -> None:
    labels = [
        radiograph(1, i, size=48, body_part="finger", abnormal_fraction=0.3).label
        for i in range(80)
    ]
    assert 0.15 < np.mean(labels) < 0.45


@pytest.mark.parametrize("kind", ["none", *KINDS])
@pytest.mark.parametrize("part", BODY_PARTS)
def test_every_part_and_kind_renders(part: str, kind: str) -> None:
    # Every part and every kind with clutter and without.
    clutter = bool((BODY_PARTS.index(part) + ["none", *KINDS].index(kind)) % 2)
    drawn = radiograph(2, 5 + clutter, size=SIZE, body_part=part, kind=kind, clutter=clutter)
    assert drawn.image.dtype == np.uint16
    assert max(drawn.image.shape) == SIZE
    assert min(drawn.image.shape) >= 32
    assert np.ptp(drawn.image) > 20000
    assert drawn.kind == kind and drawn.label == int(kind != "none")
    assert bool(drawn.boxes) == bool(drawn.anomaly_mask.any()) == (kind != "none")
    assert drawn.bone_mask.sum() > 100
    assert drawn.body_mask.mean() < 0.995


@pytest.mark.parametrize("index", range(40))
def test_ground_truth_is_consistent(index: int) -> None:
    drawn = radiograph(9, index, size=128, abnormal_fraction=0.7)
    height, width = drawn.image.shape
    assert (drawn.body_mask | ~drawn.bone_mask).all()
    assert (drawn.quad >= -0.75).all()
    assert (drawn.quad <= (width - 0.25, height - 0.25)).all()
    grown = cv2.fillConvexPoly(
        np.zeros((height, width), np.uint8), np.round(drawn.quad).astype(np.int32), 1
    )
    grown = cv2.dilate(grown, np.ones((5, 5), np.uint8))
    assert not (drawn.body_mask & (np.asarray(grown) == 0)).any()
    boxed = np.zeros((height, width), bool)
    for left, top, right, bottom in drawn.boxes:
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height
        boxed[top:bottom, left:right] = True
    assert not (drawn.anomaly_mask & ~boxed).any()


def test_quad_corners_start_top_left_and_go_clockwise() -> None:
    quad = radiograph(1, 3, size=SIZE, clutter=False).quad
    assert np.allclose(quad[0], -0.5)
    assert quad[1][0] > quad[0][0]
    assert quad[2][1] > quad[1][1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("part", ["finger", "forearm", "shoulder", "wrist"])
def test_a_twin_without_the_anomaly_differs_only_there(part: str, kind: str) -> None:
    for index in (1, 2):
        options = {"size": 160, "body_part": part, "patient": 5, "study": 6}
        sick = radiograph(1, index, kind=kind, **options)  # type: ignore[arg-type]
        twin = radiograph(1, index, kind="none", **options)  # type: ignore[arg-type]
        assert np.array_equal(sick.quad, twin.quad)
        change = np.abs(sick.image.astype(int) - twin.image.astype(int)) / 65535
        spread = cv2.dilate(sick.anomaly_mask.astype(np.uint8), np.ones((9, 9), np.uint8))
        reach = np.asarray(spread, bool)
        assert change[~reach].max(initial=0) < 0.04
        assert change[~reach].mean() < 1e-3
        assert change[sick.anomaly_mask].max() > 0.03


def test_most_anomalies_are_visible_at_network_size() -> None:
    """Default severity: the typical anomaly changes a fifth of its box clearly, at 112 px."""
    visible = 0
    for index in range(24):
        options = {"size": 112, "patient": index, "study": index, "clutter": False}
        sick = radiograph(1, index, abnormal_fraction=1.0, **options)  # type: ignore[arg-type]
        twin = radiograph(1, index, body_part=sick.body_part, kind="none", **options)  # type: ignore[arg-type]
        change = np.abs(sick.image.astype(int) - twin.image.astype(int)) / 65535
        visible += int((change > 0.12).sum() >= 12)
    assert 14 <= visible


def test_severity_scales_the_change() -> None:
    def amount(severity: float) -> float:
        total = 0.0
        for index in range(6):
            options = {"size": SIZE, "body_part": "forearm", "clutter": False}
            sick = radiograph(1, index, kind="fracture", severity=severity, **options)  # type: ignore[arg-type]
            twin = radiograph(1, index, kind="none", **options)  # type: ignore[arg-type]
            total += float(np.abs(sick.image.astype(int) - twin.image.astype(int)).sum())
        return total

    assert amount(0.05) < 0.6 * amount(0.4) < 0.6 * amount(1.0)


def test_a_study_decides_the_side_and_a_patient_the_bones() -> None:
    kept = {"size": SIZE, "body_part": "finger", "kind": "none", "clutter": False}
    sides = {
        radiograph(1, 1, patient=3, study=study, **kept).bone_mask.tobytes()  # type: ignore[arg-type]
        for study in range(8)
    }
    people = {
        radiograph(1, 1, patient=patient, study=4, **kept).bone_mask.tobytes()  # type: ignore[arg-type]
        for patient in range(8)
    }
    assert (len(sides), len(people)) == (2, 8)


def test_a_tenth_is_inverted_and_only_with_clutter() -> None:
    share = np.mean(
        [cluttered_layout((100, 200), 64, "L", stream(1, i)).inverted for i in range(600)]
    )
    assert 0.07 < share < 0.13
    drawn = [radiograph(1, i, size=64, kind="none", body_part="hand") for i in range(40)]
    assert {d.inverted for d in drawn} == {False, True}
    for d in drawn:
        bone = d.bone_mask
        flesh = d.body_mask & ~cv2.dilate(bone.astype(np.uint8), np.ones((3, 3))).astype(bool)
        if flesh.sum() > 20:
            brighter = np.median(d.image[bone]) > np.median(d.image[flesh])
            assert brighter != d.inverted


@pytest.mark.parametrize(
    ("option", "value"),
    [("size", 8), ("size", 9000), ("body_part", "knee"), ("kind", "rust"), ("severity", 1.5)],
)
def test_bad_arguments_are_named(option: str, value: object) -> None:
    with pytest.raises(ValueError, match=option):
        radiograph(1, 1, **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [48, 97, 513])
def test_odd_sizes(size: int) -> None:
    assert max(radiograph(1, 1, size=size).image.shape) == size
