import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from split_cases import manifest_of, mura_like, random_clinic

from selftaught.data.manifest import Manifest, read_manifest
from selftaught.data.split import (
    SplitConfig,
    SplitWarning,
    format_table,
    make_split,
    read_split,
    split_table,
    write_split,
)
from selftaught.errors import InputError

SEEDS = range(12)
BUDGETS = (0.025, 0.05, 0.1)
DATA = Path(__file__).resolve().parents[3] / ".." / "shared" / "data"


def quiet_split(manifest: Manifest, config: SplitConfig) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitWarning)
        return make_split(manifest, config)


def paths(frame: pd.DataFrame, **where) -> set[str]:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return set(frame["path"])


def largest_group(frame: pd.DataFrame) -> int:
    return int(frame.groupby("group").size().max())


def one_part_each() -> Manifest:
    """The MURA-like table with every body part another patient's."""
    table = mura_like().table
    return manifest_of(table.assign(patient=table["patient"] + table["body_part"]))


def no_group_crosses(frame: pd.DataFrame) -> bool:
    used = frame[frame["split"] != "unused"]
    return bool((used.groupby("group")["split"].nunique() == 1).all())


@pytest.mark.parametrize("seed", SEEDS)
def test_no_leakage_and_every_image_once(seed):
    manifest = random_clinic(seed, blank=0.2 * (seed % 2))
    for scheme in ("default", "paper"):
        frame = quiet_split(manifest, SplitConfig(scheme=scheme, train_fraction=0.35))
        assert no_group_crosses(frame)
        assert list(frame["path"]) == list(manifest.table["path"])
        assert set(frame["split"]) <= {"train", "val", "test", "unused"}
        known = frame[frame["semi_label"] != 0]
        expected = known["label"].map({0: 1, 1: -1})
        assert (known["semi_label"].astype(int) == expected.astype(int)).all()
        if scheme == "default":
            assert (known["split"] == "train").all()


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("scheme", ["default", "paper"])
def test_row_order_does_not_count(seed, scheme):
    manifest = random_clinic(seed, blank=0.1)
    config = SplitConfig(scheme=scheme, train_fraction=0.35)
    frame = quiet_split(manifest, config)
    order = np.random.default_rng(seed).permutation(len(manifest.table))
    mixed = manifest_of(manifest.table.iloc[order])
    other = quiet_split(mixed, config).set_index("path").loc[frame["path"]].reset_index()
    pd.testing.assert_frame_equal(frame, other)
    assert manifest.digest == mixed.digest


@pytest.mark.parametrize("seed", SEEDS)
def test_evaluation_is_fixed_and_label_draws_are_nested(seed):
    manifest = random_clinic(seed, blank=0.15 * (seed % 2))
    by_budget = [
        quiet_split(manifest, SplitConfig(train_fraction=0.3, known_normal=x, known_abnormal=x))
        for x in BUDGETS
    ]
    polluted = [
        quiet_split(manifest, SplitConfig(train_fraction=0.3, pollution=p)) for p in (0.02, 0.05)
    ]
    for frame in by_budget + polluted:
        for name in ("val", "test"):
            assert paths(frame, split=name) == paths(by_budget[0], split=name)
    for small, large in zip(by_budget, by_budget[1:], strict=False):
        for semi in (1, -1):
            assert paths(small, semi_label=semi) < paths(large, semi_label=semi)
        # Only the blank-label images of newly known abnormal groups may join the unknown ones.
        of_abnormal = large.groupby("group")["label"].transform("max").fillna(0) == 1
        unknown = paths(large[~of_abnormal], split="train", semi_label=0)
        assert unknown <= paths(small, split="train", semi_label=0)
    less, more = (paths(frame, split="train", label=1, semi_label=0) for frame in polluted)
    assert less <= more


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("pollution", [0.0, 0.1, 0.2])
def test_default_shares_are_of_training_images(budget, pollution):
    config = SplitConfig(known_normal=0.04, known_abnormal=budget, pollution=pollution)
    frame = make_split(one_part_each(), config)
    train = frame[frame["split"] == "train"]
    slack = largest_group(frame)
    nominal = 0.5 * len(frame)
    assert abs(len(train) - nominal) <= 3 * slack
    assert abs((train["semi_label"] == -1).sum() - budget * nominal) <= slack
    assert abs((train["semi_label"] == 1).sum() - 0.04 * nominal) <= slack
    unknown = train[train["semi_label"] == 0]
    assert abs((unknown["label"] == 1).mean() - pollution) <= 2 * slack / len(unknown)
    table = split_table(frame)
    for column in ("images", "normal", "abnormal"):
        assert abs(table.loc["val", column] - table.loc["test", column]) <= 3 * slack
    assert (table.loc["val", "abnormal"]) > 0.2 * table.loc["all", "abnormal"]


def test_blank_labels_train_as_unknown_and_count_in_the_shares():
    manifest = random_clinic(3, patients=2000, blank=0.3)
    frame = quiet_split(manifest, SplitConfig(train_fraction=0.3))
    train = frame[frame["split"] == "train"]
    blank = train[train["label"].isna()]
    assert len(blank) and (blank["semi_label"] == 0).all()
    wholly = frame.groupby("group")["label"].transform("count") == 0
    assert (frame[wholly]["split"] == "train").all()
    assert (train["semi_label"] == -1).mean() == pytest.approx(0.05, abs=0.004)
    assert (train["semi_label"] == 1).mean() == pytest.approx(0.05, abs=0.004)
    none = quiet_split(manifest, SplitConfig(train_fraction=0.3, unlabelled="unused"))
    assert not none[none["split"] == "train"]["label"].isna().any()
    assert paths(none, split="test") == paths(frame, split="test")


def test_scarce_normals_stay_in_evaluation():
    rows = [{"path": f"{i}.png", "label": int(i >= 400), "patient": str(i)} for i in range(2000)]
    frame = make_split(manifest_of(pd.DataFrame(rows)), SplitConfig())
    table = split_table(frame)
    # f M = 1000 exceeds the 400 normals; evaluation keeps a quarter of its half: 50.
    assert table.loc["val", "normal"] == table.loc["test", "normal"] == 25
    assert table.loc["train", "normal"] == round(0.95 * 350)


@pytest.mark.parametrize("seed", range(5))
def test_seed_moves_the_draw(seed):
    manifest = random_clinic(1)
    frames = [
        quiet_split(manifest, SplitConfig(seed=s, train_fraction=0.3)) for s in (seed, seed + 1)
    ]
    assert paths(frames[0], split="test") != paths(frames[1], split="test")


def test_groups_fall_back_to_study_then_path():
    table = pd.DataFrame(
        {"path": [f"{i}.png" for i in range(60)], "label": [0] * 40 + [1] * 20}
    ).assign(study=[f"s{i // 2}" if i % 4 < 2 else "" for i in range(60)])
    with pytest.warns(SplitWarning, match="30 of 60 images have no patient"):
        frame = make_split(manifest_of(table), SplitConfig())
    assert frame["group"].nunique() == 15 + 30
    assert no_group_crosses(frame)


def test_group_may_name_any_column():
    manifest = random_clinic(2, patients=400)
    table = manifest.table.assign(site=manifest.table["patient"].str[-2:] + "x")
    frame = quiet_split(manifest_of(table), SplitConfig(group="site", train_fraction=0.05))
    assert (frame["group"] == table["site"]).all()
    assert no_group_crosses(frame)
    with pytest.raises(
        InputError, match='split.group is "ward"; allowed, from manifest.csv: "path"'
    ):
        make_split(manifest, SplitConfig(group="ward"))


def test_no_abnormal_images_is_a_warning():
    table = pd.DataFrame({"path": [f"{i}.png" for i in range(40)], "label": 0})
    table["patient"] = table["path"]
    with pytest.warns(SplitWarning) as caught:
        frame = make_split(manifest_of(table), SplitConfig())
    messages = " ".join(str(warning.message) for warning in caught)
    assert "AUROC is undefined" in messages and "knows no abnormal image" in messages
    assert split_table(frame).loc["unused", "images"] == 0


def test_few_abnormals_are_all_known_with_a_warning():
    rows = [{"path": f"{i}.png", "label": int(i < 20), "patient": str(i)} for i in range(1000)]
    with pytest.warns(SplitWarning, match="asks for 50 abnormal training images; all 10 "):
        frame = make_split(manifest_of(pd.DataFrame(rows)), SplitConfig(known_abnormal=0.1))
    assert split_table(frame).loc["train", "known_abnormal"] == 10


def test_pollution_beyond_the_supply_is_an_error():
    with pytest.raises(InputError, match=r"split.pollution 0.9 asks for \d+ .*; \d+ are left"):
        make_split(one_part_each(), SplitConfig(pollution=0.9))


@pytest.mark.parametrize("labels", [[1] * 30, [0, 0], [0, 0, 1, 1, 1]])
def test_too_few_normal_groups(labels):
    table = pd.DataFrame({"path": [f"{i}" for i in range(len(labels))], "label": labels})
    with pytest.raises(InputError, match="groups with only normal images; allowed: at least 3"):
        quiet_split(manifest_of(table), SplitConfig())


@pytest.mark.parametrize("labels", [[], [pd.NA] * 9])
def test_no_label_at_all(labels):
    table = pd.DataFrame({"path": [f"{i}" for i in range(len(labels))], "label": labels})
    with pytest.raises(InputError, match="no image has a label; allowed: a column"):
        quiet_split(manifest_of(table), SplitConfig())


@pytest.mark.parametrize("normal", [3, 4, 7])
@pytest.mark.parametrize("abnormal", [0, 1, 2, 3, 5])
def test_tiny_sets_are_never_empty(normal, abnormal):
    labels = [0] * normal + [1] * abnormal
    table = pd.DataFrame({"path": [f"{i}" for i in range(len(labels))], "label": labels})
    table_of = split_table(quiet_split(manifest_of(table), SplitConfig()))
    assert (table_of.loc[["train", "val", "test"], "normal"] > 0).all()
    assert table_of.loc["test", "abnormal"] == (0 if abnormal == 0 else max(1, (abnormal - 1) // 2))
    assert table_of.loc["train", "known_abnormal"] == int(abnormal > 2)


def test_given_semi_labels_are_kept_without_a_split():
    manifest = random_clinic(4)
    table = manifest.table.copy()
    known = table["patient"].isin([f"patient {i}" for i in range(0, 60)])
    table["semi_label"] = np.where(known, np.where(table["label"] == 0, 1, -1), 0)
    frame = quiet_split(manifest_of(table), SplitConfig())
    train = frame[frame["split"] == "train"]
    given = table.set_index("path").loc[train["path"], "semi_label"].to_numpy(int)
    assert (train["semi_label"].to_numpy() == given).all()
    assert (frame[frame["split"] != "train"]["semi_label"] == 0).all()
    assert ((train["label"] == 1) & (train["semi_label"] == 0)).sum() == 0
    mixed = frame.groupby("group")["label"].transform("nunique") == 2
    abnormal_known = (frame["label"] == 1) & known & ~mixed
    assert (frame[abnormal_known]["split"] == "train").all()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("train_fraction", 0.0, r"split.train_fraction is 0.0; allowed: 0 < x < 1"),
        ("train_fraction", 1, r"split.train_fraction is 1; allowed"),
        ("train_fraction", float("nan"), r"split.train_fraction is nan"),
        ("train_fraction", "half", r"split.train_fraction is 'half'; allowed: 0 < x < 1"),
        ("known_normal", -0.1, r"split.known_normal is -0.1; allowed: 0 <= x < 1"),
        ("known_normal", True, r"split.known_normal is True"),
        ("known_abnormal", 1.0, r"split.known_abnormal is 1.0"),
        ("known_abnormal", 0.95, r"split.known_normal \+ split.known_abnormal is 0.05 \+ 0.95"),
        ("known_abnormal", None, r"split.known_abnormal is None"),
        ("pollution", 1.0, r"split.pollution is 1.0; allowed: 0 <= x < 1"),
        ("val_fraction", 0.0, r"split.val_fraction is 0.0; allowed: 0 < x <= 0.5"),
        ("seed", -1, r"split.seed is -1; allowed: whole numbers"),
        ("seed", 1.5, r"split.seed is 1.5"),
        ("group", "", r"split.group is ''; allowed: a column"),
        ("scheme", "papers", r"split.scheme is 'papers'; allowed: default, paper"),
        ("unlabelled", "drop", r"split.unlabelled is 'drop'; allowed: train, "),
    ],
)
def test_settings_out_of_range(field, value, message):
    with pytest.raises(InputError, match=message) as caught:
        SplitConfig(**{field: value})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
def test_written_split_is_a_manifest_that_keeps_itself(seed, tmp_path):
    manifest = random_clinic(seed, blank=0.1)
    config = SplitConfig(train_fraction=0.3, scheme=["default", "paper"][seed % 2])
    frame = quiet_split(manifest, config)
    write_split(frame, tmp_path / "split.csv")
    again = read_manifest(tmp_path / "split.csv", check_files=False)
    pd.testing.assert_frame_equal(frame, quiet_split(again, config))
    pd.testing.assert_frame_equal(frame, read_split(tmp_path / "split.csv"))


def test_a_new_patient_moves_at_most_a_few_others():
    manifest = random_clinic(5, patients=500)
    extra = pd.DataFrame({"path": ["new.png"], "label": [0], "patient": ["newcomer"]})
    plain = manifest.table[["path", "label", "patient"]]
    grown = manifest_of(pd.concat([plain, extra]))
    before = quiet_split(manifest, SplitConfig(train_fraction=0.3)).set_index("path")
    after = quiet_split(grown, SplitConfig(train_fraction=0.3)).set_index("path")
    moved = (before["split"] != after.loc[before.index, "split"]).mean()
    assert moved < 0.03


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["knee", "pneumonia"])
def test_real_manifests(name):
    source = DATA / name / "manifest.csv"
    if not source.exists():
        pytest.skip(f"no {name} radiographs beside the checkout")
    manifest = read_manifest(source)
    for config in (SplitConfig(), SplitConfig(pollution=0.05)):
        frame = quiet_split(manifest, config)
        assert no_group_crosses(frame)
        given = manifest.table["split"]
        assert (frame["split"][given == "test"] == "test").all()
        train = frame[frame["split"] == "train"]
        assert (train["semi_label"] == -1).mean() == pytest.approx(0.05, abs=0.003)
        assert (train["semi_label"] == 1).mean() == pytest.approx(0.05, abs=0.003)
        hidden = train[(train["label"] == 1) & (train["semi_label"] == 0)]
        share = len(hidden) / (train["semi_label"] == 0).sum()
        assert share == pytest.approx(config.pollution, abs=0.002)
    only = replace(config, unlabelled="unused")
    assert not quiet_split(manifest, only).query("split == 'train'")["label"].isna().any()


def test_table_is_aligned():
    frame = quiet_split(random_clinic(0), SplitConfig(train_fraction=0.3))
    lines = format_table(frame).splitlines()
    assert lines[0].split()[:3] == ["split", "images", "groups"]
    assert [line.split()[0] for line in lines[1:]] == ["train", "val", "test", "unused", "all"]
    assert len({len(line) for line in lines}) == 1
    assert [int(x) for x in lines[-1].split()[1:]] == list(split_table(frame).loc["all"])
