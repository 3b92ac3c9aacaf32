"""Features of a frozen encoder, and their nearest neighbours. Nothing is trained."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from selftaught.data.augment import Augment, finetune_augment
from selftaught.errors import require
from selftaught.methods.begin import normal_rows, sample, take_encoder
from selftaught.methods.task import Rows, Start, System, Task
from selftaught.methods.weights import WeightsOptions
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network
from selftaught.search import knn_score
from selftaught.semi_labels import KNOWN_ABNORMAL


@dataclass(frozen=True, kw_only=True)
class FrozenOptions(WeightsOptions):
    """Features that are not trained further."""

    augment: Augment = field(default_factory=finetune_augment)


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


class Frozen(Task):
    """The encoder of the stage before, and what is remembered of images not known abnormal."""

    options: FrozenOptions

    def __init__(self, options: FrozenOptions, network: Network) -> None:
        super().__init__(options, network)
        self.encoder = network.embedder().encoder

    def check(self, labels: Tensor) -> None:
        """Refuse training images that are all known to be abnormal."""
        if not (labels != KNOWN_ABNORMAL).any():
            raise ValueError(
                f"method is {self.options.method!r}, but all training images are known to be "
                "abnormal; allowed: one or more that are not"
            )

    def begin(self, start: Start) -> None:
        """Take the encoder over and fill the memory."""
        take_encoder(self.options.method, start, self.encoder)
        self.eval()
        with torch.no_grad():
            self.remember(start, normal_rows(start))

    def remember(self, start: Start, rows: Rows) -> None:
        """Fill the buffers from images not known to be abnormal."""
        raise NotImplementedError

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H of images, twice: there is no head."""
        h = self.encoder(images)
        return h, h

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.encoder


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
IMAGENET = {"model.input_norm": "imagenet", "model.batch_norm": "affine"}
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
