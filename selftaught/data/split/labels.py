"""The label draw of a training set: known normal, known abnormal and pollution budgets."""

import warnings
from typing import NamedTuple

import numpy as np

from selftaught.data.split.config import SplitConfig, SplitWarning
from selftaught.data.split.groups import nearest_prefix
from selftaught.errors import InputError


class Shares(NamedTuple):
    """Shares of the nominal training set; together with `other` they add to 1."""

    known_normal: float
    known_abnormal: float
    polluted: float

    @property
    def other(self) -> float:
        """Share of normal (known or not) and unlabelled images, w in `data.split`."""
        return 1.0 - self.known_abnormal - self.polluted


def shares(config: SplitConfig, any_abnormal: bool) -> Shares:
    """The shares a, b and p (1 - a - b) of the training set.

    b is 0 without abnormal images, and where these are counted: they come on top.
    """
    b = config.known_abnormal if any_abnormal and config.known_abnormal < 1 else 0.0
    return Shares(config.known_normal, b, config.pollution * (1.0 - config.known_normal - b))


def known_normal(sizes: np.ndarray, budget: Shares, nominal: float) -> int:
    """How many of the ranked training groups with normal images are known."""
    return nearest_prefix(sizes, budget.known_normal * nominal, int(budget.known_normal > 0))


def abnormal_draw(
    sizes: np.ndarray, budget: Shares, nominal: float, config: SplitConfig
) -> tuple[int, int]:
    """Draw known abnormal groups from the front of the order and polluting ones from its end.

    Args:
        sizes: (G,) abnormal images of the ranked groups training may use.
        budget: shares of the training set.
        nominal: size of the training set.
        config: for messages.

    Returns:
        (known, polluted) counts of groups.

    Raises:
        InputError: too few abnormal images are left for `split.pollution`.
    """
    if config.labels == "all":
        return len(sizes), 0
    counted = config.known_abnormal >= 1
    wanted = config.known_abnormal if counted else budget.known_abnormal * nominal
    known = nearest_prefix(sizes, wanted, int(wanted > 0))
    if wanted > sizes.sum() + 0.5:
        warnings.warn(
            f"split.known_abnormal {config.known_abnormal:g} asks for {wanted:.0f} abnormal "
            f"training images; all {sizes.sum()} that training may use are known",
            SplitWarning,
            stacklevel=4,
        )
    left = sizes[known:][::-1]
    wanted = budget.polluted * nominal
    if wanted > left.sum() + 0.5:
        raise InputError(
            f"split.pollution {config.pollution:g} asks for {wanted:.0f} unknown abnormal training "
            f"images; {left.sum()} are left, allowed: a smaller share"
        )
    return known, nearest_prefix(left, wanted)
