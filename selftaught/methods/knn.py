"""Distances of a frozen encoder's features to their nearest neighbours in the training set."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from selftaught.errors import require
from selftaught.methods.begin import sample
from selftaught.methods.frozen import IMAGENET, Frozen, FrozenOptions
from selftaught.methods.task import Rows, Start, System
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network
from selftaught.search import knn_score


@dataclass(frozen=True, kw_only=True)
class NeighboursOptions(FrozenOptions):
    """Distances to nearest neighbours.

    Args:
        neighbours: k of the mean distance.
        memory: most images that are remembered; drawn where there are more.
    """

    neighbours: int = 100
    memory: int = 65536

    def __post_init__(self) -> None:
        super().__post_init__()
        require("neighbours", self.neighbours, "1 or more", self.neighbours >= 1)
        require("memory", self.memory, "1 or more", self.memory >= 1)


class Neighbours(Frozen):
    """Mean distance of the pooled features to the nearest that are remembered."""

    Options = NeighboursOptions
    score_name = "mean distance to the nearest neighbours"
    options: NeighboursOptions
    memory: Tensor
    count: Tensor

    def __init__(self, options: NeighboursOptions, network: Network) -> None:
        super().__init__(options, network)
        rows = min(options.memory, max(network.images, 1))
        self.register_buffer("memory", torch.zeros(rows, self.encoder.width))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def remember(self, start: Start, rows: Rows) -> None:
        """The features of all rows, or of so many drawn ones."""
        h = start.features(sample(rows, len(self.memory), start.seed))
        self.memory[: len(h)] = h.to(self.memory)
        self.count.fill_(len(h))

    def scorer(self) -> nn.Module:
        """Mean distance to the nearest neighbours."""
        # A scorer is tried before a resumed run has its memory back: one row of zeros.
        memory = self.memory[: max(int(self.count), 1)]
        return NeighboursScorer(self.encoder, memory, self.options.neighbours)


class NeighboursScorer(nn.Module):
    """Images -> mean distance to the nearest of the features in memory (M, W)."""

    memory: Tensor

    def __init__(self, encoder: Encoder, memory: Tensor, neighbours: int) -> None:
        super().__init__()
        self.encoder, self.neighbours = encoder, neighbours
        self.register_buffer("memory", memory)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and the features `h`."""
        h = self.encoder(images)
        return {"score": knn_score(h, self.memory, self.neighbours).to(h.device), "h": h}


TASKS = {"knn": Neighbours}
SYSTEMS = {
    "frozen-knn": System(
        "k-NN on ImageNet features",
        pretext="imagenet",
        finetune="knn",
        changes=IMAGENET,
        note="Needs model.weights; nothing is trained. Mean distance to 100 training images.",
        extra=True,
    ),
}
