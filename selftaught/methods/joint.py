"""Joint training: reconstruction and distance at once (paper, Sec. 8.1 and 8.2 of its supplement).

The distance is to a centre (Deep SAD, Ruff et al. 2020, arXiv:1906.02694), or to a subspace of
embeddings (after Devos and Grossglauser 2019, arXiv:1905.13613).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from selftaught.data.augment import finetune_augment
from selftaught.errors import require
from selftaught.methods.autoencoder import check_decoder, new_decoder
from selftaught.methods.begin import (
    away_from_zero,
    fill_statistics,
    normal_rows,
    part,
    sample,
    take_encoder,
)
from selftaught.methods.subspace import (
    BANK,
    EPSILON,
    deep_sad,
    principal_subspace,
    regularised_span,
)
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models.decoder import feature_side, masked_mse, reconstruction_error
from selftaught.models.fresh import fresh_weights
from selftaught.models.map_embedder import MapEmbedder, new_branch
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL

DISTANCES = ("center", "subspace", "span")


@dataclass(frozen=True, kw_only=True)
class JointOptions(Options):
    """Reconstruction and Deep SAD's distance at once.

    Args:
        reconstruction: weight of the reconstruction, the distance having the rest; both losses are
            divided by their means before the first step.
        distance: center = to the mean of the embeddings not known to be abnormal; subspace = to
            the principal directions that hold 95 % of their variance, renewed after each epoch;
            span = to their regularised span, fixed, as published: next to 0 for any embedding.
        last_norm: plain = embeddings end in a batch norm without parameters as published, which
            makes their mean squared length a constant; none = they do not.
        decoder: published = its output is a tanh; corrected = a sigmoid.
        eta: weight of known images in the distance's loss.
        center_epsilon: centre coordinates closer to 0 than this are pushed to +-this; 0 stays.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 40, "milestones": [16, 32]},
        "paper": {"augment": asdict(finetune_augment("paper")), "decoder": "published"},
    }

    milestones: list[int] = field(default_factory=lambda: [40, 80])
    reconstruction: float = 0.6
    distance: Literal["center", "subspace", "span"] = "center"
    last_norm: Literal["plain", "none"] = "plain"
    decoder: Literal["corrected", "published"] = "corrected"
    eta: float = 1.0
    center_epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        share = self.reconstruction
        require("reconstruction", share, "above 0 and below 1", 0 < share < 1)
        require("distance", self.distance, ", ".join(DISTANCES), self.distance in DISTANCES)
        require("last_norm", self.last_norm, "plain, none", self.last_norm in ("plain", "none"))
        check_decoder(self, self.decoder)
        require("eta", self.eta, "above 0", 0 < self.eta < math.inf)
        epsilon = self.center_epsilon
        require("center_epsilon", epsilon, "0 or more", 0 <= epsilon < math.inf)


class Joint(Task):
    """Images are reconstructed from the map whose embedding is drawn to a centre or subspace.

    Known abnormal images are pushed away from it, and never reconstructed.

    Attributes:
        origin: (D,) the centre, or the mean that the subspace passes through.
        off: (D, D) projection off the subspace, which leaves all of it for a centre.
        epsilon: added to the squared distance of known images.
        scales: of both losses, 1 / their means before the first step.
    """

    Options, masks, whole_batch = JointOptions, True, True
    score_name = "squared distance of the embedding"
    options: JointOptions
    origin: Tensor
    off: Tensor
    epsilon: Tensor
    scales: Tensor

    def __init__(self, options: JointOptions, network: Network) -> None:
        super().__init__(options, network)
        encoder = network.embedder().encoder
        side = feature_side(network.image_size, network.encoder.stem)
        with fresh_weights(network.seed, "branch"):
            branch = new_branch(encoder.width, side, options.last_norm)
        self.embedder = MapEmbedder(encoder, branch)
        self.decoder = new_decoder(network, encoder.width, options.decoder)
        width = encoder.width // 4 * min(side, 2) ** 2
        self.register_buffer("origin", torch.zeros(width))
        self.register_buffer("off", torch.eye(width))
        self.register_buffer("epsilon", torch.tensor(EPSILON))
        self.register_buffer("scales", torch.ones(2))

    def begin(self, start: Start) -> None:
        """Encoder and decoder of the stage before; the branch's statistics, centre and scales."""
        weights = take_encoder(self.options.method, start, self.embedder.encoder)
        decoder = part(weights, "decoder.")
        if decoder.keys() == self.decoder.state_dict().keys():
            self.decoder.load_state_dict(decoder)
        assert self.embedder.branch is not None
        fill_statistics(start, self.embedder, self.embedder.branch)
        self._settle(start)
        self._calibrate(start)

    def renew(self, start: Start) -> None:
        """The subspace of the embeddings as they are now."""
        if self.options.distance == "subspace":
            self._settle(start)

    def _settle(self, start: Start) -> None:
        """Set what distances are measured from, by embeddings not known to be abnormal."""
        kind, rows = self.options.distance, normal_rows(start)
        if kind == "center":
            z = start.features(rows).double()
            origin = away_from_zero(z.mean(0), self.options.center_epsilon)
            self.origin.copy_(origin)
            return
        z = start.features(sample(rows, BANK, start.seed)).double()
        fit = principal_subspace if kind == "subspace" else regularised_span
        origin, off, epsilon = start.alone(lambda: fit(z))
        self.origin.copy_(origin)
        self.off.copy_(off)
        self.epsilon.fill_(epsilon)

    @torch.no_grad()
    def _calibrate(self, start: Start) -> None:
        """Set the scales so that both losses are 1 on average; norms keep their statistics."""
        kept = [buffer.clone() for buffer in self.buffers()]
        sums, images = torch.zeros(2, dtype=torch.float64), 0
        for batch in start.batches(start.rows, random=True):
            count = len(batch["ids"])
            if count > 1:
                sums += count * torch.stack(self.losses(batch)).double().cpu()
                images += count
        for buffer, value in zip(self.buffers(), kept, strict=True):
            buffer.copy_(value)
        means = (sums / images).clamp(min=torch.finfo(torch.float32).tiny)
        self.scales.copy_(1 / means)
        start.note(
            f"before the first step the reconstruction's loss is {means[0]:.4g} and the distance's "
            f"{means[1]:.4g}; they are divided by these"
        )

    def losses(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Reconstruction's and distance's loss of a batch, not scaled."""
        images, masks, known = batch["views"][:, 0], batch["masks"][:, 0], batch["semi_label"]
        features, _, z = self.embedder.parts(images)
        mse = masked_mse(self.decoder(features), images, masks, known != KNOWN_ABNORMAL)
        distance = deep_sad(self.squared_distance(z), known, self.options.eta, self.epsilon)
        return mse, distance.mean()

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Weighted sum of both losses."""
        mse, distance = self.losses(batch)
        share = self.options.reconstruction
        loss = share * self.scales[0] * mse + (1 - share) * self.scales[1] * distance
        return {"loss": loss, "reconstruction_loss": mse, "distance_loss": distance}

    def squared_distance(self, z: Tensor) -> Tensor:
        """Squared distance (B,) of embeddings to the centre or subspace, at least float32."""
        kind = torch.promote_types(z.dtype, torch.float32)
        with torch.autocast(z.device.type, enabled=False):
            apart = z.to(kind) - self.origin.to(kind)
            if self.options.distance != "center":
                apart = apart @ self.off.to(kind)
            return apart.square().sum(dim=1)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images."""
        h, z = self.embedder(images)
        return h, z

    def backbone(self) -> nn.Module:
        """The layers up to the feature map."""
        return self.embedder.encoder.layers

    def scorer(self) -> nn.Module:
        """Squared distance, and the reconstruction error beside it."""
        return JointScorer(self)


class JointScorer(nn.Module):
    """Images and masks -> squared distance of the embedding, and the error inside the mask."""

    def __init__(self, task: Joint) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Score, reconstruction error (B,), h and z of images (B, 1, S, S) with masks like them."""
        features, h, z = self.task.embedder.parts(images)
        return {
            "score": self.task.squared_distance(z),
            "reconstruction": reconstruction_error(self.task.decoder(features), images, masks),
            "h": h,
            "z": z,
        }


PLAIN_NORM = (
    "The embedding ends in the published batch norm, which fixes its mean squared length, so that "
    "the known abnormal images alone teach the distance."
)
TASKS = {"joint": Joint}
SYSTEMS = {
    "joint": System(
        "Joint training",
        pretext="joint-ae",
        finetune="joint",
        note="The centre is the mean of images not known to be abnormal, the published one of all; "
        "norms keep their statistics while the losses are scaled. " + PLAIN_NORM,
    ),
    "joint-subspace": System(
        "Joint training, subspace",
        pretext="joint-ae",
        finetune="joint",
        changes={"finetune.distance": "subspace"},
        note="The published projection spans the whole embedding, so that every distance is "
        "rounding; here it is the principal directions with 95 % of the variance, renewed after "
        "each epoch. " + PLAIN_NORM,
    ),
}
