"""Batches of kept features, in the place of views, where a part of the task is held still."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from selftaught.data.images.bad_files import Problem
from selftaught.data.plan import PARAMETERS, Augment, draw
from selftaught.methods.task import Rows

MIRROR = PARAMETERS.index("horizontal_flip")


class FeatureBatch(NamedTuple):
    """One batch of features.

    Attributes:
        features: (B, W), of the plain or of the mirrored view of each image.
        ids: (B,) int64, as in `ImageBatch`.
        problems: none; images that cannot be read were noted with the features.
    """

    features: Tensor
    ids: Tensor
    problems: tuple[Problem, ...] = ()


class Features:
    """What a frozen part gives for every training image, by the requests that a pipeline takes.

    Args:
        kept: `row` (N,) ascending ids of those that can be read, `plain` (N, W) and, where the
            augmentation mirrors, `mirrored` (N, W).
        augment: draws the mirror for each image and epoch as it does for views.
        seed: of the augmentation plan.
        stage: of the augmentation plan.
        others: epoch and id of an image that cannot be read -> those to take in its place, in turn.
    """

    def __init__(
        self,
        kept: Mapping[str, Tensor],
        *,
        augment: Augment,
        seed: int,
        stage: str,
        others: Callable[[int, int], list[int]],
    ) -> None:
        self.kept, self.rows = kept, kept["row"].numpy()
        self.augment, self.seed, self.stage, self.others = augment, seed, stage, others

    def batches(self, requests: Iterable[tuple[int, Rows]]) -> Iterator[FeatureBatch]:
        """Batches in the order of the requests."""
        for epoch, asked in requests:
            ids = self._readable(epoch, asked)
            places = torch.from_numpy(np.searchsorted(self.rows, ids))
            features = self.kept["plain"][places]
            if "mirrored" in self.kept:
                drawn = draw(
                    self.augment,
                    seed=self.seed,
                    stage=self.stage,
                    epoch=epoch,
                    samples=ids,
                    views=1,
                )
                turned = torch.from_numpy(drawn[:, 0, MIRROR] == 1)[:, None]
                features = torch.where(turned, self.kept["mirrored"][places], features)
            yield FeatureBatch(features, torch.from_numpy(ids))

    def _readable(self, epoch: int, asked: Rows) -> Rows:
        """The ids asked for, another in the place of each that could not be read."""
        there = np.isin(asked, self.rows)
        if there.all():
            return asked
        known, ids = set(self.rows.tolist()), []
        for one, readable in zip(asked.tolist(), there.tolist(), strict=True):
            tried = [one] if readable else self.others(epoch, one)
            ids += [other for other in tried if other in known][:1]
        return np.array(ids, np.int64)
