"""SOEL: Deep SAD where the most distant unknown images count as half abnormal, for polluted sets.

Li et al. 2023, "Deep anomaly detection under labeling budget constraints", arXiv:2302.07832; the
soft labels are those of latent outlier exposure (Qiu et al. 2022, arXiv:2202.08088).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from selftaught import distributed
from selftaught.errors import require
from selftaught.losses.spheres import Assignment
from selftaught.methods.spheres import Spheres, SpheresOptions
from selftaught.methods.task import Start, System
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN

EPS = 1e-6  # of the loss of known abnormal images
MOST = 0.5  # beyond it the more distant images would be the normal ones
NOT_YET = -1.0
LEAST_KNOWN = 2  # of each kind, from which a density can be estimated
ROUNDS = 1000


@dataclass(frozen=True, kw_only=True)
class SOELOptions(SpheresOptions):
    """Deep SAD with soft labels of the unknown images (Li et al. 2023).

    Args:
        alpha: share of the unknown images that counts as half abnormal, at most 0.5; auto =
            estimated from the known images after the first epoch, which takes some fifty of each
            kind to be better than a guess.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 40, "milestones": [28, 36]},
        "paper": SpheresOptions.presets["paper"],
    }

    centers: int = 1
    alpha: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = self.alpha
        fine = alpha == "auto" or 0 <= alpha <= MOST
        require("alpha", alpha, f"auto or 0 to {MOST}", fine)


class SOEL(Spheres):
    """Deep SAD in which the alpha N most distant of N unknown images have the soft label 1/2.

    Their loss is (d2 + 1 / (d2 + eps)) / 2. Distances are those of an image's last training step,
    ranked at the end of every epoch; the first epoch is Deep SAD. The published ranking within a
    batch would label nobody where alpha times the batch size is below one. With alpha 0 all epochs
    are Deep SAD, bit for bit.

    As both losses of an image depend on its distance alone, the images with the largest difference
    of the losses are the most distant ones.
    """

    Options = SOELOptions
    copied = ("distances", "alpha")
    options: SOELOptions
    rows: Tensor
    known: Tensor
    distances: Tensor
    soft: Tensor
    alpha: Tensor

    def __init__(self, options: SOELOptions, network: Network) -> None:
        super().__init__(options, network)
        images = network.images
        self.register_buffer("rows", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("known", torch.zeros(images, dtype=torch.int64))
        self.register_buffer("distances", torch.zeros(images))
        self.register_buffer("soft", torch.zeros(images, dtype=torch.bool))
        self.register_buffer("alpha", torch.tensor(NOT_YET))

    def check(self, labels: Tensor) -> None:
        """Refuse to estimate alpha from hardly any known images."""
        super().check(labels)
        for label, name in ((KNOWN_ABNORMAL, "abnormal"), (KNOWN_NORMAL, "normal")):
            if self.options.alpha == "auto" and int((labels == label).sum()) < LEAST_KNOWN:
                raise ValueError(
                    f"alpha is 'auto', but fewer than {LEAST_KNOWN} training images are known to "
                    f"be {name}; allowed: a number of 0 to {MOST}, or split.known_{name} so high "
                    "that there are enough"
                )

    def begin(self, start: Start) -> None:
        """As in spheres, and who is unknown."""
        super().begin(start)
        rows = torch.from_numpy(start.rows)  # ascending
        self.rows.copy_(rows)
        self.known.copy_(start.labels[rows])

    def loss(self, nearest: Assignment, batch: dict[str, Any]) -> Tensor:
        """Mean of a batch; remembers its distances while training."""
        places = torch.searchsorted(self.rows, batch["ids"].to(self.rows.device, non_blocking=True))
        if self.training:
            self._remember(places, nearest.squared_distance)
        halves = (nearest.loss + 1 / (nearest.loss + EPS)) / 2
        return torch.where(self.soft[places], halves, nearest.loss).mean()

    @torch.no_grad()
    def _remember(self, places: Tensor, squared: Tensor) -> None:
        # All ranks keep those of all, as buffers are what rank 0 has.
        pairs = torch.stack([places.double(), squared.double()], 1)
        everyone = distributed.gather(pairs, distributed.world_group())
        self.distances[everyone[:, 0].long()] = everyone[:, 1].to(self.distances.dtype)

    @torch.no_grad()
    def close_epoch(self) -> dict[str, float]:
        """Prune as in spheres, rank the unknown images and label the most distant."""
        figures = super().close_epoch()
        unknown, seen = self.known == UNKNOWN, self.distances > 0
        if self.options.alpha != "auto":
            self.alpha.fill_(self.options.alpha)
        elif self.alpha == NOT_YET:
            # Each distance is from before the network learnt from that image, known or unknown.
            logs = [
                self.distances[seen & (self.known == label)].log()
                for label in (KNOWN_ABNORMAL, KNOWN_NORMAL, UNKNOWN)
            ]
            self.alpha.fill_(min(abnormal_share(*logs), MOST))
            distributed.broadcast_tensor(self.alpha)
        labelled = round(float(self.alpha) * int(unknown.sum()))
        # The stable order makes images at one distance no question of the device.
        ranked = torch.where(unknown, self.distances, -1.0).sort(descending=True, stable=True)
        self.soft.zero_()
        self.soft[ranked.indices[:labelled]] = True
        return figures | {"alpha": float(self.alpha), "soft_labels": labelled}

    def check_epoch(self, epoch: int) -> list[str]:
        """That no unknown image is labelled, though alpha was to be estimated."""
        lines = super().check_epoch(epoch)
        if epoch == 0 and self.options.alpha == "auto" and not self.alpha:
            lines.append("alpha is estimated as 0: no unknown image gets a soft label")
        return lines


def abnormal_share(abnormal: Tensor, normal: Tensor, unknown: Tensor) -> float:
    """Share of abnormal images among unknown ones, by maximum likelihood (Saerens et al. 2002).

    The known images are drawn by their label, so that their own share says nothing of the unknown
    ones', and neither does that share weighted by the density of the scores, as published for
    labels asked for by score: half of the known are abnormal wherever the scores do not separate.
    What carries over is how each kind's scores are distributed.

    Args:
        abnormal: (A,) scores of known abnormal images.
        normal: (B,) scores of known normal images.
        unknown: (N,) scores of the others.

    Returns:
        0 to 1; 0 where a kind has too few different scores for a density.
    """
    from scipy.stats import gaussian_kde

    known = [one.double().cpu().numpy() for one in (abnormal, normal)]
    if not len(unknown) or any(len(np.unique(one)) < LEAST_KNOWN for one in known):
        return 0.0
    likely, unlikely = (gaussian_kde(one)(unknown.double().cpu().numpy()) for one in known)
    share = 0.5
    for _ in range(ROUNDS):  # expectation maximisation; a score that neither kind has says nothing
        weight = share * likely + (1 - share) * unlikely
        share = float(
            np.divide(share * likely, weight, where=weight > 0, out=share + 0 * weight).mean()
        )
    return share


TASKS = {"soel": SOEL}
SYSTEMS = {
    "soel": System(
        "SOEL, our pretext",
        pretext="ntxent",
        finetune="soel",
        changes={"finetune.centers": 1},
        note="Li et al. 2023 with the pretext, network and steps of Uni-modal; images are ranked "
        "over the whole training set after each epoch in place of a batch, and alpha is estimated "
        "from the densities of the known images' scores, as labels here are drawn by kind.",
        extra=True,
    ),
}
