"""First stages that train nothing: weights from a file (ImageNet), or random ones."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from torch import Tensor, nn

from selftaught.data.augment import Augment, pretext_augment
from selftaught.methods.begin import fill_statistics
from selftaught.methods.task import Options, Start, System, Task
from selftaught.models import bodies
from selftaught.models.network import Network
from selftaught.models.weights import AUTO, WHEEL, load_encoder_weights, wheel


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
    """An encoder from `model.weights`, a state dict on this disk; nothing is downloaded.

    wheel are the ImageNet weights of efficientnet_lite0 that extra `pretrained` installs; auto, and
    nothing for that network, are the same, or random weights where it is not installed. A network
    in a file of `model.architecture` has its weights there.
    """

    needs_weights = True

    @property
    def source(self) -> Path | Literal["wheel", ""]:
        """Where the weights come from, "" = nowhere."""
        given, encoder = self.network.weights, self.network.encoder
        if given in ("", AUTO):
            return "wheel" if encoder.architecture == bodies.LITE and wheel() else ""
        return "wheel" if given == WHEEL else Path(given)

    def check(self, labels: Tensor) -> None:
        """Refuse a file that is missing or does not fit."""
        given, architecture = self.network.weights, self.network.encoder.architecture
        own = bodies.is_file(architecture) or architecture == bodies.LITE
        if not given and not own:
            raise ValueError(
                "model.weights is ''; allowed: a state dict of the network on this disk, as "
                "pretext.method is imagenet"
            )
        source = self.source
        if isinstance(source, Path) and not source.is_file():
            raise ValueError(f"model.weights: {source}: no such file")
        if source:
            load_encoder_weights(self.embedder.encoder, source)

    def begin(self, start: Start) -> None:
        """Read the weights."""
        if self.source:
            load_encoder_weights(self.embedder.encoder, self.source)
        elif not bodies.is_file(self.network.encoder.architecture):
            super().begin(start)
            name = self.network.encoder.architecture
            lite = f"{bodies.INSTALL} (17 MB), or " if name == bodies.LITE else ""
            start.warn(
                f"no ImageNet weights of {name} are installed: it starts from random ones, which "
                "costs accuracy, most where labels are few or the encoder is held still; remedy: "
                f"{lite}model.weights FILE, and a new run"
            )


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
