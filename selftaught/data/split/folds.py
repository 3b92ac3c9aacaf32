"""Cross-validation inside what is not the test set; rules in `data.split`."""

import numpy as np

from selftaught.data.manifest import Manifest
from selftaught.data.split.config import SplitConfig
from selftaught.data.split.default import evaluation_first
from selftaught.data.split.given import draw_labels, given_sets
from selftaught.data.split.groups import TEST, TRAIN, UNUSED, VAL, Assignment, Groups, ranked
from selftaught.errors import InputError


def draw_fold(
    manifest: Manifest, groups: Groups, truth: np.ndarray, config: SplitConfig
) -> Assignment:
    """One fold as val, the others as train with labels of their own draw; no image tests.

    Args:
        manifest: the images; its own sets, where it has some, name the test set.
        groups: of the manifest.
        truth: (N,) labels, -1 blank.
        config: the settings, with `folds`.

    Raises:
        InputError: too few groups for so many folds.
    """
    pool = _pool(manifest, groups, config)
    sets = np.where(pool, TRAIN, UNUSED).astype(np.int8)
    sets[pool & (_folds(groups, pool, truth, config)[groups.codes] == config.fold)] = VAL
    if config.unlabelled == "unused":
        sets[(sets == TRAIN) & (truth < 0)] = UNUSED
    return draw_labels(groups, truth, config, sets, f"{config.seed}\0fold {config.fold}")


def _pool(manifest: Manifest, groups: Groups, config: SplitConfig) -> np.ndarray:
    """(N,) bool: all that may train or validate, whatever the label budget."""
    if (manifest.table["split"] != "").any():
        given = given_sets(manifest, groups)
        return (given == TRAIN) | (given == VAL)
    sets = np.full(len(groups.names), UNUSED, np.int8)
    evaluation_first(groups, np.zeros(len(groups.names), bool), config, sets)
    return sets[groups.codes] != TEST


def _folds(groups: Groups, pool: np.ndarray, truth: np.ndarray, config: SplitConfig) -> np.ndarray:
    """(G,) the fold of each group with a label in the pool, -1 of the others, which always train.

    Kind by kind, each group in the order of draw goes to the fold with the fewest images so far.
    """
    normal, abnormal = (
        np.bincount(groups.codes[pool & (truth == label)], minlength=len(groups.names))
        for label in (0, 1)
    )
    kinds = {
        "only normal": (normal > 0) & (abnormal == 0),
        "only abnormal": (normal == 0) & (abnormal > 0),
        "normal and abnormal": (normal > 0) & (abnormal > 0),
    }
    sizes, none = normal + abnormal, np.zeros(len(groups.names), bool)
    folds = np.full(len(groups.names), -1)
    for kind, chosen in kinds.items():
        members = ranked(groups, np.flatnonzero(chosen), f"{config.seed}\0folds", none)
        if kind.startswith("only") and len(members) < config.folds:
            raise InputError(
                f"split.folds is {config.folds}, but outside the test set {len(members)} groups "
                f"have {kind} images; allowed: 2 to as many folds as there are such groups, or 0"
            )
        filled = np.zeros(config.folds, np.int64)
        for member in members:
            folds[member] = filled.argmin()
            filled[folds[member]] += sizes[member]
    return folds
