"""What is learned: a Task is model plus loss, `forward(batch) -> {"loss": ...}`.

Parameters are touched nowhere else. A batch is a dict of tensors: `views` (B, V, 1, S, S) float32
in the declared input range, `semi_label` (B,) int64 in -1, 0, +1, `ids` (B,) int64.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from selftaught import distributed
from selftaught.losses import mad_loss_with_assignment, nearest_center, ntxent_loss, supcon_loss
from selftaught.models.heads import Embedder
from selftaught.search import occupancy

KNOWN_ABNORMAL = -1


def finite_or_zero(z: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings fit for a loss, and a factor of 1, or NaN where some were not finite.

    The losses refuse such rows on a CPU; the loop must learn of them on every rank instead.
    """
    finite = torch.isfinite(z)
    mark = torch.where(finite.all(), 1.0, torch.nan)
    return torch.where(finite, z, torch.zeros_like(z)), mark


class Task(nn.Module):
    """What the loop asks of a task beyond `forward`."""

    embedder: Embedder

    def close_epoch(self) -> dict[str, float]:
        """Change between epochs; return figures of the epoch."""
        return {}

    def before_save(self) -> None:
        """Move state that ranks hold apart to rank 0."""

    def after_load(self) -> None:
        """Take up a state that rank 0 held for all ranks."""


class PretextTask(Task):
    """Contrastive pre-training (paper, Eq. 1): two views of an image attract, all others repel.

    Args:
        embedder: encoder and head.
        temperature: of the softmax.
        method: ntxent, or supcon where known abnormal images attract each other.
    """

    def __init__(
        self, embedder: Embedder, *, temperature: float, method: Literal["ntxent", "supcon"]
    ) -> None:
        super().__init__()
        self.embedder = embedder
        self.temperature = temperature
        self.method = method

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss over the global batch's 2B views.

        Args:
            batch: `views` (B, 2, 1, S, S); supcon also reads `semi_label`.
        """
        first_then_second = batch["views"].transpose(0, 1).flatten(0, 1)
        z, mark = finite_or_zero(self.embedder(first_then_second)[1])
        z1, z2 = z.chunk(2)
        group = distributed.world_group()
        if self.method == "supcon":
            # Class 0 = known abnormal; label -1 = no class: only the other view is positive.
            labels = torch.where(batch["semi_label"] == KNOWN_ABNORMAL, 0, -1)
            loss = supcon_loss(z1, z2, labels, self.temperature, group=group)
        else:
            loss = ntxent_loss(z1, z2, self.temperature, group=group)
        return {"loss": loss * mark}


class FinetuneTask(Task):
    """Multi-centre semi-supervised fine-tuning (paper, Eq. 2) with progressive pruning.

    The centres never move. Images not known to be abnormal are counted at their nearest centre;
    `close_epoch` removes for good every centre with fewer than gamma times the largest count.

    Args:
        embedder: encoder and head.
        centers: (K, D) float32.
        eta: weight of known images.
        gamma: pruning share.
    """

    centers: Tensor
    active: Tensor
    counts: Tensor

    def __init__(self, embedder: Embedder, centers: Tensor, *, eta: float, gamma: float) -> None:
        super().__init__()
        self.embedder = embedder
        self.eta = eta
        self.gamma = gamma
        k = centers.shape[0]
        self.register_buffer("centers", centers.clone())
        self.register_buffer("active", torch.ones(k, dtype=torch.bool))
        self.register_buffer("counts", torch.zeros(k, dtype=torch.int64))

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss of a batch; counts the batch's images per centre while training.

        Args:
            batch: `views` (B, 1, 1, S, S) and `semi_label` (B,).
        """
        z, mark = finite_or_zero(self.embedder(batch["views"][:, 0])[1])
        found = mad_loss_with_assignment(
            z, self.centers, batch["semi_label"], eta=self.eta, active=self.active
        )
        if self.training:
            # A row too far for its distance to be a number has index -1; the loop stops over it.
            counted = batch["semi_label"] != KNOWN_ABNORMAL
            self.counts += occupancy.count(found.center, len(self.counts), counted)
        return {"loss": found.loss * mark}

    @torch.no_grad()
    def distance(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Distance (not squared) to the nearest remaining centre, and its index.

        Args:
            z: (N, D) embeddings.

        Returns:
            (N,) float32 distances and (N,) int64 indices.
        """
        squared, index = nearest_center(z, self.centers, active=self.active)
        return squared.sqrt(), index

    @torch.no_grad()
    def close_epoch(self) -> dict[str, float]:
        """Prune, start counting anew and return the figures of the epoch's occupancy."""
        counts = distributed.sum_over_ranks(self.counts)
        largest = int(counts.max())
        total = max(int(counts.sum()), 1)
        empty = int(((counts == 0) & self.active).sum())
        self.active.copy_(occupancy.prune(counts, self.active, self.gamma))
        self.counts.zero_()
        return {
            "centers": int(self.active.sum()),
            "occupancy_max": largest / total,
            "empty_centers": empty,
        }

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
