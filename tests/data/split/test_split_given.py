import warnings

import numpy as np
import pandas as pd
import pytest
from split_cases import manifest_of, random_clinic

from selftaught.data.manifest import Manifest
from selftaught.data.split import SplitConfig, SplitWarning, make_split, split_table
from selftaught.errors import InputError


def with_split(seed: int, *, val: bool = True, blank: float = 0.0) -> Manifest:
    """Patients dealt to sets by their number: half train, a quarter each val and test."""
    table = random_clinic(seed, patients=600, blank=blank).table
    number = table["patient"].str.split().str[-1].astype(int)
    names = np.array(["train", "train", "val" if val else "train", "test"])
    return manifest_of(table.assign(split=names[number % 4]))


def quiet_split(manifest: Manifest, config: SplitConfig) -> pd.DataFrame:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SplitWarning)
        return make_split(manifest, config)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("scheme", ["default", "paper"])
def test_sets_are_kept_and_only_surplus_abnormals_leave(seed, scheme):
    manifest = with_split(seed, blank=0.2 * (seed % 2))
    frame = quiet_split(manifest, SplitConfig(scheme=scheme, group="patient"))
    moved = frame[frame["split"] != manifest.table["split"]]
    assert (moved["split"] == "unused").all()
    assert (moved["label"] == 1).all()
    assert (manifest.table.loc[moved.index, "split"] == "train").all()
    train = frame[frame["split"] == "train"]
    assert ((train["label"] == 1) == (train["semi_label"] == -1)).all()
    slack = 9 / len(train)
    if scheme == "default":
        assert (train["semi_label"] == -1).mean() == pytest.approx(0.05, abs=slack)
        assert (train["semi_label"] == 1).mean() == pytest.approx(0.05, abs=slack)
    else:
        groups = train.groupby("group")["semi_label"]
        assert (groups.min() == -1).mean() == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("seed", range(4))
def test_label_draws_are_nested(seed):
    manifest = with_split(seed)
    frames = [
        quiet_split(manifest, SplitConfig(known_normal=x, known_abnormal=x))
        for x in (0.025, 0.05, 0.1)
    ]
    for small, large in zip(frames, frames[1:], strict=False):
        for semi in (1, -1):
            few, many = (set(f[f["semi_label"] == semi]["path"]) for f in (small, large))
            assert few < many


@pytest.mark.parametrize("pollution", [0.05, 0.15])
def test_pollution_share(pollution):
    frame = quiet_split(with_split(1), SplitConfig(pollution=pollution))
    unknown = frame[(frame["split"] == "train") & (frame["semi_label"] == 0)]
    assert (unknown["label"] == 1).mean() == pytest.approx(pollution, abs=0.01)
    with pytest.raises(InputError, match="split.pollution 0.95 asks for"):
        quiet_split(with_split(1), SplitConfig(pollution=0.95))


def test_blank_cells_are_unused():
    manifest = with_split(2)
    table = manifest.table.copy()
    table.loc[table.index[::7], "split"] = ""
    frame = quiet_split(manifest_of(table), SplitConfig())
    assert (frame["split"][::7] == "unused").all()
    assert (frame["semi_label"][::7] == 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_missing_validation_is_drawn_from_train_and_fixed(seed):
    manifest = with_split(seed, val=False, blank=0.1)
    with pytest.warns(SplitWarning, match=r"no val; \d+ training images become val"):
        frame = make_split(manifest, SplitConfig())
    was_test = manifest.table["split"] == "test"
    assert (frame["split"][was_test] == "test").all()
    assert not (frame["split"][~was_test] == "test").any()
    used = frame[frame["split"] != "unused"]
    assert (used.groupby("group")["split"].nunique() == 1).all()
    val = frame[frame["split"] == "val"]
    labelled = frame[~was_test & frame["label"].notna()]
    for code in (0, 1):
        share = (val["label"] == code).sum() / (labelled["label"] == code).sum()
        assert share == pytest.approx(0.1, abs=0.03)
    other = quiet_split(manifest, SplitConfig(known_abnormal=0.1, known_normal=0.1, pollution=0.02))
    assert set(other[other["split"] == "val"]["path"]) == set(val["path"])


def test_given_semi_labels_are_kept_exactly():
    manifest = with_split(3)
    truth = manifest.table["label"].to_numpy(int)
    random = np.random.default_rng(0)
    semi = np.where(random.random(len(truth)) < 0.3, np.where(truth == 0, 1, -1), 0)
    table = manifest.table.assign(semi_label=pd.array(semi, "Int8"))
    table.loc[table.index[semi == 0][::2], "semi_label"] = pd.NA
    frame = quiet_split(manifest_of(table), SplitConfig())
    assert (frame["semi_label"].to_numpy() == semi).all()
    assert (frame["split"] == manifest.table["split"]).all()
    with pytest.raises(InputError, match="split.pollution is 0.1; allowed: 0"):
        make_split(manifest_of(table), SplitConfig(pollution=0.1))


def test_drawn_validation_spares_known_images():
    table = with_split(8, val=False).table
    known = table["patient"].str.endswith(("0", "1", "2")) & (table["split"] == "train")
    semi = np.where(known, np.where(table["label"] == 0, 1, -1), 0)
    frame = quiet_split(manifest_of(table.assign(semi_label=semi)), SplitConfig(val_fraction=0.3))
    assert (frame["split"] == "val").any()
    assert (frame["split"][known] == "train").all()
    assert (frame["semi_label"].to_numpy() == semi).all()
    all_known = table.assign(semi_label=np.where(table["label"] == 0, 1, -1))
    with pytest.raises(InputError, match="val has no image labelled 0"):
        quiet_split(manifest_of(all_known), SplitConfig())


def test_unlabelled_images_of_train_may_be_left_out():
    manifest = with_split(4, blank=0.3)
    blank = manifest.table["label"].isna() & (manifest.table["split"] == "train")
    frame = quiet_split(manifest, SplitConfig())
    assert (frame["split"][blank] == "train").all() and (frame["semi_label"][blank] == 0).all()
    frame = quiet_split(manifest, SplitConfig(unlabelled="unused"))
    assert (frame["split"][blank] == "unused").all()
    train = frame[frame["split"] == "train"]
    assert (train["semi_label"] == -1).mean() == pytest.approx(0.05, abs=0.01)


def test_a_crossing_group_is_named_with_both_rows():
    manifest = with_split(5)
    table = manifest.table.copy()
    rows = table.index[(table["patient"] == "patient 8")]
    assert len(rows) > 1 and (table.loc[rows, "split"] == "train").all()
    table.loc[rows[-1], "split"] = "test"
    with pytest.raises(InputError) as caught:
        make_split(manifest_of(table), SplitConfig())
    assert str(caught.value) == (
        f'manifest.csv row {rows[-1] + 2}: group "patient 8" is in test here and in train in '
        f"manifest.csv row {rows[0] + 2}; allowed: each group in one set"
    )
    table.loc[rows[-1], "split"] = "unused"
    make_split(manifest_of(table), SplitConfig())


@pytest.mark.parametrize("missing", ["train", "test"])
def test_an_empty_set_is_an_error(missing):
    table = with_split(6).table
    with pytest.raises(InputError, match=f'column split has no row "{missing}"'):
        make_split(manifest_of(table[table["split"] != missing]), SplitConfig())


@pytest.mark.parametrize("which", ["train", "val", "test"])
def test_a_set_without_normals_is_an_error_and_without_abnormals_a_warning(which):
    table = with_split(7).table
    here = table["split"] == which
    with pytest.raises(InputError, match=f"{which} has no "):
        quiet_split(manifest_of(table[~here | (table["label"] == 1)]), SplitConfig())
    with pytest.warns(SplitWarning, match=which if which != "train" else "knows no abnormal"):
        frame = make_split(manifest_of(table[~here | (table["label"] == 0)]), SplitConfig())
    assert split_table(frame).loc[which, "abnormal"] == 0
