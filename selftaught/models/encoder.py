"""Encoder for one-channel images, to the features that are pooled over places."""

import dataclasses
import math
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from selftaught.errors import InputError
from selftaught.models import bodies

Stem = Literal["imagenet", "small"]
BatchNorm = Literal["affine", "plain"]
# Means and standard deviations for inputs in [0, 1]: ImageNet's red, green and blue, and [-1, 1].
NORMS = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
}


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What an encoder is built from; stored with every model.

    Attributes:
        architecture: a torchvision ResNet (`resnet18` gives 512 features, `resnet50` 2048), or
            any other network that `bodies.build` takes.
        stem: `imagenet` is a 7x7 stride-2 convolution and a stride-2 maximum pool; `small`, for
            images under about 64 pixels, is a 3x3 stride-1 convolution and no pool.
        batch_norm: `plain` has no scale and shift parameters (the published model).
        input_norm: `imagenet` subtracts ImageNet's mean from each copy of the grey channel and
            divides by its standard deviation, as weights trained there expect of inputs in [0, 1];
            `half` takes 0.5 for both; "M,D" is a mean and a deviation, "R,G,B,r,g,b" are those
            of three channels.
        digest: SHA-256 of the file, where the architecture is one; "" = not known.
        mirror: in eval mode, features are the mean of an image's and of its mirror image's.
    """

    architecture: str = "resnet18"
    stem: Stem = "imagenet"
    batch_norm: BatchNorm = "affine"
    input_norm: str = "none"
    digest: str = ""
    mirror: bool = False

    def __post_init__(self) -> None:
        """Refuse values outside the allowed ones, which type checkers do not see at run time."""
        if not isinstance(self.architecture, str) or not bodies.known(self.architecture):
            raise ValueError(f"architecture={self.architecture!r}: must be {bodies.ALLOWED}")
        for name, names in (("stem", Stem), ("batch_norm", BatchNorm)):
            value, allowed = getattr(self, name), get_args(names)
            if value not in allowed:
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(allowed)}")
            if value != allowed[0] and not self.residual:
                raise ValueError(
                    f"{name}={value!r}: must be {allowed[0]} with architecture "
                    f"{self.architecture}, or the architecture a torchvision ResNet"
                )
        norm_of(self.input_norm)

    @property
    def residual(self) -> bool:
        """Whether it is a torchvision ResNet, whose layers are known."""
        return self.architecture in bodies.RESNETS


def identified(config: EncoderConfig) -> EncoderConfig:
    """The same encoder; one in a file by its absolute path and its SHA-256.

    Raises:
        InputError: the file cannot be read.
    """
    if not bodies.is_file(config.architecture):
        return config
    path = Path(config.architecture).absolute()
    return dataclasses.replace(config, architecture=str(path), digest=bodies.file_digest(path))


def norm_of(name: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Means and standard deviations by channel that an `input_norm` names; None: none.

    Raises:
        ValueError: it is no name, nor means and as many deviations above 0 of 1 or 3 channels.
    """
    if name == "none" or name in NORMS:
        return NORMS.get(name)
    try:
        numbers = tuple(float(one) for one in name.split(","))
        means, deviations = numbers[: len(numbers) // 2], numbers[len(numbers) // 2 :]
        fine = all(map(math.isfinite, numbers)) and all(one > 0 for one in deviations)
        if fine and len(numbers) in (2, 6):
            return means, deviations
    except (ValueError, AttributeError):
        pass
    raise ValueError(
        f"input_norm={name!r}: must be one of none, imagenet, half, or a mean and a standard "
        'deviation above 0 such as "0.5,0.25", or three means and then three deviations'
    )


def _without_affine(module: nn.Module) -> None:
    """Replace every batch norm below `module` by one without parameters.

    torchvision cannot build such a network itself: its constructor fills the norms' weights.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            plain = nn.BatchNorm2d(child.num_features, child.eps, child.momentum, affine=False)
            setattr(module, name, plain)
        else:
            _without_affine(child)


class Encoder(nn.Module):
    """Grey image (B, 1, H, W) -> features h (B, width), the network of the paper's Sec. 2.1.

    The state's names below `layers.` are torchvision's or timm's, so that weights trained there
    fit. Fresh weights are drawn from torch's global generator; `build_embedder` draws them from a
    seed.

    Args:
        config: what it is built from.
        image_size: side of the images that a network other than a ResNet is tried on.

    Attributes:
        config: what it was built from.
        width: number of features, such as 512 or 2048.
        channels: that the network takes, copies of the grey one.
        least_size: as in `bodies.Measures`.
        trainable: as in `bodies.Measures`.

    Raises:
        InputError: there is no such network, or it gives no features of such images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig, image_size: int = 224) -> None:
        super().__init__()
        self.config = config
        self.pool: nn.Module
        self.layers: nn.Module
        if config.residual:
            width, self.layers, self.pool = _residual(config)
            measured = bodies.Measures(width)
        else:
            self.layers = bodies.build(config.architecture, config.digest)
            self.pool = nn.AdaptiveAvgPool2d((1, 1))
            measured = bodies.probe(self.layers, config.architecture, image_size)
        self.width, self.channels, self.least_size, self.trainable = measured
        norm = norm_of(config.input_norm)
        if norm is not None:
            if len(norm[0]) > self.channels:
                raise InputError(
                    f"model.input_norm is {config.input_norm!r}, but {config.architecture} takes "
                    'one channel; allowed: none, half or "M,D", one mean and deviation'
                )
            # Constants that the config names: no part of the state. They cannot be folded into
            # conv1, whose zero padding would then stand for another grey.
            for name, values in zip(("mean", "std"), norm, strict=True):
                constant = torch.tensor(values).view(-1, 1, 1)
                self.register_buffer(name, constant, persistent=False)

    def _output(self, x: Tensor) -> Tensor:
        """What the layers give for images `x` (B, 1, H, W)."""
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x: shape {tuple(x.shape)}, must be (B, 1, H, W)")
        kind = next((one.dtype for one in self.parameters()), x.dtype)
        x = x.to(kind).expand(-1, self.channels, -1, -1)
        if self.config.input_norm != "none":
            x = (x - self.mean) / self.std
        output: Tensor = self.layers(x)
        return output

    def feature_map(self, x: Tensor) -> Tensor:
        """Features before the average pool.

        Args:
            x: (B, 1, H, W) floats in the declared input range; the weights' precision is used.

        Returns:
            (B, width, H / 32, W / 32), rounded up, of a ResNet; H / 8 with the small stem.

        Raises:
            ValueError: `x` is not (B, 1, H, W), or the network gives features without places.
        """
        output = self._output(x)
        if output.ndim != 4:
            raise ValueError(f"{self.config.architecture} gives features without places")
        return output

    def forward(self, x: Tensor) -> Tensor:
        """Features h (B, width) of `x` (B, 1, H, W), mirrored too where the config says so.

        Features (B, width) of images that have passed before are given back as they are. Raises
        like `feature_map`.
        """
        if self.training or not self.config.mirror or x.ndim != 4:
            return self.pooled(x)
        both, count = self.pooled(torch.cat([x, x.flip(-1)])), x.shape[0]  # len is no symbol
        return (both[:count] + both[count:]) / 2

    def pooled(self, x: Tensor) -> Tensor:
        """Average-pooled features h (B, width) of `x` as it is; otherwise as `forward`."""
        if x.ndim == 2 and x.shape[1] == self.width:
            return x
        output = self._output(x)
        return output if output.ndim == 2 else self.pool(output).flatten(1)

    def facts(self) -> dict[str, int]:
        """What was measured of the network, for models to compare."""
        return {name: getattr(self, name) for name in ("width", "channels", "least_size")}

    def need_layers(self, method: str) -> None:
        """Refuse a network whose inner layers are not known, for methods that use them.

        Raises:
            InputError: it is no torchvision ResNet.
        """
        if not self.config.residual:
            raise InputError(
                f"model.architecture is {self.config.architecture!r}, whose inner layers method "
                f"{method} does not know; allowed: one of {', '.join(bodies.RESNETS)}"
            )


def measured(task: nn.Module) -> dict[str, int]:
    """`Encoder.facts` of a task's first encoder; empty where it has none."""
    return next((one.facts() for one in task.modules() if isinstance(one, Encoder)), {})


def _residual(config: EncoderConfig) -> tuple[int, nn.Module, nn.Module]:
    """Width, layers and pool of a torchvision ResNet."""
    import torchvision

    network = getattr(torchvision.models, config.architecture)(weights=None)
    width: int = network.fc.in_features
    if config.stem == "small":
        network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
        network.maxpool = nn.Identity()
    if config.batch_norm == "plain":
        _without_affine(network)
    parts = OrderedDict(network.named_children())
    del parts["fc"]
    pool = parts.pop("avgpool")
    return width, nn.Sequential(parts), pool
