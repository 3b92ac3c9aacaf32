"""Relative distance: to the nearest of fixed normal prototypes, less that to an abnormal one.

The prototypes are constants, orthogonal and far apart: c_k = r e_k for k = 1..K, and a = r e_{K+1}
for known abnormality. With squared distances e_k and e_a, a temperature tau and a floor R:

    E_n(z) = -tau log (1/K) sum_k exp(-e_k / tau)            soft distance to the nearest normal one
    E_a(z) = -tau log (exp(-e_a / tau) + exp(-R / tau))      to known abnormality, never above R
    s(z)   = (E_n(z) - E_a(z)) / tau

s is the score and the logit of a cross-entropy over stratified batches. No constant embedding has
a loss below the entropy of the batch's share, nor a vanishing gradient. Without a floor and with
K = 1, s is linear: 2 r (z_2 - z_1) / tau.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from selftaught.errors import require
from selftaught.losses.means import mean_above_zero
from selftaught.methods.begin import take_encoder
from selftaught.methods.classifier import ClassifierOptions
from selftaught.methods.kinds import Probability, bce, odds
from selftaught.methods.task import Start, System
from selftaught.methods.tuned import Tuned, TunedOptions
from selftaught.models.heads import Embedder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL


@dataclass(frozen=True, kw_only=True)
class RelativeOptions(TunedOptions):
    """Relative distance to fixed prototypes.

    Args:
        centers: K, normal prototypes; with strata 1 or as many as these.
        radius: r, length of the prototypes, which lie sqrt(2) r apart.
        temperature: tau, of squared distances.
        floor: R in squared radii: an image farther than that from known abnormality scores by its
            distance to the normal prototypes alone; 0 = none.
        share: share of each global batch that is known abnormal, in whole images, at least one.
        strata: column of the manifest, such as body_part, each of whose values has a normal
            prototype of its own; "" = none. A blank cell leaves the prototype open.
        strata_weight: of the cross-entropy that draws images to the prototype of their stratum.
        contamination: share of abnormal images among those not known to be; their share of the
            normal images' loss is taken off again, as far as it stays above 0 in the global batch.
    """

    presets = ClassifierOptions.presets

    epochs: int = 150
    milestones: list[int] = field(default_factory=lambda: [90, 140])
    centers: int = 1
    radius: float = 2.0
    temperature: float = 1.0
    floor: float = 4.0
    share: float = 0.25
    strata: str = ""
    strata_weight: float = 0.25
    contamination: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require("batch_size", self.batch_size, "2 or more", self.batch_size >= 2)
        require("centers", self.centers, "1 or more", self.centers >= 1)
        for name in ("radius", "temperature"):
            value = getattr(self, name)
            require(name, value, "above 0", 0 < value < math.inf)
        for name in ("floor", "strata_weight"):
            value = getattr(self, name)
            require(name, value, "0 or more", 0 <= value < math.inf)
        require("share", self.share, "above 0 and below 1", 0 < self.share < 1)
        pi = self.contamination
        require("contamination", pi, "0 or more, below 1", 0 <= pi < 1)


class Relative(Tuned):
    """Images not known to be abnormal nearer to a normal prototype than to the abnormal one.

    Every global batch holds the same number of known abnormal images, so that the mean over its
    images is the mean of both kinds with constant weights, on any number of ranks.
    """

    Options = RelativeOptions
    score_name = "relative distance to normal and abnormal prototypes"
    options: RelativeOptions
    odds: Tensor

    def __init__(self, options: RelativeOptions, network: Network) -> None:
        super().__init__(options, network)
        self.embedder = network.embedder()
        self.centers = len(network.strata) if options.strata else options.centers
        # Which micro-batches, each clamped by itself, would change.
        self.whole_batch = options.contamination > 0
        self.register_buffer("odds", torch.ones(2))
        self.settle()

    def check(self, labels: Tensor) -> None:
        """Refuse more prototypes than the embedding has room for, and strata that do not fit."""
        options, most = self.options, self.embedder.head.widths[-1] - 1
        if not 1 <= self.centers <= most:
            given = f"centers is {options.centers}"
            if options.strata:
                given = (
                    f"strata is {options.strata!r}, of which the training images have "
                    f"{self.centers} values"
                )
            raise ValueError(f"{given}; allowed: 1 to {most}, one less than model.head ends with")
        if options.centers not in (1, self.centers):
            raise ValueError(
                f"centers is {options.centers}; allowed: 1 or {self.centers}, the values of "
                f"{options.strata} among the training images"
            )

    @property
    def known_share(self) -> float:
        """Of each batch."""
        return self.options.share

    def begin(self, start: Start) -> None:
        """The encoder of the stage before under a fresh head, and the kinds' odds."""
        take_encoder(self.options.method, start, self.embedder.encoder)
        self.odds.copy_(odds(start, self.options.share))
        if self.options.strata:
            names = ", ".join(self.network.strata)
            start.note(f"{self.options.strata}: centres from 0 on are {names}")

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Mean cross-entropy of a batch's scores, and of its declared strata."""
        z = self.embed(batch)[1]
        pulls, abnormal = self.prototypes(z), batch["semi_label"] == KNOWN_ABNORMAL
        score = pulls.score()
        losses = bce(score, abnormal)
        rest: Tensor | float = 0.0
        if pi := self.options.contamination:
            # Weighted so that the mean over the batch is (1 - f) (mean_u l - pi mean_a l).
            normal = torch.where(abnormal, -pi / self.odds[1], 1.0) * functional.softplus(score)
            losses, rest = losses.where(abnormal, 0.0), mean_above_zero(normal.mean())
        if self.options.strata:
            losses = losses + self.options.strata_weight * pulls.strata(batch["stratum"])
        return {"loss": losses.mean() + rest}

    def prototypes(self, z: Tensor) -> "Prototypes":
        """Where embeddings (B, D) lie to the prototypes."""
        return Prototypes(z, self.centers, self.options)

    def scorer(self) -> nn.Module:
        """The relative distance, and the probability that it stands for."""
        # What known abnormal images are odds of, hidden ones add to.
        shift = ((self.odds[0] + self.options.contamination) / self.odds[1]).log()
        return Probability(Distances(self.embedder, self.centers, self.options), shift)


class Prototypes:
    """Embeddings beside the prototypes, in float32 or wider.

    As all prototypes have the length r, squared distances differ by the inner products alone:
    |z - r e_k|^2 = (|z|^2 + r^2) - 2 r z_k. The norm cancels but in the floor, and what all
    coordinates share cancels before anything is rounded.

    Args:
        z: (B, D), D above `centers`.
        centers: K.
        options: radius r, temperature tau and floor.
    """

    def __init__(self, z: Tensor, centers: int, options: RelativeOptions) -> None:
        z = z.to(torch.promote_types(z.dtype, torch.float32))
        radius, temperature = options.radius, options.temperature
        # (e_a - e_k) / tau, and (e_a - R) / tau.
        self.normal = 2 * radius / temperature * (z[:, :centers] - z[:, centers, None])
        self.floor: Tensor | None = None
        if options.floor:
            shared = z.square().sum(1) + (1 - options.floor) * radius**2
            self.floor = (shared - 2 * radius * z[:, centers]) / temperature

    def score(self) -> Tensor:
        """The relative distance s (B,)."""
        score = math.log(self.normal.shape[1]) - self.normal.logsumexp(1)
        if self.floor is not None:
            score = score + torch.logaddexp(self.floor, torch.zeros_like(self.floor))
        return score

    def strata(self, stratum: Tensor) -> Tensor:
        """Cross-entropy (B,) of declared strata (B,) among the normal ones; 0 where it is -1."""
        return functional.cross_entropy(self.normal, stratum, ignore_index=-1, reduction="none")

    def nearest(self) -> Tensor:
        """Number (B,) of the nearest normal prototype."""
        return self.normal.argmax(1)


class Distances(nn.Module):
    """Images -> relative distance, and the number of the nearest normal prototype.

    Args:
        embedder: encoder and head.
        centers: K.
        options: of the prototypes.
    """

    def __init__(self, embedder: Embedder, centers: int, options: RelativeOptions) -> None:
        super().__init__()
        self.embedder, self.centers, self.options = embedder, centers, options

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,) float32 or wider, `center` (B,) int64, and the features `h` and `z`."""
        h, z = self.embedder(images)
        pulls = Prototypes(z, self.centers, self.options)
        return {"score": pulls.score(), "center": pulls.nearest(), "h": h, "z": z}


TASKS = {"relative": Relative}
SYSTEMS = {
    "default": System(
        "Preset default: ImageNet encoder held still, a head by cross-entropy",
        pretext="imagenet",
        finetune="relative",
        changes={  # docs/ablation.md chose them
            "data.image_size": 224,
            "model.architecture": "efficientnet_lite0",
            "model.input_norm": "half",
            "model.mirror": True,
            "finetune.centers": 1,
            "finetune.floor": 0.0,
            "finetune.encoder": "head",
            "finetune.dropout": 0.3,
            "finetune.lr": 3e-4,
            "finetune.weight_decay": 0.03,
            "finetune.epochs": 48,
            "finetune.milestones": [32, 44],
        },
        note="EfficientNet-Lite0 with the weights that extra `pretrained` installs, or "
        "model.weights; what `selftaught run` does where nothing else is asked for.",
        extra=True,
    ),
    "relative": System(
        "Relative distance, our pretext",
        pretext="ntxent",
        finetune="relative",
        note="Pretext, network and steps of Ours; fixed prototypes, one of them abnormal, in place "
        "of k-means centres, and a quarter of each batch is known abnormal.",
        extra=True,
    ),
}
