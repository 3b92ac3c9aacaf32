"""Known abnormal images against all others, without centres: supervised and semi-supervised.

The controls of the multi-centre method: cross-entropy of a logit, hypersphere classifier, DevNet.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from selftaught.data.augment import finetune_augment
from selftaught.errors import require
from selftaught.methods.begin import take_encoder
from selftaught.methods.kinds import (
    Probability,
    bce,
    deviation,
    hypersphere,
    kind_weights,
    kinds,
    odds,
    radius,
    references,
)
from selftaught.methods.task import Start, System
from selftaught.methods.tuned import Tuned, TunedOptions
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(TunedOptions):
    """Known abnormal images against the others, on the network of the multi-centre method.

    Args:
        loss: bce = cross-entropy of a logit, hypersphere = of the distance to the origin
            (Ruff et al. 2020), deviation = from normal reference scores (DevNet).
        features: what the logit is a linear function of: z = the embedding, h = the encoder's
            features, without a head.
        normals: who counts as normal: all images not known to be abnormal, or the known ones.
        balance: weight = each abnormal image counts n0/n1 times, where n0 images are normal and
            n1 abnormal; sample = a share of each batch is known abnormal, drawn with replacement.
        share: this share, in whole images, at least one.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 40, "milestones": [28, 36]},
        "paper": {"augment": asdict(finetune_augment("paper"))},
    }

    epochs: int = 150
    milestones: list[int] = field(default_factory=lambda: [90, 140])
    loss: Literal["bce", "hypersphere", "deviation"] = "bce"
    features: Literal["h", "z"] = "z"
    normals: Literal["all", "known"] = "all"
    balance: Literal["none", "weight", "sample"] = "weight"
    share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        losses = ("bce", "hypersphere", "deviation")
        require("loss", self.loss, ", ".join(losses), self.loss in losses)
        features, sphere = self.features, self.loss == "hypersphere"
        require("features", features, "h, z", features in ("h", "z"))
        require("features", features, "z with loss hypersphere", features == "z" or not sphere)
        known = self.normals == "known"
        require("normals", self.normals, "all, known", known or self.normals == "all")
        ways = ("none", "weight", "sample")
        require("balance", self.balance, ", ".join(ways), self.balance in ways)
        require("share", self.share, "above 0 and below 1", 0 < self.share < 1)
        # The rest of a batch would be unknown images for the most part.
        fine = self.balance != "sample" or not known
        require("balance", self.balance, "none, weight with normals known", fine)
        fine = self.balance != "sample" or self.batch_size >= 2
        require("batch_size", self.batch_size, "2 or more with balance sample", fine)


class Classifier(Tuned):
    """A score that is high for known abnormal images and low for the others.

    Rows that do not count go through the network like all others and weigh nothing, so that every
    rank does the same; a batch's loss is the mean over its images, each with the weight of its
    kind, so that neither ranks nor micro-batches change it, nor a batch of one kind alone.
    """

    Options: ClassVar[type[ClassifierOptions]] = ClassifierOptions
    score_name = "score of the classifier"
    options: ClassifierOptions
    weights: Tensor
    odds: Tensor

    def __init__(self, options: ClassifierOptions, network: Network) -> None:
        super().__init__(options, network)
        self.net = Scorer(options, network)
        self.register_buffer("weights", torch.ones(3))
        self.logit = options.loss == "bce"
        if self.logit and self.known_share:
            self.register_buffer("odds", torch.ones(2))
        self.settle()

    def check(self, labels: Tensor) -> None:
        """Refuse a training set without one of the kinds."""
        abnormal, normal = kinds(labels, self.options.normals)
        if not abnormal:
            raise ValueError(
                f"loss is {self.options.loss!r}, but no training image is known to be abnormal; "
                "allowed: split.known_abnormal above 0"
            )
        if not normal:
            raise ValueError(
                f"normals is {self.options.normals!r}, but no training image counts as normal; "
                "allowed: all, or split.known_normal above 0"
            )

    @property
    def known_share(self) -> float:
        """Of each batch, where these are balanced by drawing."""
        return self.options.share if self.options.balance == "sample" else 0.0

    @torch.no_grad()
    def begin(self, start: Start) -> None:
        """The encoder of the stage before; weights, and the bias, from the kinds' numbers."""
        take_encoder(self.options.method, start, self.net.encoder)
        labels = start.labels[torch.from_numpy(start.rows)]
        normals, balance = self.options.normals, self.options.balance
        self.weights.copy_(kind_weights(labels, normals, balance))
        if self.logit and balance == "none":
            abnormal, normal = kinds(labels, normals)
            self.net.bias.fill_(math.log(abnormal / normal))
        if self.logit and (share := self.known_share):
            self.net.bias.fill_(math.log(share / (1 - share)))
            self.odds.copy_(odds(start, share))

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Mean loss of a batch."""
        score, labels = self.net.score(self.embed(batch)[1]), batch["semi_label"]
        abnormal = labels == KNOWN_ABNORMAL
        if self.logit:
            losses = bce(score, abnormal)
        elif self.options.loss == "hypersphere":
            losses = hypersphere(score, abnormal)
        else:
            losses = deviation(score, abnormal, references(self.network.seed, batch["step"]))
        return {"loss": (self.weights[labels + 1] * losses).mean()}

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images; h twice, where there is no head."""
        outputs = self.net(images)
        return outputs["h"], outputs["z"]

    def parts(self) -> tuple[Encoder, nn.Module]:
        """Encoder and head of the network."""
        return self.net.encoder, self.net.head

    def scorer(self) -> nn.Module:
        """The logit and its probability, the distance to the origin, or DevNet's score."""
        if not self.logit:
            return self.net
        # Odds in the training set, over those in the loss.
        ratio = self.weights[KNOWN_NORMAL + 1] / self.weights[KNOWN_ABNORMAL + 1]
        if self.known_share:
            ratio = self.odds[0] / self.odds[1]
        return Probability(self.net, ratio.log())


class Scorer(nn.Module):
    """Images -> a score, and the features it comes from.

    The linear layer starts at zero: every image then has the prior's score, whatever its features.
    """

    def __init__(self, options: ClassifierOptions, network: Network) -> None:
        super().__init__()
        embedder = network.embedder()
        self.encoder, width = embedder.encoder, embedder.encoder.width
        self.head: nn.Module = nn.Identity()
        if options.features == "z":
            self.head, width = embedder.head, embedder.head.widths[-1]
        self.linear = options.loss != "hypersphere"
        if self.linear:
            self.weight = nn.Parameter(torch.zeros(width))
            self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,), float32 also where the network computes in bf16, and `h` and `z`."""
        h = self.encoder(images)
        z = self.head(h)
        return {"score": self.score(z), "h": h, "z": z}

    def score(self, z: Tensor) -> Tensor:
        """Score (B,) of what the head makes of images."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        return (wide * self.weight).sum(1) + self.bias if self.linear else radius(wide)


TASKS = {"classifier": Classifier}
SYSTEMS = {
    "classifier": System(
        "Classifier (BCE), our pretext",
        pretext="ntxent",
        finetune="classifier",
        note="Control: pretext, encoder, head and steps of Ours, with weighted binary "
        "cross-entropy of one linear layer on z in place of the centres.",
        extra=True,
    ),
    "classifier-all-labels": System(
        "Classifier (BCE), our pretext, all labels",
        pretext="ntxent",
        finetune="classifier",
        changes={"split.labels": "all"},
        note="A reference, no rival: as the classifier, but it reads the label of every abnormal "
        "image kept for training, not those of the budget alone, and so trains on more images.",
        extra=True,
    ),
    "hypersphere-classifier": System(
        "Hypersphere classifier, our pretext",
        pretext="ntxent",
        finetune="classifier",
        changes={"finetune.loss": "hypersphere", "finetune.balance": "sample"},
        note="Ruff et al. 2020 with the pretext, encoder, head and steps of Ours; half of each "
        "batch is known abnormal.",
        extra=True,
    ),
    "devnet": System(
        "DevNet, our pretext",
        pretext="ntxent",
        finetune="classifier",
        changes={"finetune.loss": "deviation", "finetune.balance": "sample"},
        note="Pang et al. 2019 with the pretext, encoder, head and steps of Ours; half of each "
        "batch is known abnormal, and the reference scores are drawn anew in each step.",
        extra=True,
    ),
}
