"""First stages that train nothing: weights from a file (ImageNet), or random ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from selftaught.data.augment import Augment, pretext_augment
from selftaught.methods.begin import fill_statistics
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models.network import Network
from selftaught.models.weights import load_encoder_weights


@dataclass(frozen=True, kw_only=True)
class WeightsOptions(Options):
    """Weights that are not trained.

    Args:
        epochs: 0, whatever is given: nothing is trained.
    """

    least_epochs: ClassVar[int] = 0

    epochs: int = 0
    batch_size: int = 24
    augment: Augment = field(default_factory=pretext_augment)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "epochs", 0)


class Untrained(Task):
    """Random weights, with the batch statistics of some training images."""

    Options = WeightsOptions

    def __init__(self, options: WeightsOptions, network: Network) -> None:
        super().__init__(options, network)
        self.embedder = network.embedder()

    def begin(self, start: Start) -> None:
        """Fill the running statistics."""
        fill_statistics(start, self.embedder, self.embedder)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images."""
        return self.embedder(images)

    def backbone(self) -> nn.Module:
        """The encoder."""
        return self.embedder.encoder


class ImageNet(Untrained):
    """An encoder from `model.weights`, a ResNet state dict on this disk; nothing is downloaded."""

    needs_weights = True

    def check(self, labels: Tensor) -> None:
        """Refuse a file that is missing or does not fit."""
        path = self.network.weights
        if not path:
            raise ValueError(
                "model.weights is ''; allowed: a ResNet state dict on this disk, as "
                "pretext.method is imagenet"
            )
        if not Path(path).is_file():
            raise ValueError(f"model.weights: {path}: no such file")
        load_encoder_weights(self.embedder.encoder, Path(path))

    def begin(self, start: Start) -> None:
        """Read the weights."""
        load_encoder_weights(self.embedder.encoder, Path(self.network.weights))


TASKS = {"imagenet": ImageNet, "none": Untrained}
SYSTEMS = {
    "imagenet": System(
        "Multi-modal, ImageNet",
        pretext="imagenet",
        finetune="spheres",
        changes={"model.input_norm": "imagenet", "model.batch_norm": "affine"},
        note="Published near chance: its loader dropped the shortcuts' and batch norms' weights "
        "without a word and left inputs unscaled; here every weight is loaded and inputs are "
        "normalised as in ImageNet.",
    ),
}
