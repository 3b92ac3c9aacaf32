"""Mirrored decoder, and reconstruction errors that look at the body part alone."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from selftaught.losses.means import per_counted
from selftaught.models.encoder import Stem
from selftaught.models.heads import ProjectionHead

Output = Literal["sigmoid", "tanh"]
HALVINGS: dict[Stem, int] = {"imagenet": 5, "small": 3}  # of an image's side, by the encoder


def feature_side(image_size: int, stem: Stem) -> int:
    """Side f of the encoder's last feature map: S / 32 rounded up, S / 8 with the small stem."""
    return -(-image_size // 2 ** HALVINGS[stem])


def _convolution(width: int, out: int, kernel: int) -> nn.Conv2d:
    one = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(one.weight, mode="fan_out", nonlinearity="relu")
    return one


def _doubling(doubles: bool) -> nn.Module:
    if not doubles:
        return nn.Identity()
    return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)


class _Block(nn.Module):
    """Residual block; with `out` it changes width, and doubles the side where asked to.

    The 1x1 convolutions stand before the interpolation, which they commute with: the same map at a
    quarter of the work.
    """

    def __init__(self, width: int, out: int | None = None, *, doubles: bool = False) -> None:
        super().__init__()
        self.first = nn.Sequential(
            _convolution(width, width, 3), nn.BatchNorm2d(width, affine=False), nn.ReLU()
        )
        if out is None:
            self.second = nn.Sequential(
                _convolution(width, width, 3), nn.BatchNorm2d(width, affine=False)
            )
            self.shortcut: nn.Module = nn.Identity()
        else:
            self.second, self.shortcut = (
                nn.Sequential(
                    _convolution(width, out, 1),
                    _doubling(doubles),
                    nn.BatchNorm2d(out, affine=False),
                )
                for _ in range(2)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, out, h, w) of `x` (B, width, h, w); twice the side where it doubles."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class Decoder(nn.Module):
    """Feature map (B, width, f, f) -> image (B, 1, S, S), the encoder's mirror (Sec. 3).

    Four stages narrow the map to 1/2, 1/4, 1/8 and 1/8 of the encoder's width and double its side;
    a last doubling and a 1x1 convolution give the image, which is resized where S is no multiple
    of the encoder's stride. With the small stem the first three stages alone double. No
    convolution has a bias and no norm a scale: 9,752,640 parameters for ResNet-18.

    Weights are drawn from torch's global generator; build inside `fresh_weights(seed, "decoder")`.

    Args:
        width: channels of the feature map, the encoder's `width`.
        image_size: S.
        stem: of the encoder.
        output: sigmoid for images in [0, 1], or tanh as published.
    """

    def __init__(
        self, width: int, image_size: int, *, stem: Stem = "imagenet", output: Output = "sigmoid"
    ) -> None:
        super().__init__()
        self.image_size, self.output = image_size, output
        doublings = HALVINGS[stem]
        widths = [width, width // 2, width // 4, width // 8, width // 8]
        blocks: list[nn.Module] = []
        for number, (one, following) in enumerate(zip(widths, widths[1:], strict=False)):
            blocks += [_Block(one), _Block(one, following, doubles=number < doublings)]
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Sequential(_convolution(widths[-1], 1, 1), _doubling(doublings > 4))

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, 1, S, S) of a feature map; at least float32, also under autocast."""
        x = self.last(self.blocks(x))
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if x.shape[-1] != self.image_size:
            size = (self.image_size, self.image_size)
            x = nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)
        return x.sigmoid() if self.output == "sigmoid" else x.tanh()


class FeatureMap(nn.Module):
    """Embedding z (B, D) -> feature map (B, width, f, f): the projection head mirrored.

    Every place gets the same features, so that only the decoder's zero padding says where it is,
    and images come out as blurs (as published). The position map, learned, says it outright.

    Args:
        widths: of the projection head, the encoder's first.
        side: f.
        position: whether to add the position map (width, f, f), drawn from N(0, 0.02).
    """

    def __init__(self, widths: Sequence[int], side: int, *, position: bool = True) -> None:
        super().__init__()
        self.side = side
        self.head = ProjectionHead(tuple(reversed(widths)))
        shape = (widths[0], side, side)
        self.position = nn.Parameter(torch.empty(shape).normal_(0, 0.02)) if position else None

    def forward(self, z: Tensor) -> Tensor:
        """Feature map of embeddings."""
        x = self.head(z)[:, :, None, None].expand(-1, -1, self.side, self.side)
        return x if self.position is None else x + self.position


def masked_mse(x_hat: Tensor, x: Tensor, mask: Tensor, weights: Tensor | None = None) -> Tensor:
    """Sum of w m (x_hat - x)^2 over the sum of m, both over the global batch.

    The mean of ranks' ratios would be another number: each rank gives its own numerator times the
    number of ranks over the common denominator, whose mean over the ranks is the loss. Engines
    average gradients alike. All ranks call it together. Of micro-batches, each has its own ratio.

    Args:
        x_hat: (B, 1, S, S) reconstructions.
        x: (B, 1, S, S) images.
        mask: (B, 1, S, S) in [0, 1].
        weights: (B,) of images' errors, None: 1; every image's mask stays in the denominator. To
            leave images out of both, multiply `mask`.

    Returns:
        0-d, float32 or more; 0 where no mask covers a pixel.
    """
    errors = _errors(x_hat, x, mask)
    if weights is not None:
        errors = errors * weights.to(errors.dtype)
    return errors.sum() * per_counted(mask.to(errors.dtype))


def reconstruction_error(
    x_hat: Tensor, x: Tensor, mask: Tensor, over: Literal["mask", "frame"] = "mask"
) -> Tensor:
    """Mean squared error (B,) of each image inside its mask.

    Args:
        x_hat: as for `masked_mse`.
        x: as for `masked_mse`.
        mask: as for `masked_mse`.
        over: what the error inside the mask is divided by: the mask's area, or the whole frame's as
            published, which makes larger body parts more abnormal.
    """
    errors = _errors(x_hat, x, mask)
    if over == "frame":
        return errors / x[0].numel()
    return errors / mask.to(errors.dtype).sum(dim=(1, 2, 3)).clamp(min=1)


def _errors(x_hat: Tensor, x: Tensor, mask: Tensor) -> Tensor:
    """Sum (B,) of every image's squared errors inside its mask."""
    kind = torch.promote_types(x_hat.dtype, torch.float32)
    with torch.autocast(x.device.type, enabled=False):
        squared = (x_hat.to(kind) - x.to(kind)).square()
        return (mask.to(kind) * squared).sum(dim=(1, 2, 3))
