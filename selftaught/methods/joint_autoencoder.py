"""The reconstruction that joint training begins with (paper, Sec. 8.1 of its supplement)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from selftaught.methods.autoencoder import Autoencoder, AutoencoderOptions, new_decoder
from selftaught.models.map_embedder import MapEmbedder
from selftaught.models.network import Network


@dataclass(frozen=True, kw_only=True)
class JointAutoencoderOptions(AutoencoderOptions):
    """The reconstruction that joint training begins with.

    Args:
        epochs: few, as published.
        decoder: published = its output is a tanh; corrected = a sigmoid.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": AutoencoderOptions.presets["paper"]
    }

    epochs: int = 5
    milestones: list[int] = field(default_factory=list)


class JointAutoencoder(Autoencoder):
    """Encoder and decoder without a bottleneck between them: image -> feature map -> image."""

    Options: ClassVar[type[AutoencoderOptions]] = JointAutoencoderOptions

    def build(self, network: Network) -> None:
        """Embedder and decoder with fresh weights."""
        encoder = network.embedder().encoder
        self.embedder = MapEmbedder(encoder)
        self.decoder = new_decoder(network, encoder.width, self.options.decoder)

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructions (B, 1, S, S), h and z of images."""
        features, h, z = self.embedder.parts(images)
        return self.decoder(features), h, z

    def backbone(self) -> nn.Module:
        """The layers up to the feature map."""
        layers: nn.Module = self.embedder.encoder.layers
        return layers


TASKS = {"joint-ae": JointAutoencoder}
