"""Patients, studies and labels of a set."""

import pandas as pd

from selftaught.phantoms import BODY_PARTS
from selftaught.phantoms.cohort import plan


def table(images: int, fraction: float = 0.4) -> pd.DataFrame:
    entries = plan(1, images, BODY_PARTS, fraction)
    rows = [{**vars(entry), "label": entry.label} for entry in entries]
    return pd.DataFrame(rows)


def test_structure() -> None:
    frame = table(3000)
    assert list(frame["index"]) == list(range(3000))
    studies = frame.groupby("study")
    assert studies["kind"].nunique().max() == 1
    assert studies["patient"].nunique().max() == 1
    assert studies["body_part"].nunique().max() == 1
    assert set(studies.size().iloc[:-1]) == {1, 2, 3, 4}
    assert (studies["image"].max() == studies.size()).all()
    patients = frame.groupby("patient")
    several = patients["body_part"].nunique() > 1
    assert 0.1 < several.mean() < 0.3
    mixed = patients["label"].nunique() > 1
    assert 0.02 < mixed.mean() < 0.25
    part_mixed = frame.groupby(["patient", "body_part"])["label"].nunique() > 1
    assert part_mixed.any()
    assert abs(frame["label"].mean() - 0.4) < 0.05
    assert set(frame["body_part"]) == set(BODY_PARTS)


def test_a_longer_set_begins_with_the_shorter_one() -> None:
    assert plan(1, 50, BODY_PARTS, 0.4) == plan(1, 90, BODY_PARTS, 0.4)[:50]


def test_extreme_fractions_and_small_sets() -> None:
    assert table(100, 0.0)["label"].sum() == 0
    assert table(100, 1.0)["label"].sum() == 100
    assert set(table(24)["label"]) == {0, 1}
