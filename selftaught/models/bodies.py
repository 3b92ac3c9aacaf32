"""Networks whose features an encoder takes: timm's, torchvision's, a file's or a user's own."""

import hashlib
import importlib
import io
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from selftaught.errors import InputError

LITE = "efficientnet_lite0"
PREFIXES = ("timm/", "torchvision/")
EXPORTED = ".pt2"
FILES = (".pt", ".pth", ".ts", ".torchscript", EXPORTED)
LEAST = 16  # px: the smallest data.image_size
CUTS = ("fc", "classifier", "heads", "head")  # torchvision's names of a network's classifier
# torchvision's, written out: its import, with the compiler of torch, takes as long as torch's.
RESNETS = (
    *("resnet101", "resnet152", "resnet18", "resnet34", "resnet50"),
    *("resnext101_32x8d", "resnext101_64x4d", "resnext50_32x4d"),
    *("wide_resnet101_2", "wide_resnet50_2"),
)
ALLOWED = (
    f"one of {', '.join(RESNETS)}, {LITE}, timm/NAME, torchvision/NAME, the path of a TorchScript "
    "file (.pt, .ts) or torch.export file (.pt2), or the dotted path of an nn.Module such as "
    "my_module.Mine"
)
INSTALL = "pip install 'selftaught[pretrained]'"


def is_file(architecture: str) -> bool:
    """Whether an architecture is a program in a file."""
    return not architecture.startswith(PREFIXES) and architecture.endswith(FILES)


def known(architecture: str) -> bool:
    """Whether a name can be one that `build` takes."""
    dotted = all(part.isidentifier() for part in architecture.split(".")) and "." in architecture
    named = architecture.startswith(PREFIXES) and architecture.partition("/")[2] != ""
    return architecture in (*RESNETS, LITE) or named or is_file(architecture) or dotted


def build(architecture: str, digest: str = "") -> nn.Module:
    """The network without its classifier, with fresh weights or, from a file, with its own.

    Its own dropouts and stochastic depth are switched off: what they draw is no function of seed
    and image, so that a run that goes on would learn something else.

    Args:
        architecture: as `known` takes, other than a plain ResNet.
        digest: SHA-256 that a file must have, "" = any.

    Raises:
        InputError: there is no such network, what it needs is not installed, or the file has
            another digest.
    """
    if is_file(architecture):
        return Program(Path(architecture), digest)
    from torchvision.ops import StochasticDepth

    if architecture == LITE:
        network = _timm(architecture, "tf_efficientnet_lite0", global_pool="")
    elif architecture.startswith("timm/"):
        network = _timm(architecture, architecture.partition("/")[2])
    elif architecture.startswith("torchvision/"):
        network = _torchvision(architecture)
    else:
        network = _dotted(architecture)
    for one in network.modules():
        if isinstance(one, (_DropoutNd, StochasticDepth)):
            one.p = 0.0
        elif type(one).__name__ == "DropPath":
            one.drop_prob = 0.0  # type: ignore[assignment]
    if architecture.startswith((LITE, *PREFIXES)) and _grouped(network):
        # On one core efficientnet_lite0 then takes 1.5 (fp32) or 1.8 times (bf16) as many images
        # a second at 160 px; ResNets at 64 px take fewer, and a user's own may rely on its order.
        network.to(memory_format=torch.channels_last)
    return network


def _grouped(network: nn.Module) -> bool:
    """Whether it has grouped convolutions, such as depthwise ones."""
    return any(isinstance(one, nn.Conv2d) and one.groups > 1 for one in network.modules())


def _timm(architecture: str, name: str, **more: Any) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise InputError(
            f"model.architecture is {architecture!r}, whose layers are timm's, which cannot be "
            f"imported ({error}); allowed: {INSTALL}, or a torchvision network such as resnet18"
        ) from error
    try:
        network: nn.Module = timm.create_model(name, pretrained=False, num_classes=0, **more)
    except Exception as error:  # whatever it raises, there is no such network
        raise InputError(
            f"model.architecture is {architecture!r}, which timm {timm.__version__} cannot make "
            f"({_line(error)}); allowed: a name that timm.list_models() has"
        ) from error
    return network


def _torchvision(architecture: str) -> nn.Module:
    import torchvision

    name = architecture.partition("/")[2]
    try:
        network: nn.Module = torchvision.models.get_model(name, weights=None)
    except Exception as error:
        raise InputError(
            f"model.architecture is {architecture!r}, which torchvision cannot make "
            f"({_line(error)}); allowed: a name that torchvision.models.list_models() has"
        ) from error
    cut = next((one for one in CUTS if isinstance(getattr(network, one, None), nn.Module)), None)
    if cut is None or getattr(network, "aux_logits", False):
        raise InputError(
            f"model.architecture is {architecture!r}, whose features cannot be taken by cutting "
            f"its classifier; allowed: a network with one output, called {', '.join(CUTS)}"
        )
    setattr(network, cut, nn.Identity())
    return network


def _dotted(architecture: str) -> nn.Module:
    module, _, attribute = architecture.rpartition(".")
    allowed = "allowed: the dotted path of an nn.Module class or of a function that gives one"
    try:
        maker = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"model.architecture is {architecture!r}, which cannot be imported ({_line(error)}); "
            f"{allowed}, in a folder that PYTHONPATH names"
        ) from error
    try:
        network = maker()
    except Exception as error:
        raise InputError(
            f"model.architecture is {architecture!r}, which cannot be called without arguments "
            f"({_line(error)}); {allowed}"
        ) from error
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model.architecture is {architecture!r}, which gives {type(network).__name__}; "
            f"{allowed}"
        )
    return network


class Program(nn.Module):
    """A TorchScript or torch.export file: weights and layers, without the code they come from.

    Batch norms and dropouts stay as they were written, whatever mode is set, and weights move as
    far as the program lets them.

    Args:
        path: the file.
        digest: SHA-256 it must have, "" = any.

    Raises:
        InputError: it cannot be read, is another file, or no such program.
    """

    def __init__(self, path: Path, digest: str = "") -> None:
        super().__init__()
        content = program_bytes(path, digest)
        with torch.device("cpu"):  # on the meta device too: programs cannot be built there
            self.program = _read(path, content)

    def train(self, mode: bool = True) -> "Program":
        """Leave the program as it was written; exported ones refuse another mode."""
        self.training = mode
        return self

    def forward(self, x: Tensor) -> Any:
        """What the program gives."""
        return self.program(x)


def program_bytes(path: Path, digest: str = "") -> bytes:
    """A program's file, as it was when `digest` was taken; "" = as it is.

    Raises:
        InputError: it cannot be read, or is another one.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"model.architecture: {path}: cannot be read: {error.strerror}") from error
    if digest and hashlib.sha256(content).hexdigest() != digest:
        raise InputError(f"model.architecture: {path}: not the file that was trained with")
    return content


def file_digest(path: Path) -> str:
    """SHA-256 of a program's file; raises like `program_bytes`."""
    return hashlib.sha256(program_bytes(path)).hexdigest()


def _read(path: Path, content: bytes) -> nn.Module:
    try:
        if path.suffix == EXPORTED:
            return torch.export.load(io.BytesIO(content)).module()
        return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
    except Exception as error:  # of zip, JSON, pickle or the program itself
        raise InputError(
            f"model.architecture: {path}: no TorchScript or torch.export program: {_line(error)}; "
            "allowed: what torch.jit.save or torch.export.save wrote"
        ) from error


class Measures(NamedTuple):
    """What is known of a network once it was tried.

    Attributes:
        width: number of features.
        channels: that it takes, 3 or 1.
        least_size: smallest side of the images that it takes, of 16, 32, 64, ... px and the one
            that was asked for.
        trainable: whether its features have a gradient.
    """

    width: int
    channels: int = 3
    least_size: int = LEAST
    trainable: bool = True


@torch.no_grad()
def probe(network: nn.Module, architecture: str, side: int) -> Measures:
    """Measure a network by trying blank images, of 3 channels or else of 1.

    Args:
        network: without its classifier; left in its mode.
        architecture: its name.
        side: of the images.

    Raises:
        InputError: it does not take images of this size, or gives no features.
    """
    modes = [(one, one.training) for one in network.modules()]
    network.eval()
    problems = []
    try:
        for channels in (3, 1):
            try:
                width = _tried(network, channels, side).shape[1]
            except Exception as error:
                problems.append(_line(error))
            else:
                least = _least_size(network, channels, side)
                with torch.enable_grad():
                    trainable = _tried(network, channels, least).requires_grad
                return Measures(width, channels, least, trainable)
    finally:
        for one, mode in modes:
            one.training = mode
    raise InputError(
        f"model.architecture is {architecture!r}, which gives no features of images of {side} px "
        f"({problems[0]}); allowed: a data.image_size that it takes, any number of images at once, "
        "3 or 1 channels, one output (B, W) or (B, W, H, W)"
    )


def _least_size(network: nn.Module, channels: int, side: int) -> int:
    size = LEAST
    while size < side:
        try:
            _tried(network, channels, size)
        except Exception:  # whatever it raises, it does not take them
            size *= 2
        else:
            return size
    return side


def _tried(network: nn.Module, channels: int, side: int) -> Tensor:
    """Features of two blank images."""
    place = torch.device("cpu") if isinstance(network, Program) else torch.get_default_device()
    output = network(torch.zeros(2, channels, side, side, device=place))
    if not isinstance(output, Tensor) or output.ndim not in (2, 4) or len(output) != 2:
        kind = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ValueError(f"two images give {kind}")
    if not output.dtype.is_floating_point:
        raise ValueError(f"its output is {output.dtype}")
    return output


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:200]
