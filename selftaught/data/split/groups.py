"""Groups of images that stay together, their order of draw, and prefixes of that order."""

import hashlib
import warnings
from typing import NamedTuple

import numpy as np
import pandas as pd

from selftaught.data.manifest import Manifest
from selftaught.data.manifest.check import near_name, show
from selftaught.data.manifest.spelling import one_spelling
from selftaught.data.split.config import SplitConfig, SplitWarning
from selftaught.errors import InputError

TRAIN, VAL, TEST, UNUSED = range(4)
NORMAL, ABNORMAL, BLANK = 0, 1, -1


class Groups(NamedTuple):
    """The groups of a manifest, sorted by name so that the order of rows does not count.

    Attributes:
        names: (G,) names in sorted order.
        codes: (N,) int64, the group of every row.
        normal, abnormal, blank: (G,) int64, images of each label in the group.
    """

    names: np.ndarray
    codes: np.ndarray
    normal: np.ndarray
    abnormal: np.ndarray
    blank: np.ndarray

    @property
    def labelled(self) -> np.ndarray:
        """(G,) int64, images with a label in each group."""
        return self.normal + self.abnormal

    @property
    def all_normal(self) -> np.ndarray:
        """Indices of the groups whose labelled images are all normal."""
        return np.flatnonzero((self.normal > 0) & (self.abnormal == 0))

    @property
    def all_abnormal(self) -> np.ndarray:
        """Indices of the groups whose labelled images are all abnormal."""
        return np.flatnonzero((self.normal == 0) & (self.abnormal > 0))

    @property
    def mixed(self) -> np.ndarray:
        """Indices of the groups with normal and abnormal images."""
        return np.flatnonzero((self.normal > 0) & (self.abnormal > 0))

    @property
    def all_blank(self) -> np.ndarray:
        """Indices of the groups without any label."""
        return np.flatnonzero(self.labelled == 0)


class Assignment(NamedTuple):
    """What a scheme decides: `sets` (N,) int8 TRAIN..UNUSED and `semi` (N,) int8 -1, 0, +1."""

    sets: np.ndarray
    semi: np.ndarray


def truth_of(table: pd.DataFrame) -> np.ndarray:
    """Labels as (N,) int8 with BLANK for NA."""
    return table["label"].fillna(BLANK).to_numpy(np.int8)


def group_images(manifest: Manifest, config: SplitConfig) -> Groups:
    """Find the groups that must not cross sets.

    The name is the cell of column `config.group`, in one spelling; where it is blank and the column
    is `patient`, the study; where that is blank too, the image's own path. Scheme `paper` adds the
    body part.

    Raises:
        InputError: the manifest has no such column.
    """
    table = manifest.table
    if config.group not in table.columns or config.group in ("label", "semi_label", "split"):
        allowed = [c for c in table.columns if c not in ("label", "semi_label", "split")]
        raise InputError(
            f"split.group is {show(config.group)}; allowed, from {manifest.name}: "
            f"{', '.join(show(column) for column in allowed)}"
        )
    names = table[config.group].to_numpy(object)
    if config.group not in ("path", "mask"):
        names = np.array(one_spelling(names, config.group, manifest.name), object)
    if config.group == "patient":
        names = np.where(names == "", table["study"].to_numpy(object), names)
    alone = names == ""
    names = np.where(alone, table["path"].to_numpy(object), names)
    if alone.any():
        warnings.warn(
            f"{manifest.name}: {int(alone.sum())} of {len(alone)} images have no {config.group}; "
            "each is its own group, so images of one person may cross sets"
            f"{near_name(config.group, table.columns)}",
            SplitWarning,
            stacklevel=3,
        )
    if config.scheme == "paper":
        names = names + "|" + table["body_part"].to_numpy(object)
    codes, unique = pd.factorize(names, sort=True)
    truth = truth_of(table)
    counts = [
        np.bincount(codes[truth == label], minlength=len(unique))
        for label in (NORMAL, ABNORMAL, BLANK)
    ]
    return Groups(np.asarray(unique, object), codes.astype(np.int64), *counts)


def ranked(groups: Groups, members: np.ndarray, seed: int | str, first: np.ndarray) -> np.ndarray:
    """Put groups into the order of draw, a hash of (seed, name): adding data moves nobody else.

    Args:
        groups: all groups.
        members: indices to order.
        seed: of the split.
        first: (G,) bool, groups that come before all others.
    """
    keys = [
        hashlib.blake2b(f"{seed}\0{groups.names[member]}".encode(), digest_size=8).digest()
        for member in members
    ]
    numbers = np.array([int.from_bytes(key, "big") for key in keys], np.uint64)
    return members[np.lexsort((members, numbers, ~first[members]))]


def nearest_prefix(sizes: np.ndarray, target: float, low: int = 0, high: int | None = None) -> int:
    """How many leading groups come nearest to `target` images, between `low` and `high` groups.

    It never falls when `target` grows, which is what makes draws of growing budgets nested.
    """
    high = len(sizes) if high is None else max(high, 0)
    totals = np.concatenate([[0], np.cumsum(sizes)])[: high + 1]
    low = min(low, high)
    return low + int(np.abs(totals[low:] - target).argmin())


def halve(groups: Groups, members: np.ndarray, sets: np.ndarray) -> None:
    """Give half of the labelled images of `members` to val, the rest to test, at least one each."""
    sizes = groups.labelled[members]
    low = 1 if len(members) > 1 else 0
    middle = nearest_prefix(sizes, sizes.sum() / 2, low, len(members) - 1)
    sets[members[:middle]] = VAL
    sets[members[middle:]] = TEST
