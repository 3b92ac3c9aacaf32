"""ARAE: an autoencoder of images under perturbations that its features react to most.

Salehi et al., "ARAE: Adversarially Robust Training of Autoencoders Improves Novelty Detection",
2020, arXiv:2003.05669.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from selftaught.data.augment import finetune_augment
from selftaught.errors import require
from selftaught.methods import noise
from selftaught.methods.joint_autoencoder import JointAutoencoder, JointAutoencoderOptions
from selftaught.methods.perturbation import running_statistics
from selftaught.methods.task import System
from selftaught.models.decoder import masked_mse
from selftaught.models.map_embedder import MapEmbedder
from selftaught.semi_labels import KNOWN_ABNORMAL

STEP = 1.25  # of the one ascent, in epsilons


@dataclass(frozen=True, kw_only=True)
class AraeOptions(JointAutoencoderOptions):
    """Reconstruction of perturbed images.

    Args:
        epochs: many, as nothing else is learned.
        epsilon: largest change of a pixel, of images in [0, 1].
        target: what is reconstructed of a perturbed image: the clean one, or adversarial = the
            perturbed one itself as published.
        consistency: weight of the squared difference between both images' features.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 40, "milestones": [12, 20, 28]},
        "paper": {
            "augment": asdict(finetune_augment("paper")),
            "decoder": "published",
            "score_over": "frame",
            "target": "adversarial",
        },
    }

    epochs: int = 100
    milestones: list[int] = field(default_factory=lambda: [30, 50, 70])
    known_abnormal: Literal["reconstructed", "left_out"] = "left_out"
    epsilon: float = 0.05
    target: Literal["clean", "adversarial"] = "clean"
    consistency: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require("epsilon", self.epsilon, "0 to 1", 0 <= self.epsilon <= 1)
        both = ("clean", "adversarial")
        require("target", self.target, ", ".join(both), self.target in both)
        weight = self.consistency
        require("consistency", weight, "0 or more", 0 <= weight < math.inf)


class Arae(JointAutoencoder):
    """Image -> feature map -> image, without a bottleneck between, of perturbed images.

    Nothing is perturbed outside masks, whose black would give the perturbation away.
    """

    Options = AraeOptions
    options: AraeOptions
    embedder: MapEmbedder

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Masked error of the reconstructions, and the features' difference, its mean over images.

        Images that are left out have weight 0: all of them pass through the network.
        """
        images, masks = batch["views"][:, 0], batch["masks"][:, 0]
        kept = torch.ones_like(batch["semi_label"], dtype=images.dtype)
        if self.options.known_abnormal == "left_out":
            kept = (batch["semi_label"] != KNOWN_ABNORMAL).to(images.dtype)
        perturbed = self.perturb(batch)
        # One pass over both: the statistics of two would tell the network which one it sees.
        features = self.embedder.parts(torch.cat([images, perturbed]))[0]
        clean, moved = features.chunk(2)
        target = images if self.options.target == "clean" else perturbed
        mse = masked_mse(self.decoder(moved), target, masks * kept[:, None, None, None])
        difference = (_squares(moved, clean).flatten(1).mean(1) * kept).mean()
        return {
            "loss": mse + self.options.consistency * difference,
            "reconstruction_loss": mse.detach(),
            "feature_difference": difference.detach(),
        }

    def perturb(self, batch: dict[str, Any]) -> Tensor:
        """Images (B, 1, S, S) after one ascent from uniform noise on their features' difference."""
        images, masks, epsilon = batch["views"][:, 0], batch["masks"][:, 0], self.options.epsilon
        drawn = noise.uniform(self.network.seed, batch["epoch"], batch["ids"], images.shape[1:])
        limits = self.options.augment.input_range
        delta = epsilon * (2 * drawn.to(images, non_blocking=True) - 1) * masks
        with running_statistics(self.embedder):
            with torch.no_grad():
                clean = self.embedder.parts(images)[0]
            at = (images + delta).clamp(*limits).requires_grad_()
            difference = _squares(self.embedder.parts(at)[0], clean).sum()
            # Of the images alone: no parameter's gradient is touched.
            gradient = torch.autograd.grad(difference, at)[0]
        delta = (delta + STEP * epsilon * gradient.sign()).clamp(-epsilon, epsilon) * masks
        return (images + delta).clamp(*limits)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared differences, at least float32."""
    kind = torch.promote_types(a.dtype, torch.float32)
    return (a.to(kind) - b.to(kind)).square()


TASKS = {"arae": Arae}
SYSTEMS = {
    "arae": System(
        "ARAE",
        pretext="none",
        finetune="arae",
        note="Reconstructs the clean image inside the body part from a perturbation of it inside "
        "the body part; the runs made for the paper perturbed the background too, reconstructed "
        "the perturbed image, which teaches no denoising, and divided errors by the frame.",
        extra=True,
    ),
}
