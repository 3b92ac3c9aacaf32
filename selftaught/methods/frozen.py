"""Features of a frozen encoder, and what of them is remembered of images that count as normal."""

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from selftaught.data.augment import Augment, finetune_augment
from selftaught.errors import InputError, require
from selftaught.methods.begin import take_encoder
from selftaught.methods.task import Options, Rows, Start, Task
from selftaught.methods.weights import WeightsOptions
from selftaught.models.encoder import Encoder
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL, KNOWN_NORMAL

# What the rows of Table 1 change for them.
IMAGENET: dict[str, Any] = {"model.input_norm": "imagenet", "model.batch_norm": "affine"}
BOTH_VIEWS = (
    "Needs model.weights; the encoder is not trained. Features of plain and mirror images, "
)


@dataclass(frozen=True, kw_only=True)
class FrozenOptions(WeightsOptions):
    """Features that are not trained further.

    Args:
        normals: who counts as normal: all images not known to be abnormal, or the known ones.
    """

    augment: Augment = field(default_factory=finetune_augment)
    normals: Literal["all", "known"] = "all"

    def __post_init__(self) -> None:
        super().__post_init__()
        fine = self.normals in ("all", "known")
        require("normals", self.normals, "all, known", fine)


class Frozen(Task):
    """The encoder of the stage before, and what is remembered of images that count as normal."""

    Options: ClassVar[type[Options]] = FrozenOptions
    options: FrozenOptions

    def __init__(self, options: FrozenOptions, network: Network) -> None:
        super().__init__(options, network)
        self.encoder = network.embedder().encoder

    def check(self, labels: Tensor) -> None:
        """Refuse training images of which none counts as normal."""
        if self.options.normals == "known" and not (labels == KNOWN_NORMAL).any():
            raise ValueError(
                "normals is 'known', but no training image is known to be normal; allowed: all, or "
                "split.known_normal above 0"
            )
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
            labels = start.labels.numpy()[start.rows]
            known = self.options.normals == "known"
            counts = labels == KNOWN_NORMAL if known else labels != KNOWN_ABNORMAL
            self.remember(start, start.rows[counts])

    def remember(self, start: Start, rows: Rows) -> None:
        """Fill the buffers from images that count as normal."""
        raise NotImplementedError

    def both_views(self, start: Start, rows: Rows) -> Tensor:
        """H (2 N, W) in float64 of plain images, then of their mirror images; none = refused.

        Left and right limbs are one kind, and a frozen encoder does not know that.
        """
        plain = start.features(rows, mirrored=False).double()
        if not len(plain):
            raise InputError(f"{self.options.method}: no training image of a kind can be read")
        return torch.cat([plain, start.features(rows, mirrored=True).double()])

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H of images, twice: there is no head."""
        h = self.encoder(images)
        return h, h

    def frozen(self) -> Encoder | None:
        """The encoder."""
        return self.encoder

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.encoder


def standardisation(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population deviation (W,) of features (N, W); 1 where nothing varies."""
    deviation = features.std(0, correction=0)
    return features.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))
