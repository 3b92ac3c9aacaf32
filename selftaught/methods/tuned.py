"""How far an encoder with a head start moves: not at all, slowly, or like its head."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import Parameter

from selftaught.errors import InputError, require
from selftaught.methods import noise
from selftaught.methods.task import Options, Task
from selftaught.models.encoder import Encoder
from selftaught.models.heads import Embedder
from selftaught.models.network import Network

FEW_IMAGES = 2000  # below them auto holds the encoder still
SLOW = 0.1  # of the head's rate


@dataclass(frozen=True, kw_only=True)
class TunedOptions(Options):
    """How the encoder of the stage before is trained on.

    Args:
        encoder: full = at the head's rate, with running batch statistics; all = at a tenth of the
            rate, with the batch statistics it came with; head = not at all: its features of each
            training image and of its mirror image are computed once, and the only augmentation
            is that of the mirror, by augment.horizontal_flip; auto = head below 2,000 training
            images, else all.
        dropout: share of the encoder's features that is left out of a training step.
    """

    encoder: Literal["full", "all", "head", "auto"] = "full"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        ways = ("full", "all", "head", "auto")
        require("encoder", self.encoder, ", ".join(ways), self.encoder in ways)
        fine = math.isfinite(self.dropout) and 0 <= self.dropout < 1
        require("dropout", self.dropout, "0 to below 1", fine)
        fine = self.encoder == "full" or not self.recalibrate
        allowed = "0 with encoder head, all or auto, which keep their batch statistics"
        require("recalibrate", self.recalibrate, allowed, fine)


class Tuned(Task):
    """Base of tasks that train a head on an encoder; `backbone()` is that encoder.

    A task sets `embedder`, or has `parts` and `features` of its own; it calls `settle` at the end
    of its `__init__`, and `embed` in its `forward`.
    """

    options: TunedOptions
    embedder: Embedder

    def __init__(self, options: TunedOptions, network: Network) -> None:
        super().__init__(options, network)
        way = options.encoder
        if way == "auto":
            way = "head" if network.images < FEW_IMAGES else "all"
        self.way = way

    def parts(self) -> tuple[Encoder, nn.Module]:
        """The encoder, and the head that makes z of its features h."""
        return self.embedder.encoder, self.embedder.head

    def backbone(self) -> Encoder:
        """The encoder."""
        return self.parts()[0]

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images."""
        return self.embedder(images)

    def settle(self) -> None:
        """Hold the encoder, or what of it does not move.

        Raises:
            InputError: it is to move, but cannot.
        """
        encoder = self.backbone()
        if self.way == "head":
            encoder.requires_grad_(False)
        elif not encoder.trainable:
            raise InputError(
                f"finetune.encoder is {self.options.encoder!r}, but no weights of "
                f"{encoder.config.architecture} can be trained; allowed: head, or a program that "
                "was written with its parameters"
            )
        self.train(self.training)

    def train(self, mode: bool = True) -> "Tuned":
        """Training mode, in which an encoder with a head start keeps its batch statistics."""
        super().train(mode)
        if self.way != "full":
            self.backbone().eval()
        return self

    def frozen(self) -> Encoder | None:
        """The encoder, where only the head is trained."""
        return self.backbone() if self.way == "head" else None

    def rates(self) -> Mapping[Parameter, float]:
        """A tenth of the rate for the encoder, where all is trained."""
        return dict.fromkeys(self.backbone().parameters(), SLOW) if self.way == "all" else {}

    def embed(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """H (B, W) and z (B, D) of the first of a batch's views."""
        encoder, head = self.parts()
        # In eval mode, as here with `all`, an encoder may be one of both sides.
        h = (encoder.pooled if self.way == "all" else encoder)(batch["views"][:, 0])
        share = self.options.dropout
        if self.training and share:
            drawn = noise.uniform(self.network.seed, batch["epoch"], batch["ids"], h.shape[1:])
            h = h * (drawn.to(h.device, non_blocking=True) >= share) / (1 - share)
        return h, head(h)
