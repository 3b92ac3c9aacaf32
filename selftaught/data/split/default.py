"""Scheme `default`: validation and test first, then nested label draws; rules in `data.split`."""

import numpy as np

from selftaught.data.split.config import SplitConfig
from selftaught.data.split.groups import (
    TRAIN,
    UNUSED,
    Assignment,
    Groups,
    halve,
    nearest_prefix,
    ranked,
)
from selftaught.data.split.labels import abnormal_draw, known_normal, shares
from selftaught.errors import InputError
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN

EVALUATION_KEEPS = 0.25


def draw_default(
    groups: Groups, truth: np.ndarray, given: np.ndarray | None, config: SplitConfig
) -> Assignment:
    """Divide images that have no split yet.

    Args:
        groups: of the manifest.
        truth: (N,) labels, -1 blank.
        given: (N,) int8 semi labels of the manifest, or None to draw them.
        config: the settings.

    Raises:
        InputError: too few groups, or too few abnormal images for the pollution.
    """
    known_rows = np.zeros(len(truth), bool) if given is None else given != UNKNOWN
    first = np.bincount(groups.codes[known_rows], minlength=len(groups.names)) > 0
    sets = np.full(len(groups.names), UNUSED, np.int8)
    normal, abnormal = evaluation_first(groups, first, config, sets)
    sets[groups.all_blank] = TRAIN
    if given is not None:
        sets[normal] = TRAIN
        sets[abnormal[first[abnormal]]] = TRAIN
        rows = sets[groups.codes]
        return Assignment(rows, np.where(rows == TRAIN, given, UNKNOWN).astype(np.int8))
    known = _labels(groups, normal, abnormal, config, sets)[groups.codes]
    semi = np.where(truth == 0, KNOWN_NORMAL, KNOWN_ABNORMAL) * (known & (truth >= 0))
    return Assignment(sets[groups.codes], semi.astype(np.int8))


def evaluation_first(
    groups: Groups, first: np.ndarray, config: SplitConfig, sets: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Fill val and test; return the ranked normal and abnormal groups left for training."""
    normal, abnormal, mixed = (
        ranked(groups, members, config.seed, first)
        for members in (groups.all_normal, groups.all_abnormal, groups.mixed)
    )
    if len(normal) < 3:
        raise InputError(
            f"split.group {config.group} gives {len(normal)} groups with only normal images; "
            "allowed: at least 3 (train, val, test)"
        )
    f, sizes = config.train_fraction, groups.labelled
    target = min(f * sizes.sum(), (1 - EVALUATION_KEEPS * (1 - f)) * sizes[normal].sum())
    kept_normal = nearest_prefix(sizes[normal], target, 1, len(normal) - 2)
    kept_abnormal = nearest_prefix(sizes[abnormal], f * sizes[abnormal].sum(), 1, len(abnormal) - 2)
    for members in (normal[kept_normal:], abnormal[kept_abnormal:], mixed):
        halve(groups, members, sets)
    return normal[:kept_normal], abnormal[:kept_abnormal]


def _labels(
    groups: Groups,
    normal: np.ndarray,
    abnormal: np.ndarray,
    config: SplitConfig,
    sets: np.ndarray,
) -> np.ndarray:
    """Fill train from the groups left for it; return (G,) bool, the groups whose label is known."""
    sizes = groups.labelled
    budget = shares(config, len(abnormal) > 0)
    blank = groups.blank[groups.all_blank].sum() if config.unlabelled != "unused" else 0
    nominal = sizes[normal].sum() + blank / budget.other
    normal = normal[: nearest_prefix(sizes[normal], budget.other * sizes[normal].sum(), 1)]
    known = np.zeros(len(groups.names), bool)
    known[normal[: known_normal(sizes[normal], budget, nominal)]] = True
    count, polluted = abnormal_draw(sizes[abnormal], budget, nominal, config)
    known[abnormal[:count]] = True
    sets[normal] = TRAIN
    sets[abnormal[:count]] = TRAIN
    sets[abnormal[len(abnormal) - polluted :]] = TRAIN
    return known
