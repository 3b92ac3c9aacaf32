"""Multi-centre semi-supervised fine-tuning around k-means centres (paper, Sec. 2.2 and Eq. 2)."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.data.augment import finetune_augment
from selftaught.errors import InputError, require
from selftaught.losses import mad_loss_with_assignment, nearest_center
from selftaught.losses.spheres import Assignment
from selftaught.methods.begin import away_from_zero, normal_rows, take_encoder
from selftaught.methods.occupancy import count, occupancy, prune
from selftaught.methods.task import Start
from selftaught.methods.tuned import Tuned, TunedOptions
from selftaught.models.heads import Embedder
from selftaught.models.network import Network
from selftaught.search import kmeans
from selftaught.semi_labels import KNOWN_ABNORMAL

RESTARTS = 10


@dataclass(frozen=True, kw_only=True)
class SpheresOptions(TunedOptions):
    """Multi-centre semi-supervised fine-tuning (paper, Eq. 2).

    Args:
        centers: hypersphere centres found by k-means; 1 = uni-modal (Deep SAD).
        gamma: a centre with fewer than gamma times the largest centre's images is removed.
        eta: weight of known images.
        center_epsilon: centre coordinates closer to 0 than this are pushed to +-this; 0 stays.
        center_views: plain, or augmented = random views for k-means as published.
        share: share of each global batch that is known abnormal, in whole images, at least one;
            0 = images as they come.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 40, "milestones": [28, 36], "centers": 20},
        "paper": {
            "augment": asdict(finetune_augment("paper")),
            "center_views": "augmented",
        },
    }

    epochs: int = 150
    milestones: list[int] = field(default_factory=lambda: [90, 140])
    centers: int = 100
    gamma: float = 0.05
    eta: float = 1.0
    center_epsilon: float = 0.1
    center_views: Literal["plain", "augmented"] = "plain"
    share: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("centers", self.centers, "1 to 65536", 1 <= self.centers <= 65536)
        require("gamma", self.gamma, "0 to 1", 0 <= self.gamma <= 1)
        require("eta", self.eta, "above 0", 0 < self.eta < math.inf)
        epsilon = self.center_epsilon
        require("center_epsilon", epsilon, "0 or more", 0 <= epsilon < math.inf)
        views = self.center_views
        require("center_views", views, "plain, augmented", views in ("plain", "augmented"))
        require("share", self.share, "0 or more, below 1", 0 <= self.share < 1)
        fine = not self.share or self.batch_size >= 2
        require("batch_size", self.batch_size, "2 or more with share above 0", fine)


class Spheres(Tuned):
    """Images not known to be abnormal near their nearest centre, known abnormal ones far away.

    The centres never move. Images not known to be abnormal are counted at their nearest centre;
    `close_epoch` removes for good every centre with fewer than gamma times the largest count.
    """

    Options = SpheresOptions
    score_name = "distance to the nearest centre"
    options: SpheresOptions
    centers: Tensor
    active: Tensor
    counts: Tensor

    def __init__(self, options: SpheresOptions, network: Network) -> None:
        super().__init__(options, network)
        self.embedder = network.embedder()
        k, width = options.centers, self.embedder.head.widths[-1]
        self.register_buffer("centers", torch.zeros(k, width))
        self.register_buffer("active", torch.ones(k, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(k, dtype=torch.int64))
        self.settle()

    def check(self, labels: Tensor) -> None:
        """Refuse more centres than images that are not known to be abnormal."""
        images, k = int((labels != KNOWN_ABNORMAL).sum()), self.options.centers
        if images < k:
            raise ValueError(
                f"centers is {k}, but only {images} training images are not known to be "
                f"abnormal; allowed: 1 to {images}"
            )

    @property
    def known_share(self) -> float:
        """Of each batch."""
        return self.options.share

    def begin(self, start: Start) -> None:
        """The encoder of the stage before under a fresh head, and k-means centres."""
        take_encoder("spheres", start, self.embedder.encoder)
        rows = normal_rows(start)
        z = start.features(rows, random=self.options.center_views == "augmented")
        try:
            Spheres.check(self, torch.zeros(len(z)))  # some may not have been readable
        except ValueError as error:
            raise InputError(f"{self.options.method}: {error}") from error
        found = start.alone(
            lambda: kmeans(z, self.options.centers, seed=start.seed, restarts=RESTARTS)
        )
        filled = occupancy(found.counts, found.counts >= 0)
        start.note(f"k-means: {filled}; {self.options.centers} centres were asked for")
        self.centers.copy_(away_from_zero(found.centers.float(), self.options.center_epsilon))

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Eq. 2 of a batch; counts the batch's images per centre while training."""
        z = self.embed(batch)[1]
        nearest = mad_loss_with_assignment(
            z,
            self.centers,
            batch["semi_label"],
            eta=self.options.eta,
            active=self.active,
            reduction="none",
            check_values=False,
        )
        if self.training:
            # A row too far for its distance to be a number has index -1; the loop stops over it.
            counted = batch["semi_label"] != KNOWN_ABNORMAL
            self.counts += count(nearest.center, len(self.counts), counted)
        return {"loss": self.loss(nearest, batch)}

    def loss(self, nearest: Assignment, batch: dict[str, Any]) -> Tensor:
        """Mean of a batch from the losses, distances and centres of its images."""
        return nearest.loss.mean()

    def scorer(self) -> nn.Module:
        """Distance to the nearest centre that is left."""
        return NearestCenter(self.embedder, self.centers[self.active])

    @torch.no_grad()
    def close_epoch(self) -> dict[str, float]:
        """Prune, start counting anew and return the figures of the epoch's occupancy."""
        counts = distributed.sum_over_ranks(self.counts)
        filled = occupancy(counts, self.active)
        total = max(int(counts.sum()), 1)
        self.active.copy_(prune(counts, self.active, self.options.gamma))
        figures = {
            "centers": int(self.active.sum()),
            "occupancy_max": int(counts.max()) / total,
            "empty_centers": filled.dead,
            "occupancy_min": filled.smallest / max(filled.total, 1),
            "effective_centers": filled.effective,
        }
        self.counts.zero_()
        return figures

    def check_epoch(self, epoch: int) -> list[str]:
        """Fewer than two centres left after the first epoch of a multi-centre run."""
        left, k = int(self.active.sum()), len(self.active)
        if epoch == 0 and k > 1 and left < 2:
            return [
                f"{left} of {k} centres is left after the first epoch: the multi-centre model "
                "has become uni-modal; compare the input range of both stages and the embedding "
                "spread"
            ]
        return []

    @torch.no_grad()
    def before_save(self) -> None:
        """Move all ranks' counts to rank 0, so that rank 0's buffers hold the whole state."""
        distributed.sum_over_ranks(self.counts)
        self.after_load()

    @torch.no_grad()
    def after_load(self) -> None:
        """Leave the counts to rank 0."""
        if not distributed.is_main():
            self.counts.zero_()


class NearestCenter(nn.Module):
    """Images -> distance to the nearest centre, not squared, and the number of that centre.

    Args:
        embedder: encoder and head.
        centers: (K, D) float32, those that are left.
    """

    centers: Tensor

    def __init__(self, embedder: Embedder, centers: Tensor) -> None:
        super().__init__()
        self.embedder = embedder
        self.register_buffer("centers", centers)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,) float32, `center` (B,) int64, and the features `h` and `z`."""
        h, z = self.embedder(images)
        squared, center = nearest_center(z, self.centers)
        return {"score": squared.sqrt(), "center": center, "h": h, "z": z}


TASKS = {"spheres": Spheres}
