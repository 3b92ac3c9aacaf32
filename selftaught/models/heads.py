"""Projection head, and the embedder that joins it to an encoder."""

from collections.abc import Sequence

from torch import Tensor, nn

from selftaught.models.encoder import Encoder, EncoderConfig
from selftaught.models.fresh import fresh_weights

EMBEDDING_WIDTHS = (256, 128)


class ProjectionHead(nn.Module):
    """Linear layers with ReLU between them, h (B, 512) -> z (B, 128) (Sec. 2.1)."""

    def __init__(
        self, widths: Sequence[int] = (512, *EMBEDDING_WIDTHS), *, bias: bool = True
    ) -> None:
        """Build from the widths of input, hidden layers and output, with or without biases.

        Raises:
            ValueError: fewer than two widths, or one below 1.
        """
        super().__init__()
        self.widths = tuple(widths)
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"widths={self.widths}: must be two or more numbers, all >= 1")
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out, bias=bias), nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, h: Tensor) -> Tensor:
        """Embedding z (B, widths[-1]) of features h (B, widths[0])."""
        return self.layers(h)


class Embedder(nn.Module):
    """Encoder and head: image -> (h, z).

    Attributes:
        encoder: to the average pool.
        head: to the embedding in which the hyperspheres lie.
    """

    def __init__(
        self,
        encoder_config: EncoderConfig,
        head: Sequence[int] = EMBEDDING_WIDTHS,
        *,
        bias: bool = True,
        image_size: int = 224,
    ) -> None:
        """Build with fresh weights from torch's global generator.

        Args:
            encoder_config: the encoder.
            head: widths of the head after the encoder's own.
            bias: whether the head's layers have biases.
            image_size: as for `Encoder`.

        Raises:
            ValueError: no width, or one below 1.
        """
        super().__init__()
        self.encoder = Encoder(encoder_config, image_size)
        self.head = ProjectionHead((self.encoder.width, *head), bias=bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features h (B, width) and embedding z (B, D) of images x (B, 1, H, W)."""
        h = self.encoder(x)
        return h, self.head(h)


def build_embedder(
    config: EncoderConfig,
    seed: int,
    *,
    head: Sequence[int] = EMBEDDING_WIDTHS,
    bias: bool = True,
    image_size: int = 224,
) -> Embedder:
    """Embedder whose weights depend on `seed` alone; no global generator moves.

    Args:
        config: the encoder.
        seed: of the weights.
        head: as for `Embedder`.
        bias: as for `Embedder`.
        image_size: as for `Encoder`.

    Returns:
        The embedder, in training mode, on the CPU; without memory inside `torch.device("meta")`.
    """
    with fresh_weights(seed):
        return Embedder(config, head, bias=bias, image_size=image_size)
