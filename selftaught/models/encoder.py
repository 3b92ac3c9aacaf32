"""ResNet encoder for one-channel images, to the global average pool."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torchvision
from torch import Tensor, nn

Architecture = Literal["resnet18", "resnet50"]
Stem = Literal["imagenet", "small"]
BatchNorm = Literal["affine", "plain"]
InputNorm = Literal["none", "imagenet"]
# Mean and standard deviation of ImageNet's red, green and blue, for inputs in [0, 1].
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What an encoder is built from; stored with every model.

    Attributes:
        architecture: the residual network; `resnet18` gives 512 features, `resnet50` 2048.
        stem: `imagenet` is a 7x7 stride-2 convolution and a stride-2 maximum pool; `small`, for
            images under about 64 pixels, is a 3x3 stride-1 convolution and no pool.
        batch_norm: `plain` has no scale and shift parameters (the published model).
        input_norm: `imagenet` subtracts ImageNet's mean from each copy of the grey channel and
            divides by its standard deviation, as weights trained there expect of inputs in [0, 1].
    """

    architecture: Architecture = "resnet18"
    stem: Stem = "imagenet"
    batch_norm: BatchNorm = "affine"
    input_norm: InputNorm = "none"

    def __post_init__(self) -> None:
        """Refuse values outside the allowed names, which type checkers do not see at run time."""
        allowed = {
            "architecture": Architecture,
            "stem": Stem,
            "batch_norm": BatchNorm,
            "input_norm": InputNorm,
        }
        for name, names in allowed.items():
            if getattr(self, name) not in get_args(names):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: must be one of {', '.join(get_args(names))}"
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

    The state's names below `layers.` are torchvision's, so that ImageNet weights fit. Weights
    are drawn from torch's global generator; `build_embedder` draws them from a seed.

    Attributes:
        config: what it was built from.
        width: number of features, 512 or 2048.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.config = config
        network = getattr(torchvision.models, config.architecture)(weights=None)
        self.width: int = network.fc.in_features
        if config.stem == "small":
            network.conv1 = nn.Conv2d(3, 64, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
            network.maxpool = nn.Identity()
        if config.batch_norm == "plain":
            _without_affine(network)
        parts = OrderedDict(network.named_children())
        del parts["fc"]
        self.pool = parts.pop("avgpool")
        self.layers = nn.Sequential(parts)
        if config.input_norm == "imagenet":
            # Constants that the config names: no part of the state. They cannot be folded into
            # conv1, whose zero padding would then stand for another grey.
            for name, values in zip(("mean", "std"), IMAGENET, strict=True):
                constant = torch.tensor(values).view(3, 1, 1)
                self.register_buffer(name, constant, persistent=False)

    def feature_map(self, x: Tensor) -> Tensor:
        """Features before the average pool.

        Args:
            x: (B, 1, H, W) floats in the declared input range; the weights' precision is used.

        Returns:
            (B, width, H / 32, W / 32), rounded up; H / 8 with the small stem.

        Raises:
            ValueError: `x` is not (B, 1, H, W).
        """
        if x.ndim != 4 or x.shape[1] != 1:
            raise ValueError(f"x: shape {tuple(x.shape)}, must be (B, 1, H, W)")
        x = x.to(next(self.parameters()).dtype).expand(-1, 3, -1, -1)
        if self.config.input_norm == "imagenet":
            x = (x - self.mean) / self.std
        return self.layers(x)

    def forward(self, x: Tensor) -> Tensor:
        """Average-pooled features h (B, width) of `x` (B, 1, H, W); raises like `feature_map`."""
        return self.pool(self.feature_map(x)).flatten(1)
