"""Scheme `paper`: the published draw over (patient, body part) groups; rules in `data.split`."""

import numpy as np

from selftaught.data.split.config import SplitConfig
from selftaught.data.split.groups import TEST, TRAIN, UNUSED, VAL, Assignment, Groups
from selftaught.errors import InputError
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN


def draw_paper(
    groups: Groups, truth: np.ndarray, given: np.ndarray | None, config: SplitConfig
) -> Assignment:
    """Divide images as the paper did (Spahr et al. 2021).

    Args:
        groups: of the manifest, one for each patient and body part.
        truth: (N,) labels, -1 blank.
        given: must be None: the paper draws its own known labels.
        config: the settings.

    Raises:
        InputError: pollution is asked for, semi labels are given, or groups are too few.
    """
    if given is not None:
        raise InputError(
            "split.scheme is 'paper' but the manifest gives semi_label without split; allowed: "
            "split.scheme default, or a manifest without semi_label"
        )
    if config.pollution:
        raise InputError(f"split.pollution is {config.pollution:g}; allowed with scheme paper: 0")
    f, a, b = config.train_fraction, config.known_normal, config.known_abnormal
    total = len(groups.names) - len(groups.all_blank)
    sets = np.full(len(groups.names), UNUSED, np.int8)
    known = np.zeros(len(groups.names), bool)
    wanted = {"normal": int((1 - b) * f * total), "abnormal": int(b * f * total)}
    kinds = {"normal": groups.all_normal, "abnormal": groups.all_abnormal, "mixed": groups.mixed}
    for kind, members in kinds.items():
        members = shuffled(members, config.seed)
        count = wanted.get(kind, 0)
        if count > len(members) - 2 * (kind == "normal") or (kind == "normal" and count < 1):
            raise InputError(
                f"split.train_fraction {f:g} asks for {count} {kind} groups to train on; allowed: "
                f"1 to {max(len(members) - 2 * (kind == 'normal'), 0)} of {total} groups"
            )
        middle = count + (len(members) - count) // 2
        sets[members[:count]] = TRAIN
        sets[members[count:middle]] = VAL
        sets[members[middle:]] = TEST
    sets[groups.all_blank] = TRAIN
    for which in (TRAIN, VAL, TEST):
        share = f if which == TRAIN else (1 - f) / 2
        normal = np.flatnonzero((sets == which) & (groups.normal > 0) & (groups.abnormal == 0))
        abnormal = np.flatnonzero((sets == which) & (groups.abnormal > 0))
        count = len(abnormal) if which == TRAIN else int(b * share * total)
        known[shuffled(normal, config.seed)[: int(a * share * total)]] = True
        known[shuffled(abnormal, config.seed)[:count]] = True
    semi = np.where(truth == 0, KNOWN_NORMAL, KNOWN_ABNORMAL) * (known[groups.codes] & (truth >= 0))
    # In a mixed group that is treated as known abnormal, a normal image is not known.
    semi[(semi == KNOWN_NORMAL) & (groups.abnormal[groups.codes] > 0)] = UNKNOWN
    return Assignment(sets[groups.codes], semi.astype(np.int8))


def shuffled(members: np.ndarray, seed: int) -> np.ndarray:
    """Sorted groups in the order of a fresh legacy NumPy generator, what `random_state` means."""
    return members[np.random.RandomState(seed).permutation(len(members))]
