"""Contrastive pre-training: NT-Xent (paper, Eq. 1) and SupCon, where known abnormal images attract.

Chen et al. 2020, arXiv:2002.05709; Khosla et al. 2020, arXiv:2004.11362.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.data.augment import Augment, pretext_augment
from selftaught.errors import require
from selftaught.losses import ntxent_loss, supcon_loss
from selftaught.methods.task import Options, System, Task
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL


@dataclass(frozen=True, kw_only=True)
class ContrastiveOptions(Options):
    """Contrastive pre-training on unlabelled images (paper, Eq. 1).

    Args:
        temperature: of the softmax over similarities.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # With a few hundred images the published 1e-3 collapses the embedding.
        "quick": {
            "epochs": 6,
            "lr": 1e-4,
            "milestones": [],
            "temperature": 0.2,
            "augment.blur": 0.0,
        },
        "paper": {"augment": asdict(pretext_augment("paper"))},
    }
    least_images: ClassVar[int] = 2

    epochs: int = 100
    batch_size: int = 24
    lr: float = 1e-3
    milestones: list[int] = field(default_factory=lambda: [70, 90])
    temperature: float = 0.5
    augment: Augment = field(default_factory=pretext_augment)

    def __post_init__(self) -> None:
        super().__post_init__()
        temperature = self.temperature
        require("temperature", temperature, "above 0", 0 < temperature < math.inf)


class NTXent(Task):
    """Two views of an image attract each other and repel all others of the global batch."""

    Options, views, whole_batch = ContrastiveOptions, 2, True
    options: ContrastiveOptions

    def __init__(self, options: ContrastiveOptions, network: Network) -> None:
        super().__init__(options, network)
        self.embedder = network.embedder()

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Loss over the global batch's 2B views."""
        first_then_second = batch["views"].transpose(0, 1).flatten(0, 1)
        z1, z2 = self.embedder(first_then_second)[1].chunk(2)
        return {"loss": self.loss(z1, z2, batch["semi_label"])}

    def loss(self, z1: Tensor, z2: Tensor, semi_label: Tensor) -> Tensor:
        """NT-Xent of embeddings (B, D) of both views."""
        group = distributed.world_group()
        return ntxent_loss(z1, z2, self.options.temperature, group=group, check_values=False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images."""
        return self.embedder(images)

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.embedder.encoder


class SupCon(NTXent):
    """NT-Xent where known abnormal images attract each other too.

    With fewer than two of them in a batch it is NT-Xent exactly; how often that is, is logged.
    """

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Loss over the global batch's 2B views; the number of its known abnormal images.

        `known_abnormal` is that number, `two_known_abnormal` 1 where it is two or more: their
        means over an epoch are the mean number and the share of such batches.
        """
        known = (batch["semi_label"] == KNOWN_ABNORMAL).sum().double()
        known = distributed.sum_over_ranks(known)
        figures = {"known_abnormal": known, "two_known_abnormal": (known >= 2).double()}
        return super().forward(batch, player) | figures

    def loss(self, z1: Tensor, z2: Tensor, semi_label: Tensor) -> Tensor:
        """SupCon of embeddings (B, D) of both views."""
        # Class 0 = known abnormal; label -1 = no class: only the other view is positive.
        labels = torch.where(semi_label == KNOWN_ABNORMAL, 0, -1)
        group = distributed.world_group()
        temperature = self.options.temperature
        return supcon_loss(z1, z2, labels, temperature, group=group, check_values=False)


TASKS = {"ntxent": NTXent, "supcon": SupCon}
SYSTEMS = {
    "ours": System("Ours", pretext="ntxent", finetune="spheres"),
    "uni-modal": System(
        "Uni-modal", pretext="ntxent", finetune="spheres", changes={"finetune.centers": 1}
    ),
    "supcon": System("Ours, SupCon pretext", pretext="supcon", finetune="spheres"),
    "pretext-100nn": System(
        "Pretext, 100-NN", pretext="ntxent", finetune="spheres", score="pretext_knn_score"
    ),
}
