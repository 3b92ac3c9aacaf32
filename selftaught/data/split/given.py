"""A manifest that brings its own split: keep it, draw only what it leaves open."""

import warnings

import numpy as np

from selftaught.data.manifest import Manifest
from selftaught.data.manifest.check import SETS, show
from selftaught.data.split.config import SplitConfig, SplitWarning
from selftaught.data.split.groups import (
    TEST,
    TRAIN,
    UNUSED,
    VAL,
    Assignment,
    Groups,
    nearest_prefix,
    ranked,
)
from selftaught.data.split.labels import abnormal_draw, known_normal, shares
from selftaught.errors import InputError
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN


def keep_split(
    manifest: Manifest,
    groups: Groups,
    truth: np.ndarray,
    given: np.ndarray | None,
    config: SplitConfig,
) -> Assignment:
    """Keep the manifest's sets; draw validation if it has none, and semi labels if it has none.

    Args:
        manifest: its `split` column is filled in at least one row.
        groups: of the manifest.
        truth: (N,) labels, -1 blank.
        given: (N,) int8 semi labels of the manifest, or None to draw them.
        config: the settings.

    Raises:
        InputError: a group crosses sets, train or test is empty, or pollution cannot be met.
    """
    sets = given_sets(manifest, groups)
    if not (sets == VAL).any():
        _draw_validation(groups, truth, given, config, sets)
        warnings.warn(
            f"{manifest.name}: column split has no val; {int((sets == VAL).sum())} training images "
            f"become val (split.val_fraction {config.val_fraction:g} of the labelled groups)",
            SplitWarning,
            stacklevel=3,
        )
    if config.unlabelled == "unused":
        sets[(sets == TRAIN) & (truth < 0)] = UNUSED
    if given is not None:
        return Assignment(sets, given)
    return draw_labels(groups, truth, config, sets, config.seed)


def given_sets(manifest: Manifest, groups: Groups) -> np.ndarray:
    """(N,) int8, the manifest's own sets.

    Raises:
        InputError: a group crosses sets, or train or test is empty.
    """
    codes = {name: code for code, name in enumerate(SETS)} | {"": UNUSED}
    sets = manifest.table["split"].map(codes).to_numpy(np.int8).copy()
    _no_crossing(manifest, groups, sets)
    for code in (TRAIN, TEST):
        if not (sets == code).any():
            raise InputError(f"{manifest.name}: column split has no row {show(SETS[code])}")
    return sets


def _no_crossing(manifest: Manifest, groups: Groups, sets: np.ndarray) -> None:
    used = np.flatnonzero(sets != UNUSED)
    lowest = np.full(len(groups.names), UNUSED, np.int8)
    np.minimum.at(lowest, groups.codes[used], sets[used])
    crossing = used[sets[used] != lowest[groups.codes[used]]]
    if len(crossing):
        row = int(crossing[0])
        code = groups.codes[row]
        other = int(used[(groups.codes[used] == code) & (sets[used] != sets[row])][0])
        raise InputError(
            f"{manifest.where(row)}: group {show(str(groups.names[code]))} is in "
            f"{SETS[sets[row]]} here and in {SETS[sets[other]]} in {manifest.where(other)}; "
            "allowed: each group in one set"
        )


def _draw_validation(
    groups: Groups,
    truth: np.ndarray,
    given: np.ndarray | None,
    config: SplitConfig,
    sets: np.ndarray,
) -> None:
    """Turn a share of the labelled training groups, normal and abnormal alike, into validation."""
    known = np.zeros(len(truth), bool) if given is None else given != 0
    trains = np.bincount(groups.codes[sets == TRAIN], minlength=len(groups.names)) > 0
    spared = np.bincount(groups.codes[known], minlength=len(groups.names)) > 0
    for kind in (groups.all_normal, groups.all_abnormal, groups.mixed):
        # The end of the order, so that the known labels drawn from its front stay.
        members = ranked(groups, kind[trains[kind] & ~spared[kind]], config.seed, spared)[::-1]
        sizes = groups.labelled[members]
        target = config.val_fraction * sizes.sum()
        chosen = members[: nearest_prefix(sizes, target, 1, len(members) - 1)]
        sets[np.isin(groups.codes, chosen) & (sets == TRAIN)] = VAL


def draw_labels(
    groups: Groups, truth: np.ndarray, config: SplitConfig, sets: np.ndarray, seed: int | str
) -> Assignment:
    """Draw the label budgets within a training set; the abnormal rest becomes unused.

    Args:
        groups: of the manifest.
        truth: (N,) labels, -1 blank.
        config: the settings.
        sets: (N,) int8, of which train is drawn from.
        seed: of the draw.

    Raises:
        InputError: too few abnormal images for the pollution.
    """
    trains = sets == TRAIN
    counts = [
        np.bincount(groups.codes[trains & (truth == label)], minlength=len(groups.names))
        for label in (0, 1, -1)
    ]
    if config.scheme == "paper":
        counts = [np.minimum(count, 1) for count in counts]
    none = np.zeros(len(groups.names), bool)
    normal, abnormal = (ranked(groups, np.flatnonzero(count), seed, none) for count in counts[:2])
    budget = shares(config, len(abnormal) > 0)
    nominal = (counts[0].sum() + counts[2].sum()) / budget.other
    known = np.zeros((2, len(groups.names)), bool)
    known[0, normal[: known_normal(counts[0][normal], budget, nominal)]] = True
    count, polluted = abnormal_draw(counts[1][abnormal], budget, nominal, config)
    known[1, abnormal[:count]] = True
    kept = known[1].copy()
    kept[abnormal[len(abnormal) - polluted :]] = True
    sets = np.where(trains & (truth == 1) & ~kept[groups.codes], UNUSED, sets).astype(np.int8)
    semi = np.full(len(sets), UNKNOWN, np.int8)
    semi[trains & (truth == 0) & known[0][groups.codes]] = KNOWN_NORMAL
    semi[trains & (truth == 1) & known[1][groups.codes]] = KNOWN_ABNORMAL
    return Assignment(sets, semi)
