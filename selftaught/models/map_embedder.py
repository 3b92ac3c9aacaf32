"""An encoder up to its feature map, and what makes an embedding of that."""

from torch import Tensor, nn

from selftaught.models.encoder import Encoder


class MapEmbedder(nn.Module):
    """Encoder, and what makes an embedding of its feature map.

    Args:
        encoder: to the feature map.
        branch: feature map (B, W, f, f) -> z (B, D); None: z is h.
    """

    def __init__(self, encoder: Encoder, branch: nn.Sequential | None = None) -> None:
        super().__init__()
        encoder.need_layers("of autoencoders")
        self.encoder, self.branch = encoder, branch

    def parts(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature map (B, W, f, f), its average h (B, W) and the embedding z (B, D) of images."""
        features = self.encoder.feature_map(images)
        h = self.encoder.pool(features).flatten(1)
        return features, h, h if self.branch is None else self.branch(features)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """H and z of images (B, 1, S, S)."""
        return self.parts(images)[1:]


def new_branch(width: int, side: int, last_norm: str) -> nn.Sequential:
    """Feature map (B, width, f, f) -> z, 2 x 2 places of width / 4 features; one place for f = 1.

    A map of 16 x 16 or more is pooled as published (16 -> 7 -> 5 -> 2), a smaller one is padded.
    """
    if side >= 16:
        first = [nn.AvgPool2d(3, 2), nn.Conv2d(width, width // 2, 3, bias=False)]
        pools: list[nn.Module] = [nn.MaxPool2d(3, 2), nn.AdaptiveMaxPool2d(2)]
    else:
        first = [nn.Conv2d(width, width // 2, 3, padding=1, bias=False)]
        pools = [nn.AdaptiveMaxPool2d(min(side, 2))]
    branch = nn.Sequential(
        *first,
        nn.BatchNorm2d(width // 2, affine=False),
        nn.ReLU(),
        *pools,
        nn.Conv2d(width // 2, width // 4, 1, bias=False),
        nn.BatchNorm2d(width // 4, affine=False) if last_norm == "plain" else nn.Identity(),
        nn.Flatten(),
    )
    for one in branch:
        if isinstance(one, nn.Conv2d):
            nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
    return branch
