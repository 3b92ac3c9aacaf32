"""Autoencoder: the pre-training of Deep SAD, and a score of its own (paper, Table 1).

Ruff et al. 2020, arXiv:1906.02694; the network as published with the paper.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from selftaught.data.augment import finetune_augment
from selftaught.errors import require
from selftaught.methods.begin import take_encoder
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models.decoder import (
    Decoder,
    FeatureMap,
    feature_side,
    masked_mse,
    reconstruction_error,
)
from selftaught.models.fresh import fresh_weights
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL


@dataclass(frozen=True, kw_only=True)
class AutoencoderOptions(Options):
    """Reconstruction of images inside their masks (Ruff et al. 2020).

    Args:
        decoder: published = its output is a tanh, and every place of its input gets the same
            features, so that images come out as blurs; corrected = a sigmoid, and a learned map
            that tells places apart.
        known_abnormal: reconstructed like all others as published, or left_out of the loss.
        score_over: what an image's squared error inside the mask is divided by: the area of the
            mask, or of the frame as published, which makes larger body parts more abnormal.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "quick": {"epochs": 6, "milestones": []},
        "paper": {
            "augment": asdict(finetune_augment("paper")),
            "decoder": "published",
            "score_over": "frame",
        },
    }

    milestones: list[int] = field(default_factory=lambda: [70, 90])
    decoder: Literal["corrected", "published"] = "corrected"
    known_abnormal: Literal["reconstructed", "left_out"] = "reconstructed"
    score_over: Literal["mask", "frame"] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_decoder(self, self.decoder)
        both = ("reconstructed", "left_out")
        require("known_abnormal", self.known_abnormal, ", ".join(both), self.known_abnormal in both)
        over = self.score_over
        require("score_over", over, "mask, frame", over in ("mask", "frame"))


def check_decoder(options: Options, decoder: str) -> None:
    """Refuse a decoder that is none, and views that no decoder's output reaches.

    Raises:
        ValueError: names the option.
    """
    require("decoder", decoder, "corrected, published", decoder in ("corrected", "published"))
    scale = options.augment.mask_scale
    require("augment.mask_scale", scale, "1, as reconstructions reach from 0 to 1", scale == 1)


def new_decoder(network: Network, width: int, kind: str) -> Decoder:
    """Decoder with fresh weights, of the encoder's `width`; see the option `decoder`."""
    with fresh_weights(network.seed, "decoder"):
        return Decoder(
            width,
            network.image_size,
            stem=network.encoder.stem,
            output="tanh" if kind == "published" else "sigmoid",
        )


class Autoencoder(Task):
    """Encoder, projection head, and both mirrored: image -> h -> z -> image.

    The loss is the squared error inside the masks over their area, over the global batch; of
    micro-batches each has its own ratio.
    """

    Options, masks, whole_batch = AutoencoderOptions, True, True
    score_name = "reconstruction error"
    options: AutoencoderOptions
    embedder: Any  # a module with an encoder: image -> (h, z)

    def __init__(self, options: AutoencoderOptions, network: Network) -> None:
        super().__init__(options, network)
        self.build(network)

    def build(self, network: Network) -> None:
        """Embedder and decoder with fresh weights."""
        # A mean of both sides is the features of no image that could be reconstructed.
        one_side = replace(network, encoder=replace(network.encoder, mirror=False))
        self.embedder = one_side.embedder()
        widths = self.embedder.head.widths
        side = feature_side(network.image_size, network.encoder.stem)
        with fresh_weights(network.seed, "feature map"):
            self.feature_map = FeatureMap(
                widths, side, position=self.options.decoder == "corrected"
            )
        self.decoder = new_decoder(network, widths[0], self.options.decoder)

    def begin(self, start: Start) -> None:
        """All of an autoencoder of the stage before, of anything else its encoder."""
        weights = take_encoder(self.options.method, start, self.embedder.encoder)
        if weights.keys() == self.state_dict().keys():
            self.load_state_dict(weights)

    def forward(self, batch: dict[str, Any], player: str = "all") -> dict[str, Tensor]:
        """Masked mean squared error of a batch."""
        images, masks = batch["views"][:, 0], batch["masks"][:, 0]
        if self.options.known_abnormal == "left_out":
            kept = batch["semi_label"] != KNOWN_ABNORMAL
            # All images pass through the network, since its norms wait for all ranks.
            masks = masks * kept[:, None, None, None]
        return {"loss": masked_mse(self.reconstruct(images)[0], images, masks)}

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions (B, 1, S, S), h and z of images."""
        h, z = self.embedder(images)
        return self.decoder(self.feature_map(z)), h, z

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images."""
        h, z = self.embedder(images)
        return h, z

    def backbone(self) -> nn.Module:
        """The encoder."""
        encoder: nn.Module = self.embedder.encoder
        return encoder

    def scorer(self) -> nn.Module:
        """Reconstruction error inside the mask."""
        return Reconstruction(self)


class Reconstruction(nn.Module):
    """Images and masks -> mean squared error of an autoencoder's reconstructions."""

    def __init__(self, task: Autoencoder) -> None:
        super().__init__()
        self.task = task

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """Score (B,), h and z of images (B, 1, S, S) with masks like them."""
        reconstructed, h, z = self.task.reconstruct(images)
        over = self.task.options.score_over
        return {
            "score": reconstruction_error(reconstructed, images, masks, over),
            "h": h,
            "z": z,
        }


AS_PUBLISHED = (
    "The autoencoder learns from all training images, the known abnormal ones too, as published. "
)
CORRECTED = (
    "Its decoder knows places by a learned map and ends in a sigmoid; the published one decodes "
    "the same features everywhere, a blur, through a tanh (preset paper)."
)
TASKS = {"ae": Autoencoder}
SYSTEMS = {
    "ruff": System(
        "Ruff et al., Deep SAD",
        pretext="ae",
        finetune="spheres",
        changes={"finetune.centers": 1},
        note=AS_PUBLISHED + CORRECTED,
    ),
    "multi-modal-ae": System(
        "Ruff et al., multi-modal",
        pretext="ae",
        finetune="spheres",
        note="Published runs ended with one or two centres, since their stages saw inputs 255 "
        "times apart; here both see the same range. " + CORRECTED,
    ),
    "ae-100nn": System(
        "AE, 100-NN",
        pretext="ae",
        finetune="spheres",
        changes={"finetune.centers": 1},
        score="pretext_knn_score",
        note="The published figure was probably read with batch statistics of inputs 255 times "
        "larger; here pre-training and scoring see the same range.",
    ),
    "ae-reconstruction": System(
        "AE, reconstruction",
        pretext="none",
        finetune="ae",
        changes={"finetune.known_abnormal": "left_out"},
        note="Learns from images not known to be abnormal and scores the mean error inside the "
        "body part; the published score, over the frame, measures the body part's size. "
        + CORRECTED,
        extra=True,
    ),
}
