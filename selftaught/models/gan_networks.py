"""Encoder, decoder, encoder again, and their critic: the networks of the GAN."""

import torch
from torch import Tensor, nn

WIDEST = 16  # times the first width, of encoders and decoder; the critic goes to twice that


def _halving(channels: int, out: int, *, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel_size=4, stride=2, padding=1, bias=bias)


def _normed(convolution: nn.Module, channels: int) -> list[nn.Module]:
    return [convolution, nn.InstanceNorm2d(channels, affine=True), nn.ReLU(inplace=True)]


class LatentEncoder(nn.Sequential):
    """Image (B, 1, S', S') -> latent (B, L, 1, 1).

    A 7x7 convolution, log2(S'/4) halvings, and a 4x4 convolution without norm over what is left.

    Args:
        side: S', a power of two, 16 or more.
        width: channels after the first convolution; they double to at most 16 times as many.
        latent: L.
    """

    def __init__(self, side: int, width: int, latent: int) -> None:
        channels = width
        layers = _normed(nn.Conv2d(1, width, 7, padding=3, bias=False), width)
        for level in range(1, _halvings(side, 4) + 1):
            out = width * min(2**level, WIDEST)
            layers += _normed(_halving(channels, out, bias=False), out)
            channels = out
        super().__init__(*layers, nn.Conv2d(channels, latent, kernel_size=4))


class LatentDecoder(nn.Sequential):
    """Latent (B, L, 1, 1) -> image (B, 1, S', S') in [-1, 1]; arguments as for `LatentEncoder`."""

    def __init__(self, side: int, width: int, latent: int) -> None:
        doublings = _halvings(side, 4)
        channels = width * min(2 ** (doublings - 1), WIDEST)
        layers = _normed(nn.ConvTranspose2d(latent, channels, 4, bias=False), channels)
        for level in reversed(range(doublings - 1)):
            out = width * min(2**level, WIDEST)
            layers += _normed(nn.ConvTranspose2d(channels, out, 4, 2, 1, bias=False), out)
            channels = out
        super().__init__(*layers, nn.ConvTranspose2d(channels, 1, 4, 2, 1), nn.Tanh())


class Generator(nn.Module):
    """Image -> reconstruction, and what both encoders make of the one and of the other.

    Both encoders have one shape and weights of their own (Akcay et al. 2018, arXiv:1805.06725).

    Args:
        side: as for `LatentEncoder`.
        width: as for `LatentEncoder`.
        latent: as for `LatentEncoder`.
    """

    def __init__(self, side: int, width: int, latent: int) -> None:
        super().__init__()
        self.encoder = LatentEncoder(side, width, latent)
        self.decoder = LatentDecoder(side, width, latent)
        self.second = LatentEncoder(side, width, latent)

    def reconstruct(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The reconstruction (B, 1, S', S'), and the latent (B, L, 1, 1) that it comes from.

        Args:
            x: (B, 1, S', S') in [-1, 1], -1 outside the mask.
            mask: (B, 1, S', S') in [0, 1]; outside it the reconstruction is -1 as the image is, so
                that neither the critic nor the second encoder looks there.
        """
        latent = self.encoder(x)
        return mask * (self.decoder(latent).to(x.dtype) + 1) - 1, latent

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, latent of the image, and latent of the reconstruction."""
        made, latent = self.reconstruct(x, mask)
        return made, latent, self.second(made)


class Critic(nn.Module):
    """Image (B, 1, S', S') -> a number (B,), higher = more like the training images.

    log2(S'/2) halvings and a 3x3 convolution, whose map of 2x2 is averaged. Without norms, so that
    what it says of an image, and its slope there, depend on no other image.

    Args:
        side: S', a power of two, 16 or more.
        width: channels after the first convolution; they double to at most 32 times as many.
    """

    def __init__(self, side: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for level in range(_halvings(side, 2)):
            out = width * min(2**level, 2 * WIDEST)
            layers += [_halving(channels, out, bias=True), nn.LeakyReLU(0.01)]
            channels = out
        self.layers = nn.Sequential(*layers, nn.Conv2d(channels, 1, 3, padding=1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """The numbers, in the precision of the weights, also under autocast."""
        with torch.autocast(x.device.type, enabled=False):
            return self.layers(x.to(next(self.parameters()).dtype)).mean((1, 2, 3))


def _halvings(side: int, left: int) -> int:
    """How often a side is halved until so much of it is left."""
    return (side // left).bit_length() - 1
