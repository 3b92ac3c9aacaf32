"""Folds divide all that is not the test set, and nothing of the test set is in any of them."""

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from split_cases import manifest_of, random_clinic
from test_split import largest_group, no_group_crosses, paths, quiet_split

from selftaught.data.split import SplitConfig, SplitWarning, make_split
from selftaught.errors import InputError


def folds_of(manifest, config):
    return [quiet_split(manifest, replace(config, fold=fold)) for fold in range(config.folds)]


def with_sets(manifest, seed):
    """The same images with sets of the manifest's own, a tenth of the groups in none."""
    names = manifest.table["patient"].unique()
    drawn = np.random.default_rng(seed).choice(
        ["train", "val", "test", ""], len(names), p=[0.5, 0.2, 0.2, 0.1]
    )
    sets = manifest.table["patient"].map(dict(zip(names, drawn, strict=True)))
    return manifest_of(manifest.table.assign(split=sets))


@pytest.mark.parametrize("own_sets", [False, True])
@pytest.mark.parametrize("seed", range(10))
def test_every_labelled_image_outside_the_test_set_validates_once(seed, own_sets):
    patients, folds, blank = 60 + 7 * seed, 2 + seed % 6, 0.2 * (seed % 2)
    manifest = random_clinic(seed, patients=patients, blank=blank)
    if own_sets:
        manifest = with_sets(manifest, seed)
    config = SplitConfig(seed=seed, train_fraction=0.4)
    whole = quiet_split(manifest, config)
    closed = paths(whole, split="test")
    if own_sets:
        closed |= paths(manifest.table, split="")
    frames = folds_of(manifest, replace(config, folds=folds))
    validates = [path for frame in frames for path in frame["path"][frame["split"] == "val"]]
    assert len(validates) == len(set(validates))
    labelled = set(whole["path"][whole["label"].notna()])
    assert set(validates) & labelled == labelled - closed
    for frame in frames:
        assert set(frame["split"]) <= {"train", "val", "unused"}
        assert closed <= paths(frame, split="unused")
        assert no_group_crosses(frame)
        known = frame[frame["semi_label"] != 0]
        assert (known["split"] == "train").all()
        assert (known["semi_label"] == 1 - 2 * known["label"].astype(int)).all()
        train = frame[frame["split"] == "train"]
        assert (train["label"][train["semi_label"] == 0].fillna(0) == 0).all(), "pollution is 0"
        # What trains but for the abnormal images that are not drawn: the pool without this fold.
        rest = labelled - closed - paths(frame, split="val")
        normal = set(whole["path"][(whole["label"] == 0).fillna(False)])
        assert paths(train, label=0) == rest & normal
        for label in (0, 1):
            count = [(f["label"][f["split"] == "val"] == label).sum() for f in frames]
            assert max(count) - min(count) <= 2 * largest_group(whole)


def test_known_abnormal_images_are_drawn_anew_in_each_fold():
    """One order of draw for all folds would give all of them nearly the same."""
    frames = folds_of(random_clinic(3, patients=600), SplitConfig(folds=5))
    known = [paths(frame, semi_label=-1) for frame in frames]
    for first, second in zip(known, known[1:], strict=False):
        assert len(first & second) < 0.4 * len(first)
    for frame in frames:
        train = frame[frame["split"] == "train"]
        assert abs((train["semi_label"] == -1).mean() - 0.05) < 9 / len(train)


def test_folds_depend_on_the_seed_and_not_on_the_order_of_rows_or_the_label_budget():
    manifest, config = random_clinic(5), SplitConfig(folds=4, fold=2)
    frame = quiet_split(manifest, config)
    order = np.random.default_rng(0).permutation(len(manifest.table))
    mixed = quiet_split(manifest_of(manifest.table.iloc[order]), config)
    pd.testing.assert_frame_equal(
        frame.sort_values("path", ignore_index=True), mixed.sort_values("path", ignore_index=True)
    )
    more = quiet_split(manifest, replace(config, known_abnormal=0.2))
    assert paths(more, split="val") == paths(frame, split="val")
    assert paths(more, semi_label=-1) > paths(frame, semi_label=-1)
    given = with_sets(manifest, 1)
    frames = [quiet_split(given, replace(config, seed=seed)) for seed in (1, 2)]
    assert paths(frames[0], split="val") != paths(frames[1], split="val")


def test_a_split_without_folds_is_what_it_was():
    manifest = random_clinic(2)
    pd.testing.assert_frame_equal(
        quiet_split(manifest, SplitConfig()), quiet_split(manifest, SplitConfig(folds=0, fold=0))
    )


def test_no_warning_is_of_the_closed_test_set():
    with warnings.catch_warnings():
        warnings.simplefilter("error", SplitWarning)
        make_split(random_clinic(4), SplitConfig(folds=3))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"folds": 1}, "split.folds is 1; allowed: 0 .none., or 2 to 100"),
        ({"folds": True}, "split.folds is True"),
        ({"folds": 5, "fold": 5}, "split.fold is 5; allowed: 0 to 4"),
        ({"fold": 1}, "split.fold is 1; allowed: 0, as split.folds is 0"),
        ({"folds": 5, "scheme": "paper"}, "split.folds is 5; allowed with split.scheme paper: 0"),
    ],
)
def test_settings_out_of_range_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        SplitConfig(**change)


def tiny(normal, abnormal, **columns):
    label = [0] * normal + [1] * abnormal
    paths = [f"{i}.png" for i in range(len(label))]
    table = {"path": paths, "label": label, "patient": paths, **columns}
    return manifest_of(pd.DataFrame(table))


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        (
            tiny(9, 9, split=["train"] * 4 + ["test"] * 5 + ["train"] * 9),
            "split.folds is 5, but outside the test set 4 groups have only normal images",
        ),
        (
            tiny(9, 9, split=["train"] * 12 + ["test"] * 6),
            "split.folds is 5, but outside the test set 3 groups have only abnormal images",
        ),
        (tiny(20, 20, semi_label=[0] * 39 + [-1]), "split.folds is 5; allowed: 0, as manifest"),
    ],
)
def test_what_has_too_few_groups_is_refused_in_one_line(manifest, said):
    with pytest.raises(InputError, match=said) as error:
        quiet_split(manifest, SplitConfig(folds=5))
    assert "\n" not in str(error.value)


def test_as_many_groups_as_folds_are_enough():
    for frame in folds_of(tiny(9, 9, split=["train"] * 14 + ["test"] * 4), SplitConfig(folds=5)):
        val = frame[frame["split"] == "val"]
        assert set(val["label"]) == {0, 1}


@pytest.mark.parametrize("own_sets", [False, True])
@pytest.mark.parametrize("folds", [0, 4])
def test_a_number_of_known_abnormal_images_is_that_many(own_sets, folds):
    manifest = random_clinic(8, patients=400)
    manifest = with_sets(manifest, 8) if own_sets else manifest
    frames = [
        quiet_split(manifest, SplitConfig(known_abnormal=count, folds=folds))
        for count in (10, 40, 80)
    ]
    for frame, count in zip(frames, (10, 40, 80), strict=True):
        assert abs((frame["semi_label"] == -1).sum() - count) <= largest_group(frame) / 2
        assert paths(frame, split="train", label=0) == paths(frames[0], split="train", label=0)
        assert paths(frame, split="val") == paths(frames[0], split="val")
    known = [paths(frame, semi_label=-1) for frame in frames]
    assert known[0] < known[1] < known[2]


@pytest.mark.parametrize("own_sets", [False, True])
@pytest.mark.parametrize("folds", [0, 4])
def test_all_labels_are_those_of_the_training_part(own_sets, folds):
    manifest = random_clinic(9, patients=200)
    manifest = with_sets(manifest, 9) if own_sets else manifest
    usual = quiet_split(manifest, SplitConfig(folds=folds))
    opened = quiet_split(manifest, SplitConfig(folds=folds, labels="all"))
    for name in ("val", "test"):
        assert paths(opened, split=name) == paths(usual, split=name)
    train = opened[opened["split"] == "train"]
    abnormal = train[train["label"] == 1]
    assert len(abnormal) > 3 * (usual["semi_label"] == -1).sum()
    assert (abnormal["semi_label"] == -1).all()
    if own_sets or folds:
        left = opened[(opened["split"] == "unused") & (opened["label"] == 1)]
        closed = paths(manifest.table, split="") | paths(manifest.table, split="test")
        assert paths(left) <= (closed or paths(quiet_split(manifest, SplitConfig()), split="test"))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": "some"}, "split.labels is 'some'; allowed: budget, all"),
        ({"labels": "all", "pollution": 0.1}, "split.labels is 'all'; allowed: budget with"),
        ({"labels": "all", "scheme": "paper"}, "split.labels is 'all'; allowed: budget with"),
        ({"known_abnormal": 10.5}, "split.known_abnormal is 10.5; allowed"),
        ({"known_abnormal": float("inf")}, "split.known_abnormal is inf; allowed"),
    ],
)
def test_budgets_out_of_range_are_refused(change, said):
    with pytest.raises(InputError, match=said):
        SplitConfig(**change)
