import numpy as np
import pandas as pd
import pytest
from split_cases import manifest_of, mura_like, random_clinic

from selftaught.data.split import SplitConfig, make_split, split_table
from selftaught.errors import InputError

PAPER = SplitConfig(scheme="paper")


def kinds_by_set(frame: pd.DataFrame) -> pd.DataFrame:
    """Groups by set (rows) and kind (columns), counted with pandas alone."""
    by_group = frame.groupby("group").agg(
        split=("split", "first"), low=("label", "min"), high=("label", "max")
    )
    kind = np.where(
        by_group["low"] != by_group["high"],
        "mixed",
        np.where(by_group["low"] == 0, "normal", "abnormal"),
    )
    return pd.crosstab(by_group["split"], kind)


@pytest.mark.parametrize("budget", [0.025, 0.05, 0.1])
@pytest.mark.parametrize("counts", [(8400, 5350, 250), (8411, 5349, 253)])
def test_group_counts_follow_the_published_formula(budget, counts):
    normal, abnormal, mixed = counts
    f, a, b, total = 0.5, 0.05, budget, sum(counts)
    frame = make_split(mura_like(*counts), SplitConfig(scheme="paper", known_abnormal=b))
    train_normal, train_abnormal = int((1 - b) * f * total), int(b * f * total)
    expected = {
        "train": {"normal": train_normal, "abnormal": train_abnormal, "mixed": 0},
        "val": {
            "normal": (normal - train_normal) // 2,
            "abnormal": (abnormal - train_abnormal) // 2,
            "mixed": mixed // 2,
        },
        "test": {
            "normal": -(-(normal - train_normal) // 2),
            "abnormal": -(-(abnormal - train_abnormal) // 2),
            "mixed": -(-mixed // 2),
        },
    }
    found = kinds_by_set(frame)
    assert {name: dict(found.loc[name]) for name in found.index} == expected
    train = frame[frame["split"] == "train"]
    known = train[train["semi_label"] == 1]
    assert known["group"].nunique() == int(a * f * total)
    assert ((train["semi_label"] == -1) == (train["label"] == 1)).all()
    for name in ("val", "test"):
        part = frame[frame["split"] == name]
        assert part[part["semi_label"] == 1]["group"].nunique() == int(a * total / 4)
        assert part[part["semi_label"] == -1]["group"].nunique() == int(b * total / 4)


def test_image_ratios_are_those_of_the_published_log():
    # Logged: 18,033 normal and 1,004 abnormal train images, 961 known normals; val 10,399 and
    # test 10,511 of 39,947 images, 489 and 506 of them known normal (reference A4, 0.7).
    table = split_table(make_split(mura_like(), PAPER))
    train, total = table.loc["train"], table.loc["all", "images"]
    assert train["images"] / total == pytest.approx(19037 / 39947, abs=0.03)
    assert train["abnormal"] / train["images"] == pytest.approx(1004 / 19037, abs=0.005)
    assert train["known_normal"] / train["normal"] == pytest.approx(961 / 18033, abs=0.005)
    for name, images, known in (("val", 10399, 489), ("test", 10511, 506)):
        assert table.loc[name, "images"] / total == pytest.approx(images / 39947, abs=0.03)
        assert table.loc[name, "abnormal"] / table.loc[name, "images"] == pytest.approx(
            0.735, abs=0.02
        )
        assert table.loc[name, "known_normal"] / total == pytest.approx(known / 39947, abs=0.002)


def test_draws_are_those_of_a_fresh_legacy_generator():
    """Known-good: pandas' own sampling with random_state on the sorted groups."""
    manifest = random_clinic(9)
    frame = make_split(manifest, SplitConfig(scheme="paper", train_fraction=0.3))
    groups = frame.groupby("group")["label"].agg(["min", "max"]).sort_index()
    for code in (0, 1):
        members = groups[(groups["min"] == code) & (groups["max"] == code)]
        count = int((0.95 if code == 0 else 0.05) * 0.3 * len(groups))
        if code == 0:
            count = int((1 - 0.05) * 0.3 * len(groups))
        drawn = members.sample(n=count, random_state=42).index
        train = frame[(frame["split"] == "train") & (frame["label"] == code)]
        assert set(train["group"]) == set(drawn)


def test_one_patients_body_parts_are_groups_of_their_own():
    frame = make_split(mura_like(), PAPER)
    assert (frame["group"] == frame["patient"] + "|" + frame["body_part"]).all()
    used = frame[frame["split"] != "unused"]
    assert (used.groupby("group")["split"].nunique() == 1).all()
    assert (used.groupby("patient")["split"].nunique() > 1).any()


def test_mixed_groups_never_train_and_their_normals_are_never_known():
    frame = make_split(mura_like(900, 600, 150), SplitConfig(scheme="paper", known_abnormal=0.3))
    mixed = frame[frame.groupby("group")["label"].transform("nunique") == 2]
    assert set(mixed["split"]) == {"val", "test"}
    assert (mixed[mixed["label"] == 0]["semi_label"] == 0).all()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SplitConfig(scheme="paper", train_fraction=0.9), r"asks for \d+ normal groups .* 1 to"),
        (SplitConfig(scheme="paper", known_abnormal=0.9), r"asks for \d+ abnormal groups"),
        (SplitConfig(scheme="paper", pollution=0.1), "split.pollution is 0.1; allowed with"),
    ],
)
def test_what_the_paper_scheme_refuses(config, message):
    with pytest.raises(InputError, match=message) as caught:
        make_split(mura_like(900, 300, 20), config)
    assert "\n" not in str(caught.value)


def test_given_semi_labels_without_split_are_refused():
    table = random_clinic(1).table.assign(semi_label=0)
    with pytest.raises(InputError, match="gives semi_label without split"):
        make_split(manifest_of(table), PAPER)
