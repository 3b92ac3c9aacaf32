"""One-class GAN: what cannot be made again from its latent is abnormal (Tang et al., ISBI 2019).

Encoder, decoder, encoder again (GANomaly, Akcay et al. 2018, arXiv:1805.06725) against a critic
with gradient penalty (WGAN-GP, Gulrajani et al. 2017, arXiv:1704.00028).
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import adaptive_avg_pool2d, conv2d

from selftaught.data.augment import finetune_augment
from selftaught.errors import require
from selftaught.losses.means import per_counted
from selftaught.methods import noise
from selftaught.methods.task import Options, System, Task
from selftaught.models.fresh import fresh_weights
from selftaught.models.gan_networks import Critic, Generator
from selftaught.models.network import Network
from selftaught.semi_labels import KNOWN_ABNORMAL

LARGEST_SIDE = 128
SSIM_SIDE, SSIM_SIGMA = 11, 1.5


@dataclass(frozen=True, kw_only=True)
class GanOptions(Options):
    """A GAN trained on images not known to be abnormal.

    Args:
        width: channels after the first convolutions; deeper ones have up to 32 times as many.
        latent: numbers that an image is made again from.
        generator_every: of so many steps the last is the generator's, the others the critic's.
        penalty: weight of (slope of the critic - 1)^2.
        pixels: weight of the mean absolute difference of image and reconstruction.
        structure: weight of (1 - SSIM) / 2.
        latents: weight of the squared difference of the two latents.
    """

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # The generator has a fifth of the few steps: at 1e-4 it would hardly have begun.
        "quick": {"epochs": 40, "lr": 1e-3, "milestones": [28, 36], "width": 16},
        "paper": {"augment": asdict(finetune_augment("paper"))},
    }

    milestones: list[int] = field(default_factory=lambda: [70, 90])
    width: int = 64
    latent: int = 128
    generator_every: int = 5
    penalty: float = 10.0
    pixels: float = 10.0
    structure: float = 20.0
    latents: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, most in (("width", 512), ("latent", 65536)):
            value = getattr(self, name)
            require(name, value, f"1 to {most}", 1 <= value <= most)
        every = self.generator_every
        require("generator_every", every, "2 or more", every >= 2)
        for name in ("penalty", "pixels", "structure", "latents"):
            value = getattr(self, name)
            require(name, value, "0 or more", 0 <= value < math.inf)


class Gan(Task):
    """Critic and generator take turns; known abnormal images count nowhere.

    Images are brought to the largest power of two within their side and 128, and to [-1, 1].
    """

    Options, masks, whole_batch = GanOptions, True, True
    players = ("critic", "generator")
    betas = (0.5, 0.999)
    score_name = "error of the reconstruction and of its latent"
    options: GanOptions

    def __init__(self, options: GanOptions, network: Network) -> None:
        super().__init__(options, network)
        side = min(LARGEST_SIDE, 1 << (network.image_size.bit_length() - 1))
        with fresh_weights(network.seed, "gan"):
            generator = Generator(side, options.width, options.latent)
            self.critic = Critic(side, options.width)
        self.reconstruction = Reconstruction(generator, side, options.augment.input_range)

    def check(self, labels: Tensor) -> None:
        """Refuse a training that ends before the generator has a turn."""
        options, images = self.options, len(labels)
        steps = options.epochs * (images // min(options.batch_size, images))
        every, allowed = options.generator_every, f"2 to {steps}, the steps of the training"
        require("generator_every", every, allowed, every <= steps)

    def turns(self, step: int) -> tuple[str, ...]:
        """The generator's in every fifth step, else the critic's."""
        every = self.options.generator_every
        return ("generator",) if step % every == every - 1 else ("critic",)

    def parameters_of(self, player: str) -> Iterable[nn.Parameter]:
        """Of the critic; or of decoder and both encoders."""
        return (self.critic if player == "critic" else self.reconstruction).parameters()

    def forward(self, batch: dict[str, Any], player: str = "critic") -> dict[str, Tensor]:
        """The loss of a player, and the means that it is made of."""
        counted = (batch["semi_label"] != KNOWN_ABNORMAL).to(batch["views"].dtype)
        weights = counted * per_counted(counted)
        x, mask = self.reconstruction.prepared(batch["views"][:, 0], batch["masks"][:, 0])
        if player == "generator":
            parts, options = self._generator_parts(x, mask), self.options
            factors = {
                "adversarial": 1.0,
                "pixels": options.pixels,
                "structure": options.structure,
                "latents": options.latents,
            }
        else:
            share = noise.uniform(self.network.seed, batch["step"], batch["ids"], (1, 1, 1))
            parts = self._critic_parts(x, mask, share.to(x))
            factors = {"wasserstein": -1.0, "penalty": self.options.penalty}
        means = {name: (weights * values).sum() for name, values in parts.items()}
        loss = torch.stack([factor * means[name] for name, factor in factors.items()]).sum()
        return {**{name: mean.detach() for name, mean in means.items()}, "loss": loss}

    def _critic_parts(self, x: Tensor, mask: Tensor, share: Tensor) -> dict[str, Tensor]:
        """Of each image (B,); the mean of `wasserstein` estimates the distance of that name."""
        with torch.no_grad():
            made, _ = self.reconstruction.generator.reconstruct(x, mask)
        of_real, of_made = self.critic(torch.cat([x, made])).chunk(2)
        slope = slopes(self.critic, share * x + (1 - share) * made)
        return {
            "critic_real": of_real,
            "critic_made": of_made,
            "wasserstein": of_real - of_made,
            "slope": slope,
            "penalty": (slope - 1).square(),
        }

    def _generator_parts(self, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Of each image (B,)."""
        # The critic's weights need no gradient in this turn, only what it sees does.
        frozen = {name: value.detach() for name, value in self.critic.named_parameters()}
        made, first, second = self.reconstruction.generator(x, mask)
        return {
            "adversarial": -functional_call(self.critic, frozen, (made,)),
            "pixels": _inside((x - made).abs(), mask),
            "structure": dissimilarity(x, made, mask),
            "latents": _apart(first, second),
        }

    def scorer(self) -> nn.Module:
        """Sum of the errors of pixels and latent."""
        return self.reconstruction


class Reconstruction(nn.Module):
    """Images and masks -> how badly the generator makes them again.

    Args:
        generator: of images (B, 1, S', S').
        side: S'.
        input_range: lowest and highest value of the images.
    """

    def __init__(self, generator: Generator, side: int, input_range: tuple[float, float]) -> None:
        super().__init__()
        self.generator, self.side, self.input_range = generator, side, input_range

    def prepared(self, images: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, S', S') in [-1, 1], -1 outside the masks, and masks of that size."""
        low, high = self.input_range
        x, mask = (adaptive_avg_pool2d(one, self.side) for one in (images, masks))
        return (x - low) * (2 / (high - low)) - 1, mask

    def forward(self, images: Tensor, masks: Tensor) -> dict[str, Tensor]:
        """`score` (B,), and its two summands `latent_error` and `pixel_error`."""
        x, mask = self.prepared(images, masks)
        made, first, second = self.generator(x, mask)
        latent, pixels = _apart(first, second), _inside((x - made).abs(), mask)
        return {"score": latent + pixels, "latent_error": latent, "pixel_error": pixels}


def slopes(critic: nn.Module, u: Tensor) -> Tensor:
    """Euclidean norm (B,) of the critic's gradient at each image of `u` (B, ...).

    Differentiable by the critic's weights, in at least float32 also under autocast.
    """
    with torch.autocast(u.device.type, enabled=False), torch.enable_grad():
        u = u.detach().requires_grad_()
        # Gradients by inputs alone: hooks of distributed training wait for those of weights.
        (gradient,) = torch.autograd.grad(critic(u).sum(), u, create_graph=True)
        return (gradient.square().flatten(1).sum(1) + 1e-12).sqrt()


def dissimilarity(x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    """(1 - SSIM) / 2 (B,) of images in [-1, 1], from 0 to 1: its mean inside the mask.

    Wang et al. 2004, with the Gaussian window of 11 x 11 pixels and SD 1.5, at the pixels that it
    fits around.

    Args:
        x: (B, 1, S, S), S 11 or more.
        y: (B, 1, S, S).
        mask: (B, 1, S, S) in [0, 1].
    """
    with torch.autocast(x.device.type, enabled=False):
        places = torch.arange(SSIM_SIDE, dtype=x.dtype, device=x.device) - SSIM_SIDE // 2
        window = torch.softmax(-places.square() / (2 * SSIM_SIGMA**2), 0)
        maps = torch.cat([x, y, x * x, y * y, x * y])
        maps = conv2d(conv2d(maps, window[None, None, :, None]), window[None, None, None])
        mean_x, mean_y, xx, yy, xy = maps.chunk(5)
        c1, c2 = (2 * 0.01) ** 2, (2 * 0.03) ** 2  # for values 2 apart
        light = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
        spread = xx - mean_x.square() + yy - mean_y.square()
        ssim = light * (2 * (xy - mean_x * mean_y) + c2) / (spread + c2)
        edge = SSIM_SIDE // 2
        return _inside((1 - ssim) / 2, mask[..., edge:-edge, edge:-edge])


def _inside(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) of each image's `values` (B, 1, S, S) inside its mask; 0 where that is empty."""
    area = mask.flatten(1).sum(1)
    return (mask * values).flatten(1).sum(1) / area.clamp(min=1)


def _apart(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared difference (B,) of latents, at least in float32."""
    kind = torch.promote_types(first.dtype, torch.float32)
    return (first.to(kind) - second.to(kind)).square().flatten(1).mean(1)


TASKS = {"gan": Gan}
SYSTEMS = {
    "gan": System(
        "Tang et al. (GAN)",
        pretext="none",
        finetune="gan",
        note=(
            "The published recipe is unknown: encoder, decoder, encoder and a WGAN-GP critic as "
            "in its second author's code, on images of at most 128 px, for 100 epochs in place of "
            "650, with steps of the rate in place of a linear decay. Fixed: one update of the "
            "critic a step, SSIM for the range of the images, errors inside the body part alone."
        ),
    )
}
