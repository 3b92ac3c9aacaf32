"""Momentum contrast: queries against a queue of keys of a slowly following network.

He et al. 2020, arXiv:1911.05722; Chen et al. 2020, arXiv:2003.04297 (v2).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.errors import require
from selftaught.losses import info_nce_loss
from selftaught.methods import noise
from selftaught.methods.contrastive import ContrastiveOptions
from selftaught.methods.task import Start, System, Task
from selftaught.models.grouped_norm import Groups, group_norms
from selftaught.models.network import Network

PUBLISHED = 0.999
MEMORIES = 20  # of the key network, 1 / (1 - momentum) steps each, that a training must outlast


@dataclass(frozen=True, kw_only=True)
class MoCoOptions(ContrastiveOptions):
    """Momentum contrast on unlabelled images (He et al. 2020).

    Args:
        temperature: of the softmax over similarities; 0.07 in the first version.
        queue: keys of earlier steps that are negatives; 0 = 4096, or a quarter of the training
            images where that is less, since an image's own older keys are no negatives.
        momentum: share of the key network that a step keeps; 0 = 0.999 in 20,000 steps or more,
            else 1 - 20 / steps, as a shorter training would end near the random start.
        group: images that share batch statistics, those of a key with others than its query's.
    """

    # A query's group and its key's must be able to differ.
    least_images = 4

    temperature: float = 0.2
    queue: int = 0
    momentum: float = 0.0
    group: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require("queue", self.queue, "1 or more, or 0", self.queue >= 0)
        require("momentum", self.momentum, "0 to below 1", 0 <= self.momentum < 1)
        require("group", self.group, "2 or more", self.group >= 2)


class MoCo(Task):
    """A query finds the key of its image's other view among the keys of earlier steps.

    The key network moves towards the query network before each step. Keys go into a ring, of which
    a step sees those that stood there when it began: all its micro-batches have the same negatives.
    Batch statistics are by group over all ranks, whatever `engine.sync_batch_norm` says.

    Attributes:
        length: K, keys that are negatives.
        momentum: share of the key network that a step keeps.
        steps: of the training.
        slowest: largest momentum that these steps outlast.
    """

    Options, views = MoCoOptions, 2
    copied = ("ring",)
    options: MoCoOptions
    ring: Tensor
    written: Tensor
    seen: Tensor

    def __init__(self, options: MoCoOptions, network: Network) -> None:
        super().__init__(options, network)
        # Both have the weights of one seed: the key network starts as a copy.
        self.embedder, self.keys = network.embedder(), network.embedder().requires_grad_(False)
        self.groups = Groups()
        group_norms(self.embedder, self.groups)
        group_norms(self.keys, self.groups)
        self.length = options.queue or max(min(4096, network.images // 4), 1)
        size = max(min(options.batch_size, network.images), 1)
        self.steps = options.epochs * (network.images // size)
        self.slowest = max(0.0, 1 - MEMORIES / max(self.steps, 1))
        self.momentum = options.momentum or min(PUBLISHED, self.slowest)
        # Room for the keys of a step beside those that the step sees.
        rows, width = self.length + options.batch_size, self.embedder.head.widths[-1]
        self.register_buffer("ring", torch.zeros(rows, width))
        # Keys written so far, and those of them that the steps before wrote.
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))

    def check(self, labels: Tensor) -> None:
        """Refuse a queue that holds images' own keys, and a key network that hardly moves."""
        images = len(labels)
        require(
            "queue",
            self.length,
            f"1 to {images // 2}, half of the training images, or 0",
            self.length <= images / 2,
        )
        require(
            "momentum",
            self.momentum,
            f"0 to {self.slowest:.5f} in {self.steps} steps, so that the key network leaves its "
            "random start",
            self.momentum <= self.slowest + 1e-5,  # what the line above may have rounded up
        )

    def begin(self, start: Start) -> None:
        """Random keys of length 1."""
        generator = torch.Generator().manual_seed(start.seed)
        keys = torch.randn(self.ring.shape, generator=generator)
        self.ring.copy_(nn.functional.normalize(keys))
        start.note(f"moco: a queue of {self.length} keys, momentum {self.momentum:.5g}")

    @torch.no_grad()
    def before_step(self, step: int) -> None:
        """Move the key network, and let the step see the keys of the one before."""
        pairs = zip(self.keys.parameters(), self.embedder.parameters(), strict=True)
        for key, query in pairs:
            key.lerp_(query, 1 - self.momentum)
        self.seen.copy_(self.written)

    @property
    def queue(self) -> Tensor:
        """(K, D) keys that a step sees, the newest last; random ones until there are as many."""
        age = torch.arange(-self.length, 0, device=self.ring.device)
        return self.ring[(self.seen + age) % len(self.ring)]

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Loss of the first views against the second and the queue; keeps keys while training."""
        first, second = batch["views"].unbind(1)
        total, device = len(first) * distributed.world_size(), first.device
        in_order = torch.arange(total, device=device)
        drawn = noise.uniform(self.network.seed, batch["step"], [0], (total,))[0].argsort()
        drawn = drawn.to(device, non_blocking=True)
        with self.groups.split(in_order, self.options.group):
            query = _directions(self.embedder(first)[1])
        with torch.no_grad(), self.groups.split(drawn, self.options.group):
            key = _directions(self.keys(second)[1])
        queue = self.queue
        loss = info_nce_loss(
            query,
            key,
            negatives=queue,
            temperature=self.options.temperature,
            in_batch=False,
            normalize=False,
            check_values=False,
        )
        if self.training:
            self._keep(key)
        with torch.no_grad():
            return {
                "loss": loss,
                "similarity_positive": (query * key).sum(1).mean(),
                "similarity_negative": (query.mean(0) * queue.mean(0)).sum(),
            }

    @torch.no_grad()
    def _keep(self, key: Tensor) -> None:
        everyone = distributed.gather(key)
        place = torch.arange(len(everyone), device=key.device)
        self.ring[(self.written + place) % len(self.ring)] = everyone.to(self.ring.dtype)
        self.written.add_(len(everyone))

    def close_epoch(self) -> dict[str, float]:
        """The share of the queue that is keys of images."""
        return {"queue_filled": min(int(self.written), self.length) / self.length}

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images, of the query network."""
        return self.embedder(images)

    def backbone(self) -> nn.Module:
        """The query network's encoder."""
        return self.embedder.encoder


def _directions(z: Tensor) -> Tensor:
    """Rows of length 1, in float32 under autocast too."""
    return nn.functional.normalize(z.to(torch.promote_types(z.dtype, torch.float32)))


TASKS = {"moco": MoCo}
_NOTE = (
    "Published without settings: read as MoCo pre-training of the same encoder, then the centres "
    "of Ours. Queue and momentum are fitted to the training set's size, and batch statistics are "
    "by group in place of by GPU."
)
SYSTEMS = {
    "moco": System("He et al. (MoCo)", pretext="moco", finetune="spheres", note=_NOTE),
    "moco-v1": System(
        "He et al. (MoCo v1)",
        pretext="moco",
        finetune="spheres",
        changes={"pretext.temperature": 0.07, "model.head": [128]},
        note=f"{_NOTE} Temperature and linear head of its first version, in both stages.",
        extra=True,
    ),
}
